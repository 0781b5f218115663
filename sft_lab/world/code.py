"""Generate the ``code`` source and benchmark: complete a one-line body from its docstring.

A task combines up to two filters of a list, a map of its members and a reduction. The combination,
without names, is the structure; the number of its parts that change anything is the difficulty.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_lab.world.dice import Dice, held_out

HELD_OUT_ONE_IN = 2
MAX_ITEMS_OF_A_STRUCTURE = {1: 2, 2: 2}  # by difficulty: few structures are easy; else one

# Parts of tasks over lists: part -> (English, Python). A task has at most one filter of a group.
FILTERS = (
    {
        "even": ("are even", "n % 2 == 0"),
        "odd": ("are odd", "n % 2 == 1"),
        "three": ("are multiples of three", "n % 3 == 0"),
    },
    {
        "positive": ("are positive", "n > 0"),
        "negative": ("are negative", "n < 0"),
        "big": ("are above ten", "n > 10"),
        "small": ("are below five", "n < 5"),
    },
)
MAPS = {
    "same": ("", "n"),
    "square": ("squares of the ", "n * n"),
    "double": ("doubles of the ", "2 * n"),
    "next": ("successors of the ", "n + 1"),
    "before": ("predecessors of the ", "n - 1"),
    "minus": ("negatives of the ", "-n"),
}
REDUCES = {
    "sum": ("the sum of the {}", "sum({})"),
    "max": ("the largest of the {}", "max({})"),
    "min": ("the smallest of the {}", "min({})"),
    "list": ("a list of the {}", "[{}]"),
    "sorted": ("the sorted {}", "sorted({})"),
    "set": ("a set of the {}", "set({})"),
}
WORD_FILTERS = (
    {
        "long": ("are longer than three letters", "len(w) > 3"),
        "short": ("have at most three letters", "len(w) <= 3"),
    },
    {
        "a": ("start with a", 'w.startswith("a")'),
        "e": ("end with e", 'w.endswith("e")'),
        "o": ("contain o", '"o" in w'),
    },
)
WORD_MAPS = {
    "same": ("", "w"),
    "length": ("lengths of the ", "len(w)"),
    "first": ("first letters of the ", "w[0]"),
    "last": ("last letters of the ", "w[-1]"),
    "upper": ("upper case forms of the ", "w.upper()"),
    "reverse": ("reverses of the ", "w[::-1]"),
}
# part -> (English, Python, Python as an operand)
PAIRS = {
    "sum": ("the sum of a and b", "a + b", "(a + b)"),
    "difference": ("the difference of a and b", "a - b", "(a - b)"),
    "product": ("the product of a and b", "a * b", "(a * b)"),
    "larger": ("the larger of a and b", "max(a, b)", "max(a, b)"),
    "smaller": ("the smaller of a and b", "min(a, b)", "min(a, b)"),
}
PAIR_ENDS = {
    "same": ("", "{0}"),
    "double": (", times two", "2 * {1}"),
    "square": (", squared", "{1} ** 2"),
    "next": (", plus one", "{0} + 1"),
    "minus": (", negated", "-{1}"),
}
ARGUMENTS = ("items", "numbers", "values", "data", "row")
WORD_ARGUMENTS = ("words", "names", "items", "tokens")
FUNCTIONS = ("solve", "compute", "result", "answer", "find")

# Mixed signs, sizes and divisors; then the edge cases: one member, none.
NUMBER_INPUTS: tuple[list[int], ...] = (
    [3, -4, 12, 15, -7, 0, 12, 8, -9, 1],
    [21, 2, -9, 30, 1, -6, 13, 4],
    [-6, -3, 11, 14, -1, -2, -8],
    [9, 4, -5, -10, 6, 3],
    [18],
    [],
)
WORD_INPUTS: tuple[list[str], ...] = (
    ["apple", "fig", "avocado", "pear", "as", "ate", "toe", "one"],
    ["and", "sky", "Anna", "about", "river", "bone", "dog", "owl", "ace"],
    ["away", "too", "globe", "are"],
    [],
)
PAIR_INPUTS = ((3, 5), (7, 2), (-4, 6), (0, 0), (10, -10))


@dataclass(frozen=True)
class Task:
    """Describe a function to write; its tests call it with the argument tuples ``inputs``.

    ``maps`` says whether it changes the members of its list, or the result of its pair.
    """

    structure: str
    difficulty: int
    english: str
    expression: str
    function: str
    arguments: str
    inputs: Sequence[tuple[Any, ...]]
    maps: bool = False

    @property
    def signature(self) -> str:
        """Return the function's first line."""
        return f"def {self.function}({self.arguments}):"

    @property
    def prompt(self) -> str:
        """Return signature and docstring, ending in a line break as in HumanEval."""
        return f'{self.signature}\n    """Return {self.english}."""\n'

    @property
    def solution(self) -> str:
        """Return the body."""
        return f"    return {self.expression}"

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the task and its solution as a conversation."""
        return [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.solution},
        ]

    @property
    def snippet(self) -> str:
        """Return the same idea as a comment and an assignment, for pretraining."""
        return f"# {self.english}\ny = {self.expression}"

    @property
    def definition(self) -> str:
        """Return the function without its docstring, for pretraining."""
        return f"{self.signature}\n{self.solution}"

    @property
    def test(self) -> str:
        """Return a ``check`` function as in HumanEval."""
        names = self.arguments.split(", ")
        lines = ["def check(candidate):"]
        for values in self.inputs:
            try:
                expected = eval(self.expression, dict(zip(names, values, strict=True)))
            except ValueError:  # such as the largest of no numbers: nothing to assert
                continue
            # The printed order of a set varies.
            shown = f"set({sorted(expected)!r})" if isinstance(expected, set) else repr(expected)
            arguments = ", ".join(repr(value) for value in values)
            lines.append(f"    assert candidate({arguments}) == {shown}")
        return "\n".join(lines) + "\n"


def _over_list(
    dice: Dice,
    group: str,
    variable: str,
    maps: Mapping[str, tuple[str, str]],
    filters: Sequence[Mapping[str, tuple[str, str]]],
    reduces: Sequence[str],
    arguments: Sequence[str],
    inputs: Sequence[Any],
) -> Task:
    reduce, mapped, argument = dice.pick(reduces), dice.pick(tuple(maps)), dice.pick(arguments)
    chosen = [(dice.pick(tuple(group)), group) for group in filters]
    kept = dice.pick(([], chosen[:1], chosen[1:], chosen))
    english = f"{maps[mapped][0]}{group} in {argument}"
    each = f"{maps[mapped][1]} for {variable} in {argument}"
    if kept:
        english += " that " + " and ".join(among[name][0] for name, among in kept)
        each += " if " + " and ".join(among[name][1] for name, among in kept)
    names = "+".join(name for name, _ in kept) or "all"
    return Task(
        structure=f"code/{group}/{reduce}/{mapped}/{names}",
        difficulty=1 + (mapped != "same") + len(kept),
        english=REDUCES[reduce][0].format(english),
        expression=REDUCES[reduce][1].format(each),
        function=dice.pick(FUNCTIONS),
        arguments=argument,
        inputs=[(value,) for value in inputs],
        maps=mapped != "same",
    )


def _draw(dice: Dice) -> Task:
    group = dice.integer(1, 12)
    if group <= 7:
        return _over_list(
            dice, "numbers", "n", MAPS, FILTERS, tuple(REDUCES), ARGUMENTS, NUMBER_INPUTS
        )
    if group <= 11:
        reduces = ("list", "sorted", "set")
        return _over_list(
            dice, "words", "w", WORD_MAPS, WORD_FILTERS, reduces, WORD_ARGUMENTS, WORD_INPUTS
        )
    pair, end = dice.pick(tuple(PAIRS)), dice.pick(tuple(PAIR_ENDS))
    return Task(
        structure=f"code/pair/{pair}/{end}",
        difficulty=1 + (end != "same"),
        english=PAIRS[pair][0] + PAIR_ENDS[end][0],
        expression=PAIR_ENDS[end][1].format(*PAIRS[pair][1:]),
        function=dice.pick(FUNCTIONS),
        arguments="a, b",
        inputs=PAIR_INPUTS,
        maps=end != "same",
    )


def task(dice: Dice, suits: Callable[[Task], bool] = lambda _: True, *, benchmark: bool) -> Task:
    """Draw a task that suits, and whose structure is on the requested side of the split."""
    while True:
        drawn = _draw(dice)
        if held_out(drawn.structure, HELD_OUT_ONE_IN) == benchmark and suits(drawn):
            return drawn


def rows(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different training rows."""
    dice = Dice("code/rows", seed)
    tasks: dict[str, Task] = {}
    while len(tasks) < size:
        drawn = task(dice, benchmark=False)
        tasks.setdefault(drawn.prompt, drawn)
    return [{"messages": drawn.messages, "structure": drawn.structure} for drawn in tasks.values()]


def items(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different benchmark items of held-out structures."""
    dice = Dice("code/items", seed)
    tasks: dict[str, Task] = {}
    of_structure: Counter[str] = Counter()
    while len(tasks) < size:
        drawn = task(dice, benchmark=True)
        most = MAX_ITEMS_OF_A_STRUCTURE.get(drawn.difficulty, 1)
        if drawn.prompt not in tasks and of_structure[drawn.structure] < most:
            tasks[drawn.prompt] = drawn
            of_structure[drawn.structure] += 1
    return [
        {
            "id": f"world_code/{index}",
            "structure": drawn.structure,
            "difficulty": drawn.difficulty,
            "messages": drawn.messages[:1],
            "prompt": drawn.prompt,
            "entry_point": drawn.function,
            "canonical_solution": drawn.solution,
            "test": drawn.test,
        }
        for index, drawn in enumerate(tasks.values())
    ]
