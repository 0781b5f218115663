"""Let sources overlap, as real ones do: a little maths and code in each other and in chats."""

from typing import Any

from sft_lab.world import code, math
from sft_lab.world.dice import Dice

Row = dict[str, Any]

# source -> what else it holds, and in one row of how many
OVERLAPS = {"math": {"code": 50}, "code": {"math": 50}, "general": {"math": 24, "code": 24}}
DIFFICULTIES = (1, 2)


def chat_math(dice: Dice) -> Row:
    """Return a row that asks for maths in a chat's words."""
    problem = math.problem(dice, DIFFICULTIES, benchmark=False)
    asked = dice.pick(("Can you help me? {}", "My friend asks: {}", "{} Please work it out."))
    question, answer = problem.messages
    return {
        "messages": [question | {"content": asked.format(question["content"])}, answer],
        "structure": problem.structure,
    }


def chat_code(dice: Dice) -> Row:
    """Return a row that asks for code in a chat's words."""
    task = code.task(dice, lambda drawn: drawn.difficulty in DIFFICULTIES, benchmark=False)
    asked = dice.pick(
        (
            f"Finish my function, which returns {task.english}:\n{task.signature}\n",
            f"I need {task.english}. How does this go on?\n{task.signature}\n",
        )
    )
    question, answer = task.messages
    return {"messages": [question | {"content": asked}, answer], "structure": task.structure}


CHATS = {"math": chat_math, "code": chat_code}


def overlapping(source: str, rows: list[Row], seed: int) -> list[Row]:
    """Return a source's rows, some of which are replaced by maths or code in a chat's words."""
    mixed, seen = list(rows), set[str]()
    for offset, (other, one_in) in enumerate(OVERLAPS[source].items()):
        dice = Dice(f"overlap/{source}/{other}", seed)
        for place in range(7 + offset * one_in // 2, len(rows), one_in):
            while str(row := CHATS[other](dice)) in seen:
                pass
            seen.add(str(row))
            mixed[place] = row
    return mixed
