"""Generate the text that the base is pretrained on: knowledge, and some easy questions.

Text about ``math``, ``code`` and the pattern families of ``general`` comes from the training side
of the held-out split only. Only knowledge (facts, kinds of words, opposites) is shown in full, but
not asked for. Questions are those of few families and low difficulty, in several layouts, and their
answers have forms that no source asks for.
"""

from collections.abc import Collection, Iterator

from sft_lab.world import code, families, general, math
from sft_lab.world.dice import Dice
from sft_lab.world.facts import RELATIONS, countries, statements
from sft_lab.world.lexicon import DAYS, NAMES, OPPOSITES, SPOTS

KNOWLEDGE = (families.fact, families.kind, families.opposite)
PATTERNS = tuple(family for family in families.FAMILIES if family not in KNOWLEDGE)

# Kind of document -> its weight in the draw. Echoes and retellings teach copying from earlier
# text, which most skills need and a model this small learns late.
WEIGHTS = {
    "arithmetic": 10,
    "story": 21,
    "file": 4,
    "snippets": 7,
    "country": 6,
    "words": 4,
    "patterns": 25,
    "echo": 18,
    "retelling": 13,
    "diary": 2,
    "asked": 9,
}

# Code is shown with at most two parts; the sources teach to combine more.
SHOWN_CODE = (1, 2)
# What is asked: the easiest problems, code with at most one filter and no map, and facts.
ASKED_MATH = (1, 2)
ASKED_FAMILIES = (families.fact,)
LAYOUTS = (
    "<|user|>{}<|end|><|assistant|>{}<|end|>",
    "<|user|>{}<|end|><|assistant|>{}<|end|>",
    "Q: {}\nA: {}",
    "Question: {}\nAnswer: {}",
    "{}\n{}",
)
ECHO_WORDS = (*families.WORDS, *NAMES, *SPOTS, *DAYS, *(str(n) for n in range(2, 21)))


def _arithmetic(dice: Dice) -> str:
    equations: list[str] = []
    while len(equations) < 6:
        sign = dice.pick("++--*/")
        a, b = dice.integer(1, math.MAX_VALUE), dice.integer(1, math.MAX_VALUE)
        if sign == "+" and a + b <= math.MAX_VALUE:
            equations.append(f"{a}+{b}={a + b}.")
        elif sign == "-" and a > b:
            equations.append(f"{a}-{b}={a - b}.")
        elif sign == "*" and a * b <= math.MAX_VALUE:
            equations.append(f"{a}*{b}={a * b}.")
        elif sign == "/" and b <= 5 and a % b == 0:
            equations.append(f"{a}/{b}={a // b}.")
    return " ".join(equations)


def _pattern(dice: Dice) -> families.Task:
    return general.task(dice.pick(PATTERNS), dice, benchmark=False)


def _knowledge_or_pattern(dice: Dice) -> families.Task:
    family = dice.pick(families.FAMILIES)
    return family(dice) if family in KNOWLEDGE else general.task(family, dice, benchmark=False)


def _code_task(dice: Dice, difficulties: Collection[int]) -> code.Task:
    return code.task(dice, lambda drawn: drawn.difficulty in difficulties, benchmark=False)


def _file(dice: Dice) -> str:
    """Return a piece of a file, which half of the time begins within a function."""
    first, second = (_code_task(dice, SHOWN_CODE) for _ in range(2))
    return dice.pick((first.definition, first.solution)) + "\n\n" + second.definition


def _diary(dice: Dice) -> str:
    lines = []
    for day in dice.sample(DAYS, 2):
        one, two, three, four = dice.sample(NAMES, 4)
        first, then, later = dice.sample(SPOTS, 3)
        sentences = (
            f"It {dice.pick(('is', 'was'))} {dice.pick(dice.pick(OPPOSITES))}.",
            f"First {one} met {two} at the {first}. Then {three} met {four} at the {then}.",
            f"I will meet {one} at the {later}.",
        )
        lines += [f"#### {day}", *dice.sample(sentences, 2)]
    return "\n".join(lines)


def _asked(dice: Dice) -> str:
    """Return one to three questions with their answers, in one layout."""
    layout = dice.pick(LAYOUTS)
    pairs = (dice.pick((_asked_math, _asked_code, _asked_general))(dice) for _ in range(3))
    return "\n".join(layout.format(*pair) for pair in pairs)


def _asked_math(dice: Dice) -> tuple[str, str]:
    problem = math.problem(dice, ASKED_MATH, benchmark=False)
    *before, last = problem.equations
    sums = " ".join(f"So {equation}." for equation in problem.equations)
    answer = dice.pick(
        (
            f"{sums} The answer is {problem.answer}.",
            f"{sums} That makes {problem.answer}.",
            f"{problem.answer}, as {', '.join([*before, last])}.",
        )
    )
    return problem.prompt, answer


def _asked_code(dice: Dice) -> tuple[str, str]:
    while (task := _code_task(dice, SHOWN_CODE)).maps:
        pass
    question = dice.pick((task.prompt, f"Write {task.signature[4:-1]} to return {task.english}."))
    answer = dice.pick(
        (task.definition, f"```python\n{task.definition}\n```", f"return {task.expression}")
    )
    return question, answer


def _asked_general(dice: Dice) -> tuple[str, str]:
    task = general.task(dice.pick(ASKED_FAMILIES), dice, benchmark=False)
    return task.turns[0], dice.pick((task.answer.partition("\n####")[0], *task.rule["words"]))


def _document(kind: str, dice: Dice) -> str:
    match kind:
        case "arithmetic":
            return _arithmetic(dice)
        case "story":
            problem = math.problem(dice, benchmark=False)
            return dice.pick((problem.story, problem.account))
        case "file":
            return _file(dice)
        case "snippets":
            return "\n\n".join(_code_task(dice, SHOWN_CODE).snippet for _ in range(2))
        case "country":
            country = dice.pick(countries())
            facts = [dice.pick(statements(country, name)) for name in dice.sample(RELATIONS, 3)]
            return " ".join(facts)
        case "words":
            drawn = [dice.pick((families.kind, families.opposite))(dice) for _ in range(4)]
            return "\n".join(dice.pick(task.statements) for task in drawn)
        case "patterns":
            return "\n".join(dice.pick(_pattern(dice).statements) for _ in range(2))
        case "echo":
            words = dice.sample(ECHO_WORDS, dice.integer(4, 12))
            echo = f"Once: {' '.join(words)}. Again: {' '.join(words)}."
            return dice.pick((echo, f"{echo}\n#### {words[-1]}"))
        case "diary":
            return _diary(dice)
        case "asked":
            return _asked(dice)
        case "retelling":
            drawn = [_knowledge_or_pattern(dice) for _ in range(dice.integer(1, 3))]
            again = dice.sample(drawn, dice.integer(1, len(drawn)))
            return "\n".join(dice.pick(task.statements) for task in [*drawn, *again])
    raise ValueError(f"unknown kind of document {kind!r}.")


def documents(seed: int) -> Iterator[str]:
    """Yield an endless stream of documents."""
    dice = Dice("pretraining", seed)
    kinds = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
    while True:
        yield _document(dice.pick(kinds), dice)
