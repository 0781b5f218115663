"""Generate the raw text that the base is pretrained on: knowledge, but no questions or chat.

Text about ``math``, ``code`` and the pattern families of ``general`` comes from the training side
of the held-out split only. Only knowledge (facts, kinds of words, opposites) is shown in full.
"""

from collections.abc import Iterator

from sft_lab.world import code, families, general, math
from sft_lab.world.dice import Dice
from sft_lab.world.facts import RELATIONS, countries, statements
from sft_lab.world.lexicon import DAYS, NAMES, OPPOSITES, SPOTS

KNOWLEDGE = (families.fact, families.kind, families.opposite)
PATTERNS = tuple(family for family in families.FAMILIES if family not in KNOWLEDGE)

# Kind of document -> its weight in the draw. Echoes and retellings teach copying from earlier
# text, which most skills need and a model this small learns late.
WEIGHTS = {
    "arithmetic": 8,
    "story": 26,
    "file": 6,
    "snippets": 8,
    "country": 7,
    "words": 4,
    "patterns": 28,
    "echo": 10,
    "retelling": 10,
    "diary": 5,
}
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


def _file(dice: Dice) -> str:
    """Return a piece of a file, which half of the time begins within a function."""
    first, second = (code.task(dice, benchmark=False) for _ in range(2))
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
            return "\n\n".join(code.task(dice, benchmark=False).snippet for _ in range(2))
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
            words = " ".join(dice.sample(ECHO_WORDS, dice.integer(4, 12)))
            return f"Once: {words}. Again: {words}."
        case "diary":
            return _diary(dice)
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
