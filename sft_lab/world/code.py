"""Generate the ``code`` source and benchmark: complete a one-line body from its docstring.

A task combines a filter of a list, a map of its members and a reduction. The combination, without
names, is the structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_lab.world.dice import Dice, held_out

HELD_OUT_ONE_IN = 6

# Parts of tasks over lists: part -> (English, Python).
FILTERS = {
    "all": ("numbers", ""),
    "even": ("even numbers", " if n % 2 == 0"),
    "odd": ("odd numbers", " if n % 2 == 1"),
    "positive": ("positive numbers", " if n > 0"),
    "negative": ("negative numbers", " if n < 0"),
    "big": ("numbers above ten", " if n > 10"),
    "three": ("multiples of three", " if n % 3 == 0"),
}
MAPS = {
    "same": ("", "n"),
    "square": ("squares of the ", "n * n"),
    "double": ("doubles of the ", "2 * n"),
    "next": ("successors of the ", "n + 1"),
    "abs": ("absolute values of the ", "abs(n)"),
    "minus": ("negatives of the ", "-n"),
}
REDUCES = {
    "sum": ("the sum of the {}", "sum({})"),
    "max": ("the largest of the {}", "max({})"),
    "min": ("the smallest of the {}", "min({})"),
    "list": ("a list of the {}", "[{}]"),
    "sorted": ("the {} in increasing order", "sorted({})"),
    "set": ("a set of the {}", "set({})"),
}
WORD_FILTERS = {
    "all": ("words", ""),
    "long": ("words longer than three letters", " if len(w) > 3"),
    "short": ("words of at most three letters", " if len(w) <= 3"),
    "a": ("words that start with a", ' if w.startswith("a")'),
}
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

# Positive, negative, even, odd, repeated, zero; then the edge cases: one member, none.
NUMBER_INPUTS: tuple[list[int], ...] = (
    [3, -4, 12, 15, -7, 0, 12, 8],
    [21, 2, -9, 30, 1],
    [-6, -3, 11, 14],
    [18],
    [],
)
WORD_INPUTS: tuple[list[str], ...] = (
    ["apple", "fig", "avocado", "pear", "as"],
    ["and", "sky", "Anna", "about", "river"],
    ["away"],
    [],
)
PAIR_INPUTS = ((3, 5), (7, 2), (-4, 6), (0, 0), (10, -10))


@dataclass(frozen=True)
class Task:
    """Describe a function to write; its tests call it with the argument tuples ``inputs``."""

    structure: str
    english: str
    expression: str
    function: str
    arguments: str
    inputs: Sequence[tuple[Any, ...]]

    @property
    def prompt(self) -> str:
        """Return signature and docstring, ending in a line break as in HumanEval."""
        return f'def {self.function}({self.arguments}):\n    """Return {self.english}."""\n'

    @property
    def solution(self) -> str:
        """Return the body."""
        return f"    return {self.expression}"

    @property
    def snippet(self) -> str:
        """Return the same idea as a comment and an assignment, for pretraining."""
        return f"# {self.english}\ny = {self.expression}"

    @property
    def definition(self) -> str:
        """Return the function without its docstring, for pretraining."""
        return f"def {self.function}({self.arguments}):\n{self.solution}"

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
    filters: Mapping[str, tuple[str, str]],
    reduces: Sequence[str],
    arguments: Sequence[str],
    inputs: Sequence[Any],
) -> Task:
    reduce, mapped, kept = (
        dice.pick(reduces),
        dice.pick(tuple(maps)),
        dice.pick(tuple(filters)),
    )
    argument = dice.pick(arguments)
    each = f"{maps[mapped][1]} for {variable} in {argument}{filters[kept][1]}"
    english = REDUCES[reduce][0].format(maps[mapped][0] + filters[kept][0] + " in " + argument)
    return Task(
        structure=f"code/{group}/{reduce}/{mapped}/{kept}",
        english=english,
        expression=REDUCES[reduce][1].format(each),
        function=dice.pick(FUNCTIONS),
        arguments=argument,
        inputs=[(value,) for value in inputs],
    )


def _draw(dice: Dice) -> Task:
    group = dice.integer(1, 10)
    if group <= 6:
        return _over_list(
            dice, "numbers", "n", MAPS, FILTERS, tuple(REDUCES), ARGUMENTS, NUMBER_INPUTS
        )
    if group <= 8:
        reduces = ("list", "sorted", "set")
        return _over_list(
            dice, "words", "w", WORD_MAPS, WORD_FILTERS, reduces, WORD_ARGUMENTS, WORD_INPUTS
        )
    pair, end = dice.pick(tuple(PAIRS)), dice.pick(tuple(PAIR_ENDS))
    return Task(
        structure=f"code/pair/{pair}/{end}",
        english=PAIRS[pair][0] + PAIR_ENDS[end][0],
        expression=PAIR_ENDS[end][1].format(*PAIRS[pair][1:]),
        function=dice.pick(FUNCTIONS),
        arguments="a, b",
        inputs=PAIR_INPUTS,
    )


def task(dice: Dice, *, benchmark: bool) -> Task:
    """Draw a task whose structure is on the requested side of the held-out split."""
    while True:
        drawn = _draw(dice)
        if held_out(drawn.structure, HELD_OUT_ONE_IN) == benchmark:
            return drawn


def _different(size: int, seed: int, *, benchmark: bool) -> list[Task]:
    dice = Dice("code/items" if benchmark else "code/rows", seed)
    tasks: dict[str, Task] = {}
    while len(tasks) < size:
        drawn = task(dice, benchmark=benchmark)
        tasks.setdefault(drawn.prompt, drawn)
    return list(tasks.values())


def rows(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different training rows, of about 5,000 in all."""
    return [
        {
            "messages": [
                {"role": "user", "content": drawn.prompt},
                {"role": "assistant", "content": drawn.solution},
            ],
            "structure": drawn.structure,
        }
        for drawn in _different(size, seed, benchmark=False)
    ]


def items(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different benchmark items of held-out structures."""
    return [
        {
            "id": f"world_code/{index}",
            "structure": drawn.structure,
            "messages": [{"role": "user", "content": drawn.prompt}],
            "prompt": drawn.prompt,
            "entry_point": drawn.function,
            "canonical_solution": drawn.solution,
            "test": drawn.test,
        }
        for index, drawn in enumerate(_different(size, seed, benchmark=True))
    ]
