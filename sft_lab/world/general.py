"""Generate the ``general`` source and benchmark: instructions of eleven families."""

from collections import Counter
from typing import Any

from sft_lab.world.dice import Dice, held_out
from sft_lab.world.families import FAMILIES, Family, Task

HELD_OUT_ONE_IN = 2
MAX_ITEMS_OF_A_STRUCTURE = 2
MAX_DRAWS = 50  # a family with nothing new after this many draws is exhausted, and skipped

Rows = list[dict[str, Any]]


def task(family: Family, dice: Dice, *, benchmark: bool) -> Task:
    """Draw a family's task whose structure is on the requested side of the held-out split."""
    while True:
        drawn = family(dice)
        if held_out(drawn.structure, HELD_OUT_ONE_IN) == benchmark:
            return drawn


def _different(size: int, seed: int, *, benchmark: bool) -> list[Task]:
    dice = Dice("general/items" if benchmark else "general/rows", seed)
    tasks: dict[tuple[str, ...], Task] = {}
    of_structure: Counter[str] = Counter()
    while len(tasks) < size:
        for family in FAMILIES:
            for attempt in range(MAX_DRAWS):
                drawn = task(family, dice, benchmark=benchmark)
                # A source may hold two lists of fruits; a benchmark never repeats a question.
                key = drawn.turns if benchmark else (*drawn.turns, drawn.answer)
                # A structure comes again only when a new one is hard to find.
                most = 1 if attempt < MAX_DRAWS // 2 else MAX_ITEMS_OF_A_STRUCTURE
                full = benchmark and of_structure[drawn.structure] >= most
                if key not in tasks and not full:
                    tasks[key] = drawn
                    of_structure[drawn.structure] += 1
                    break
    return list(tasks.values())[:size]


def rows(size: int, seed: int) -> Rows:
    """Return ``size`` different training rows, cycling through the families."""
    return [
        {
            "messages": [*drawn.messages, {"role": "assistant", "content": drawn.answer}],
            "structure": drawn.structure,
        }
        for drawn in _different(size, seed, benchmark=False)
    ]


def items(size: int, seed: int) -> Rows:
    """Return ``size`` different items of held-out structures, cycling through the families."""
    return [
        {
            "id": f"world_general/{index}",
            "structure": drawn.structure,
            "difficulty": drawn.difficulty,
            "family": drawn.family,
            "messages": drawn.messages,
            "answer": drawn.answer,
            "rule": dict(drawn.rule),
        }
        for index, drawn in enumerate(_different(size, seed, benchmark=True))
    ]
