"""Generate the ``math`` source and benchmark: word problems about one person's things.

A plot is a start, perhaps some events, and an ending. Each adds sentences to the problem and
equations to the worked answer. The plot, without names and numbers, is the structure; its number of
equations is the difficulty.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from operator import add, floordiv, mul, sub
from typing import Any

from sft_lab.world.dice import Dice, held_out
from sft_lab.world.lexicon import NAMES, THINGS

MAX_VALUE = 40
HELD_OUT_ONE_IN = 2
MAX_ITEMS_OF_A_STRUCTURE = {1: 2, 2: 2}  # by difficulty: few structures are easy; else one
MAX_DRAWS = 1000
# Difficulties of source and benchmark, in the proportions in which they are drawn.
ASKED = (1, 2, 2, 3, 3, 3, 4, 4)

# part -> number of equations it adds
STARTS = {"own": 0, "gifts": 1, "bags": 1, "share": 1, "more": 1, "fewer": 1}
EVENTS = {"gain": 1, "lose": 1, "buy": 2, "double": 1, "triple": 1, "half": 1}
ENDINGS = {"count": 0, "price": 1, "boxes": 1, "need": 1}


@dataclass(frozen=True)
class Part:
    """Hold one part of a plot in words, its equations, and the number of things after it."""

    text: str
    equations: tuple[str, ...]
    value: int


@dataclass(frozen=True)
class Problem:
    """Hold a plot in words; the last of ``parts`` is the ending, whose value is asked for."""

    structure: str
    parts: tuple[Part, ...]
    question: str

    @property
    def answer(self) -> str:
        """Return the final number."""
        return str(self.parts[-1].value)

    @property
    def equations(self) -> list[str]:
        """Return the equations that lead to the answer, in order."""
        return [equation for part in self.parts for equation in part.equations]

    @property
    def prompt(self) -> str:
        """Return the problem as a user states it."""
        return " ".join([part.text for part in self.parts if part.text] + [self.question])

    @property
    def solution(self) -> str:
        """Return the worked answer, which ends in ``#### N``."""
        return " ".join(f"{equation}." for equation in self.equations) + f"\n#### {self.answer}"

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the problem and its solution as a conversation."""
        return [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.solution},
        ]

    @property
    def story(self) -> str:
        """Return the plot with a running total and no question, for pretraining."""
        pieces = []
        for part in self.parts:
            pieces += [part.text, *(f"So {equation}." for equation in part.equations)]
        return " ".join(piece for piece in pieces if piece)

    @property
    def account(self) -> str:
        """Return the plot with all sums at its end and no question, for pretraining."""
        sums = [f"So {equation}." for equation in self.equations]
        return " ".join([*(part.text for part in self.parts if part.text), *sums])


def _sum(left: int, sign: str, right: int) -> tuple[str, int]:
    operators = {"+": add, "-": sub, "*": mul, "/": floordiv}
    value: int = operators[sign](left, right)
    return f"{left}{sign}{right}={value}", value


def _start(part: str, dice: Dice, who: str, friend: str, things: str) -> Part:
    a, b = dice.integer(2, 20), dice.integer(2, 20)
    if part == "own":
        text = dice.pick((f"{who} has {a} {things}.", f"{who} owns {a} {things}."))
        return Part(text, (), a)
    if part == "gifts":
        text = f"{who} gets {a} {things} from {friend} and {b} from a friend."
        equation, value = _sum(a, "+", b)
    elif part == "bags":
        a, b = dice.integer(2, 6), dice.integer(2, 9)
        text = dice.pick(
            (f"{who} has {a} bags with {b} {things} each.", f"{who} has {a} bags of {b} {things}.")
        )
        equation, value = _sum(a, "*", b)
    elif part == "share":
        a = dice.integer(2, 4)
        total = a * dice.integer(2, MAX_VALUE // a)
        text = f"{who} is one of {a} children who share {total} {things} equally."
        equation, value = _sum(total, "/", a)
    elif part == "more":
        text = f"{friend} has {a} {things}. {who} has {b} more than {friend}."
        equation, value = _sum(a, "+", b)
    else:
        text = f"{friend} has {a + b} {things}. {who} has {b} fewer than {friend}."
        equation, value = _sum(a + b, "-", b)
    return Part(text, (equation,), value)


def _event(part: str, dice: Dice, who: str, friend: str, value: int) -> Part:
    a = dice.integer(2, 15)
    if part == "gain":
        text = dice.pick((f"{who} finds {a} more.", f"{friend} gives {who} {a} more."))
        equation, value = _sum(value, "+", a)
    elif part == "lose":
        text = dice.pick((f"{who} loses {a}.", f"{who} gives {a} to {friend}."))
        equation, value = _sum(value, "-", a)
    elif part in ("double", "triple"):
        text = f"{friend} {part}s what {who} has."
        equation, value = _sum(value, "*", 2 if part == "double" else 3)
    elif part == "half":
        if value % 2:
            return Part("", (), 0)
        text = dice.pick((f"{who} gives half to {friend}.", f"{who} loses half of them."))
        equation, value = _sum(value, "/", 2)
    else:
        a, b = dice.integer(2, 4), dice.integer(2, 6)
        text = f"{who} buys {a} bags of {b}."
        product, bought = _sum(a, "*", b)
        equation, value = _sum(value, "+", bought)
        return Part(text, (product, equation), value)
    return Part(text, (equation,), value)


def _ending(part: str, dice: Dice, who: str, things: str, value: int) -> tuple[Part, str]:
    if part == "count":
        return Part("", (), value), f"How many {things} does {who} have now?"
    a = dice.integer(2, 5)
    if part == "price":
        equation, worth = _sum(value, "*", a)
        text = f"{who} sells the {things} for {a} dollars each."
        return Part(text, (equation,), worth), f"How many dollars does {who} get?"
    if part == "need":
        wanted = value + dice.integer(2, 15)
        equation, missing = _sum(wanted, "-", value)
        text = f"{who} wants {wanted} {things}."
        return Part(text, (equation,), missing), f"How many more does {who} need?"
    if value % a:
        return Part("", (), 0), ""
    equation, share = _sum(value, "/", a)
    text = f"{who} puts the {things} in {a} equal boxes."
    return Part(text, (equation,), share), "How many are in each box?"


def _plot(dice: Dice, difficulty: int) -> tuple[str, list[str], str]:
    while True:
        start, ending = dice.pick(tuple(STARTS)), dice.pick(tuple(ENDINGS))
        events = [dice.pick(tuple(EVENTS)) for _ in range(dice.integer(0, 3))]
        count = STARTS[start] + sum(EVENTS[event] for event in events) + ENDINGS[ending]
        if count == difficulty:
            return start, events, ending


def problem(dice: Dice, difficulties: Collection[int] = ASKED, *, benchmark: bool) -> Problem:
    """Draw a problem whose structure is on the requested side of the held-out split."""
    while True:
        start, events, ending = _plot(dice, dice.pick(tuple(difficulties)))
        structure = f"math/{start}/{'-'.join(events)}/{ending}"
        if held_out(structure, HELD_OUT_ONE_IN) != benchmark:
            continue
        who, friend = dice.sample(NAMES, 2)
        things = dice.pick(THINGS)
        # Redraw the numbers, not the plot, until all are in range: hard plots stay as likely. A
        # few plots have no such numbers.
        for _ in range(MAX_DRAWS):
            parts = [_start(start, dice, who, friend, things)]
            for event in events:
                parts.append(_event(event, dice, who, friend, parts[-1].value))
            last, question = _ending(ending, dice, who, things, parts[-1].value)
            parts.append(last)
            if all(1 <= part.value <= MAX_VALUE for part in parts):
                return Problem(structure, tuple(parts), question)


def rows(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different training rows."""
    problems: dict[str, Problem] = {}
    dice = Dice("math/rows", seed)
    while len(problems) < size:
        drawn = problem(dice, benchmark=False)
        problems.setdefault(drawn.prompt, drawn)
    return [
        {"messages": drawn.messages, "structure": drawn.structure} for drawn in problems.values()
    ]


def items(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different benchmark items of held-out structures."""
    problems: dict[str, Problem] = {}
    of_structure: Counter[str] = Counter()
    dice = Dice("math/items", seed)
    while len(problems) < size:
        drawn = problem(dice, benchmark=True)
        most = MAX_ITEMS_OF_A_STRUCTURE.get(len(drawn.equations), 1)
        if drawn.prompt not in problems and of_structure[drawn.structure] < most:
            problems[drawn.prompt] = drawn
            of_structure[drawn.structure] += 1
    return [
        {
            "id": f"world_math/{index}",
            "structure": drawn.structure,
            "difficulty": len(drawn.equations),
            "messages": drawn.messages[:1],
            "answer": drawn.answer,
            "solution": drawn.solution,
        }
        for index, drawn in enumerate(problems.values())
    ]
