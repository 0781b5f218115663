"""Generate the ``math`` source and benchmark: word problems about one person's things.

A plot is a start, one to three events and an ending. Each adds sentences to the problem and
equations to the worked answer. The plot, without names and numbers, is the structure.
"""

from dataclasses import dataclass
from typing import Any

from sft_lab.world.dice import Dice, held_out
from sft_lab.world.lexicon import NAMES, THINGS

MAX_VALUE = 40
MIN_EQUATIONS, MAX_EQUATIONS = 2, 4
# Stories that the base reads may be longer than those that source and benchmark ask about.
MAX_ASKED_EQUATIONS = 3
HELD_OUT_ONE_IN = 8

# part -> number of equations it adds
STARTS = {"own": 0, "gifts": 1, "bags": 1, "share": 1, "more": 1}
EVENTS = {"gain": 1, "lose": 1, "buy": 2, "double": 1, "half": 1}
ENDINGS = {"count": 0, "price": 1, "boxes": 1}


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
    def prompt(self) -> str:
        """Return the problem as a user states it."""
        return " ".join([part.text for part in self.parts if part.text] + [self.question])

    @property
    def solution(self) -> str:
        """Return the worked answer, which ends in ``#### N``."""
        equations = [equation for part in self.parts for equation in part.equations]
        first, *rest = equations
        steps = [f"First {first}.", *(f"Then {equation}." for equation in rest)]
        return " ".join(steps) + f"\n#### {self.answer}"

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
        sums = [f"So {equation}." for part in self.parts for equation in part.equations]
        return " ".join([*(part.text for part in self.parts if part.text), *sums])


def _sum(left: int, sign: str, right: int) -> tuple[str, int]:
    value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
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
    else:
        text = f"{friend} has {a} {things}. {who} has {b} more than {friend}."
        equation, value = _sum(a, "+", b)
    return Part(text, (equation,), value)


def _event(part: str, dice: Dice, who: str, friend: str, value: int) -> Part:
    a = dice.integer(2, 15)
    if part == "gain":
        text = dice.pick((f"{who} finds {a} more.", f"{friend} gives {who} {a} more."))
        equation, value = _sum(value, "+", a)
    elif part == "lose":
        text = dice.pick((f"{who} loses {a}.", f"{who} gives {a} to {friend}."))
        equation, value = _sum(value, "-", a)
    elif part == "double":
        text = f"{friend} doubles what {who} has."
        equation, value = _sum(value, "*", 2)
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
    if value % a:
        return Part("", (), 0), ""
    equation, share = _sum(value, "/", a)
    text = f"{who} puts the {things} in {a} equal boxes."
    return Part(text, (equation,), share), "How many are in each box?"


def _plot(dice: Dice) -> tuple[str, list[str], str]:
    while True:
        start, ending = dice.pick(tuple(STARTS)), dice.pick(tuple(ENDINGS))
        events = [dice.pick(tuple(EVENTS)) for _ in range(dice.pick((1, 1, 2, 2, 3)))]
        count = STARTS[start] + sum(EVENTS[event] for event in events) + ENDINGS[ending]
        if MIN_EQUATIONS <= count <= MAX_EQUATIONS:
            return start, events, ending


def problem(dice: Dice, *, benchmark: bool) -> Problem:
    """Draw a problem whose structure is on the requested side of the held-out split."""
    while True:
        start, events, ending = _plot(dice)
        structure = f"math/{start}/{'-'.join(events)}/{ending}"
        if held_out(structure, HELD_OUT_ONE_IN) != benchmark:
            continue
        who, friend = dice.sample(NAMES, 2)
        things = dice.pick(THINGS)
        # Redraw the numbers, not the plot, until all are in range: hard plots stay as likely.
        while True:
            parts = [_start(start, dice, who, friend, things)]
            for event in events:
                parts.append(_event(event, dice, who, friend, parts[-1].value))
            last, question = _ending(ending, dice, who, things, parts[-1].value)
            parts.append(last)
            if all(1 <= part.value <= MAX_VALUE for part in parts):
                return Problem(structure, tuple(parts), question)


def _asked(dice: Dice, *, benchmark: bool) -> Problem:
    while True:
        drawn = problem(dice, benchmark=benchmark)
        if sum(len(part.equations) for part in drawn.parts) <= MAX_ASKED_EQUATIONS:
            return drawn


def rows(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different training rows."""
    problems: dict[str, Problem] = {}
    dice = Dice("math/rows", seed)
    while len(problems) < size:
        drawn = _asked(dice, benchmark=False)
        problems.setdefault(drawn.prompt, drawn)
    return [
        {
            "messages": [
                {"role": "user", "content": drawn.prompt},
                {"role": "assistant", "content": drawn.solution},
            ],
            "structure": drawn.structure,
        }
        for drawn in problems.values()
    ]


def items(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different benchmark items of held-out structures."""
    problems: dict[str, Problem] = {}
    dice = Dice("math/items", seed)
    while len(problems) < size:
        drawn = _asked(dice, benchmark=True)
        problems.setdefault(drawn.prompt, drawn)
    return [
        {
            "id": f"world_math/{index}",
            "structure": drawn.structure,
            "messages": [{"role": "user", "content": drawn.prompt}],
            "answer": drawn.answer,
        }
        for index, drawn in enumerate(problems.values())
    ]
