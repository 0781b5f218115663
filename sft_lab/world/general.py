"""The ``general`` source and benchmark: twelve families of instructions, scored by rule.

Every family draws a task from a few parts, such as the kind of word and how many; the combination
is the structure. A task also has plain statements, which are what pretraining may show of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sft_lab.world.dice import Dice, held_out
from sft_lab.world.facts import RELATIONS, countries, questions, statements
from sft_lab.world.lexicon import (
    DAYS,
    KINDS,
    NAMES,
    NUMBER_WORDS,
    OPPOSITES,
    ORDINALS,
    SPOTS,
    kind_of,
)

HELD_OUT_ONE_IN = 5
KIND_NAMES = tuple(KINDS)
WORDS = tuple(word for members in KINDS.values() for word in members)


@dataclass(frozen=True)
class Task:
    """An instruction; ``turns`` are user and assistant texts by turns, the last one a user's."""

    structure: str
    turns: tuple[str, ...]
    answer: str
    rule: Mapping[str, Any]
    statements: tuple[str, ...]

    @property
    def family(self) -> str:
        """The family's name, the second part of the structure."""
        return self.structure.split("/")[1]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the answer."""
        return [
            {"role": ("user", "assistant")[index % 2], "content": text}
            for index, text in enumerate(self.turns)
        ]


Family = Callable[[Dice], Task]


def _exact(text: str) -> dict[str, Any]:
    return {"kind": "exact", "text": text}


def _titled(title: str, answer: str) -> tuple[str, str]:
    return f"{title}: {answer}", f"{title}:\n{answer}"


def fact(dice: Dice) -> Task:
    """Ask for a fact of the invented geography."""
    country, relation = dice.pick(countries()), dice.pick(RELATIONS)
    answer = getattr(country, relation)
    return Task(
        structure=f"general/fact/{relation}/{country.name}",
        turns=(dice.pick(questions(country, relation)),),
        answer=answer,
        rule=_exact(answer),
        statements=statements(country, relation),
    )


def kind(dice: Dice) -> Task:
    """Ask what kind of thing a word names."""
    word = dice.pick(WORDS)
    kinds = kind_of(word)
    return Task(
        structure=f"general/kind/{word}",
        turns=(dice.pick((f"Which group is {word} in?", f"Name the group of {word}.")),),
        answer=kinds,
        rule=_exact(kinds),
        statements=(f"The word {word} is in the group {kinds}.", f"Group of {word}:\n{kinds}"),
    )


def opposite(dice: Dice) -> Task:
    """Ask for the opposite of an adjective."""
    pair = dice.pick(OPPOSITES)
    word, answer = dice.sample(pair, 2)
    return Task(
        structure=f"general/opposite/{word}",
        turns=(dice.pick((f"What is the opposite of {word}?", f"Give the opposite of {word}.")),),
        answer=answer,
        rule=_exact(answer),
        statements=(f"The opposite of {word} is {answer}.", f"Opposite of {word}:\n{answer}"),
    )


def listing(dice: Dice) -> Task:
    """Ask for a number of members of a kind, in one line or as bullets."""
    kinds, count = dice.pick(KIND_NAMES), dice.integer(2, 4)
    layout = dice.pick(("commas", "bullets"))
    chosen = dice.sample(KINDS[kinds], count)
    request = f"{dice.pick(('List', 'Name', 'Give me'))} {NUMBER_WORDS[count]} {kinds}"
    if layout == "commas":
        answer, request = ", ".join(chosen), f"{request}."
    else:
        answer, request = "\n".join(f"- {word}" for word in chosen), f"{request} with dashes."
    return Task(
        structure=f"general/list/{layout}/{count}/{kinds}",
        turns=(request,),
        answer=answer,
        rule={"kind": "list", "layout": layout, "count": count, "of": list(KINDS[kinds])},
        statements=(f"{NUMBER_WORDS[count].capitalize()} {kinds}:\n{answer}",),
    )


def casing(dice: Dice) -> Task:
    """Ask for words in upper case or with capitals."""
    style, count, kinds = dice.pick(("upper", "capital")), dice.integer(1, 3), dice.pick(KIND_NAMES)
    words = " ".join(dice.sample(KINDS[kinds], count))
    answer = words.upper() if style == "upper" else words.title()
    how = "in upper case" if style == "upper" else "with capitals"
    return Task(
        structure=f"general/casing/{style}/{count}/{kinds}",
        turns=(f"Write {how}: {words}",),
        answer=answer,
        rule=_exact(answer),
        statements=_titled(f"{words} {how}", answer),
    )


def order(dice: Dice) -> Task:
    """Ask for a list in reverse order."""
    count, kinds = dice.integer(2, 4), dice.pick(KIND_NAMES)
    words = dice.sample(KINDS[kinds], count)
    text, answer = " ".join(words), " ".join(reversed(words))
    return Task(
        structure=f"general/order/{count}/{kinds}",
        turns=(f"Reverse the order: {text}",),
        answer=answer,
        rule=_exact(answer),
        statements=_titled(f"{text} in reverse order", answer),
    )


def repeat(dice: Dice) -> Task:
    """Ask for a word several times."""
    count, kinds = dice.integer(2, 4), dice.pick(KIND_NAMES)
    word = dice.pick(KINDS[kinds])
    answer = " ".join([word] * count)
    return Task(
        structure=f"general/repeat/{count}/{kinds}",
        turns=(f"Write {word} {NUMBER_WORDS[count]} times.",),
        answer=answer,
        rule=_exact(answer),
        statements=_titled(f"{word} {NUMBER_WORDS[count]} times", answer),
    )


def position(dice: Dice) -> Task:
    """Ask for the word at a place in a list."""
    ordinal, count, kinds = dice.pick(ORDINALS), dice.integer(3, 4), dice.pick(KIND_NAMES)
    words = dice.sample(KINDS[kinds], count)
    answer = words[-1] if ordinal == "last" else words[ORDINALS.index(ordinal)]
    text = " ".join(words)
    return Task(
        structure=f"general/position/{ordinal}/{count}/{kinds}",
        turns=(f"What is the {ordinal} word of: {text}",),
        answer=answer,
        rule=_exact(answer),
        statements=_titled(f"The {ordinal} word of {text}", answer),
    )


def odd_one_out(dice: Dice) -> Task:
    """Ask which of three words is of another kind."""
    common, other = dice.sample(KIND_NAMES, 2)
    answer = dice.pick(KINDS[other])
    text = ", ".join(dice.sample([*dice.sample(KINDS[common], 2), answer], 3))
    return Task(
        structure=f"general/odd_one_out/{common}/{other}",
        turns=(f"Which is the odd one out: {text}?",),
        answer=answer,
        rule=_exact(answer),
        statements=_titled(f"The odd one out of {text}", answer),
    )


def reading(dice: Dice) -> Task:
    """Tell who met whom, where and when, and ask for one of these."""
    one, two = dice.sample(NAMES, 2)
    spot, day = dice.pick(SPOTS), dice.pick(DAYS)
    asked, question, label, answer = dice.pick(
        (
            ("who", f"Who met {two}?", f"The one who met {two}", one),
            ("whom", f"Whom did {one} meet?", f"The one whom {one} met", two),
            ("where", f"Where did {one} meet {two}?", "The place", spot),
            ("when", f"When did {one} meet {two}?", "The day", day),
        )
    )
    scene = f"{one} met {two} at the {spot} on {day}."
    return Task(
        structure=f"general/reading/{asked}/{spot}",
        turns=(f"{scene} {question}",),
        answer=answer,
        rule=_exact(answer),
        statements=(
            f"{scene} {one} was at the {spot} with {two} on {day}.",
            f"{scene}\nWho: {one}\nWhom: {two}\nWhere: {spot}\nWhen: {day}",
            f"{scene} {label}:\n{answer}",
        ),
    )


def memory(dice: Dice) -> Task:
    """Tell something in the first turn and ask for it in a later one."""
    subject, kinds = dice.pick(("I", "my son", "my boss")), dice.pick(KIND_NAMES)
    word, name = dice.pick(KINDS[kinds]), dice.pick(NAMES)
    whose, called = ("I", "am called") if subject == "I" else (subject.capitalize(), "is called")
    told = f"{whose} {called} {name} and my word is {word}."
    asked = dice.pick(("name", "word"))
    who = {"I": "my name", "my son": "my son's name", "my boss": "my boss's name"}[subject]
    question = f"What is {who}?" if asked == "name" else "What is my word?"
    answer = name if asked == "name" else word
    return Task(
        structure=f"general/memory/{asked}/{subject.replace(' ', '_')}/{kinds}",
        turns=(told, "OK.", question),
        answer=answer,
        rule=_exact(answer),
        statements=(
            f"{told} So the name is {name} and the word is {word}.",
            f"{told} OK. The {asked}:\n{answer}",
        ),
    )


def record(dice: Dice) -> Task:
    """Ask for a JSON object with given fields."""
    first, second = dice.sample(("name", "age", "day", "colour", "animal"), 2)
    values: dict[str, Any] = {}
    for field in (first, second):
        values[field] = {
            "name": dice.pick(NAMES),
            "age": dice.integer(1, 99),
            "day": dice.pick(DAYS),
            "colour": dice.pick(KINDS["colours"]),
            "animal": dice.pick(KINDS["animals"]),
        }[field]
    answer = json.dumps(values)
    told = f"{first} {values[first]} and {second} {values[second]}"
    return Task(
        structure=f"general/record/{first}/{second}",
        turns=(f"Write as JSON: {told}",),
        answer=answer,
        rule={"kind": "json", "value": values},
        statements=_titled(f"{told} as JSON", answer),
    )


FAMILIES: tuple[Family, ...] = (
    fact,
    kind,
    opposite,
    listing,
    casing,
    order,
    repeat,
    position,
    odd_one_out,
    reading,
    memory,
    record,
)


def task(family: Family, dice: Dice, *, benchmark: bool) -> Task:
    """Draw a task of a family whose structure is on the asked side of the held-out split."""
    while True:
        drawn = family(dice)
        if held_out(drawn.structure, HELD_OUT_ONE_IN) == benchmark:
            return drawn


MAX_DRAWS = 50  # a family that shows nothing new in so many draws is used up, and passed over


def _different(size: int, seed: int, *, benchmark: bool) -> list[Task]:
    dice = Dice("general/items" if benchmark else "general/rows", seed)
    tasks: dict[tuple[str, ...], Task] = {}
    while len(tasks) < size:
        for family in FAMILIES:
            for _ in range(MAX_DRAWS):
                drawn = task(family, dice, benchmark=benchmark)
                # A source may hold two lists of fruits; a benchmark asks everything once.
                key = drawn.turns if benchmark else (*drawn.turns, drawn.answer)
                if key not in tasks:
                    tasks[key] = drawn
                    break
    return list(tasks.values())[:size]


def rows(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different training rows, the families by turns."""
    return [
        {
            "messages": [*drawn.messages, {"role": "assistant", "content": drawn.answer}],
            "structure": drawn.structure,
        }
        for drawn in _different(size, seed, benchmark=False)
    ]


def items(size: int, seed: int) -> list[dict[str, Any]]:
    """Return ``size`` different benchmark items of held-out structures, the families by turns."""
    return [
        {
            "id": f"world_general/{index}",
            "structure": drawn.structure,
            "family": drawn.family,
            "messages": drawn.messages,
            "rule": dict(drawn.rule),
        }
        for index, drawn in enumerate(_different(size, seed, benchmark=True))
    ]
