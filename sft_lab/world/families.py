"""Draw tasks of the eleven families of instructions in ``general``.

Every family combines a few parts, such as the kind of word and how many; the combination is the
structure. A task also has plain statements, the only part of it that pretraining may show.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sft_lab.world.dice import Dice
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

KIND_NAMES = tuple(KINDS)
WORDS = tuple(word for members in KINDS.values() for word in members)


@dataclass(frozen=True)
class Task:
    """Describe an instruction; ``turns`` alternate user and assistant texts, the user's last."""

    structure: str
    turns: tuple[str, ...]
    answer: str
    rule: Mapping[str, Any]
    statements: tuple[str, ...]

    @property
    def family(self) -> str:
        """Return the family's name, the second part of the structure."""
        return self.structure.split("/")[1]

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the conversation up to the answer."""
        return [
            {"role": ("user", "assistant")[index % 2], "content": text}
            for index, text in enumerate(self.turns)
        ]


Family = Callable[[Dice], Task]


def _exact(text: str) -> dict[str, Any]:
    return {"kind": "exact", "text": text}


def fact(dice: Dice) -> Task:
    """Ask for a fact of the invented geography."""
    country, relation = dice.pick(countries()), dice.pick(RELATIONS)
    answer = f"The {relation} is {getattr(country, relation)}."
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
    answer = f"It is one of the {kinds}."
    return Task(
        structure=f"general/kind/{word}",
        turns=(dice.pick((f"What kind of word is {word}?", f"Which group is {word} in?")),),
        answer=answer,
        rule=_exact(answer),
        statements=(f"The word {word} is one of the {kinds}.",),
    )


def opposite(dice: Dice) -> Task:
    """Ask for the opposite of an adjective."""
    pair = dice.pick(OPPOSITES)
    word, other = dice.sample(pair, 2)
    answer = f"The opposite is {other}."
    return Task(
        structure=f"general/opposite/{word}",
        turns=(dice.pick((f"What is the opposite of {word}?", f"Give the opposite of {word}.")),),
        answer=answer,
        rule=_exact(answer),
        statements=(f"The opposite of {word} is {other}.",),
    )


def listing(dice: Dice) -> Task:
    """Ask for a number of members of a kind, with dashes or numbers."""
    kinds, count = dice.pick(KIND_NAMES), dice.integer(2, 4)
    layout = dice.pick(("dashes", "numbers"))
    marks = ["-"] * count if layout == "dashes" else [f"{place}." for place in range(1, count + 1)]
    words = dice.sample(KINDS[kinds], count)
    answer = "\n".join(f"{mark} {word}" for mark, word in zip(marks, words, strict=True))
    verb = dice.pick(("List", "Name", "Give me"))
    return Task(
        structure=f"general/list/{layout}/{count}/{kinds}",
        turns=(f"{verb} {NUMBER_WORDS[count]} {kinds} with {layout}.",),
        answer=answer,
        rule={"kind": "list", "layout": layout, "count": count, "of": list(KINDS[kinds])},
        statements=(f"{NUMBER_WORDS[count].capitalize()} {kinds} with {layout}:\n{answer}",),
    )


def casing(dice: Dice) -> Task:
    """Ask for words in upper case or with capitals."""
    style, count, kinds = dice.pick(("upper", "capital")), dice.integer(1, 3), dice.pick(KIND_NAMES)
    words = " ".join(dice.sample(KINDS[kinds], count))
    written = words.upper() if style == "upper" else words.title()
    how = "in upper case" if style == "upper" else "with capitals"
    answer = f"{how.capitalize()}: {written}"
    return Task(
        structure=f"general/casing/{style}/{count}/{kinds}",
        turns=(f"Write {words} {how}.",),
        answer=answer,
        rule=_exact(answer),
        statements=(
            f"Writing {words} {how} gives {written}.",
            f"The words {words}.\n{answer}",
        ),
    )


def order(dice: Dice) -> Task:
    """Ask for words in reverse order."""
    count, kinds = dice.integer(2, 4), dice.pick(KIND_NAMES)
    words = dice.sample(KINDS[kinds], count)
    text, turned = " ".join(words), " ".join(reversed(words))
    answer = f"Turned round: {turned}"
    return Task(
        structure=f"general/order/{count}/{kinds}",
        turns=(dice.pick((f"Reverse the words {text}.", f"Turn round the words {text}.")),),
        answer=answer,
        rule=_exact(answer),
        statements=(f"The reverse of {text} is {turned}.", f"The words {text}.\n{answer}"),
    )


def repeat(dice: Dice) -> Task:
    """Ask for a word several times."""
    count, kinds = dice.integer(2, 4), dice.pick(KIND_NAMES)
    word = dice.pick(KINDS[kinds])
    said = " ".join([word] * count)
    answer = f"{NUMBER_WORDS[count].capitalize()} times: {said}"
    return Task(
        structure=f"general/repeat/{count}/{kinds}",
        turns=(f"{dice.pick(('Say', 'Repeat'))} {word} {NUMBER_WORDS[count]} times.",),
        answer=answer,
        rule=_exact(answer),
        statements=(
            f"Saying {word} {NUMBER_WORDS[count]} times is {said}.",
            f"The word {word}.\n{answer}",
        ),
    )


def position(dice: Dice) -> Task:
    """Ask for the word at a place in a row of words."""
    ordinal, count, kinds = dice.pick(ORDINALS), dice.integer(3, 4), dice.pick(KIND_NAMES)
    words = dice.sample(KINDS[kinds], count)
    word = words[-1] if ordinal == "last" else words[ORDINALS.index(ordinal)]
    text, answer = " ".join(words), f"The {ordinal} word is {word}."
    return Task(
        structure=f"general/position/{ordinal}/{count}/{kinds}",
        turns=(f"What is the {ordinal} word of {text}?",),
        answer=answer,
        rule=_exact(answer),
        statements=(
            f"The {ordinal} word of {text} is {word}.",
            f"The words {text}.\n{answer}",
        ),
    )


def reading(dice: Dice) -> Task:
    """State who met whom, where and when, and ask for one of these."""
    one, two = dice.sample(NAMES, 2)
    spot, day = dice.pick(SPOTS), dice.pick(DAYS)
    asked, question, answer = dice.pick(
        (
            ("who", f"Who met {two}?", f"It was {one}."),
            ("whom", f"Whom did {one} meet?", f"It was {two}."),
            ("where", f"Where did {one} meet {two}?", f"It was at the {spot}."),
            ("when", f"When did {one} meet {two}?", f"It was on {day}."),
        )
    )
    scene = f"On {day} {one} met {two} at the {spot}."
    retold = {
        "who": f"The one who met {two} was {one}.",
        "whom": f"The one whom {one} met was {two}.",
        "where": f"The place where {one} met {two} was the {spot}.",
        "when": f"The day when {one} met {two} was {day}.",
    }
    return Task(
        structure=f"general/reading/{asked}/{spot}",
        turns=(f"{scene} {question}",),
        answer=answer,
        rule=_exact(answer),
        statements=(f"{scene} {retold[asked]}",),
    )


def memory(dice: Dice) -> Task:
    """State two things in the first turn and ask for one in a later turn."""
    kinds, name, spot = dice.pick(KIND_NAMES), dice.pick(NAMES), dice.pick(SPOTS)
    word = dice.pick(KINDS[kinds])
    subject = dice.pick(("I am", "My son is", "My boss is"))
    asked, remembered = dice.pick((("name", name), ("word", word)))
    introduction = f"{subject} called {name} and the word is {word}."
    between = dice.pick(("Please keep that in mind.", f"We talk at the {spot}."))
    answer = f"You said {remembered}."
    return Task(
        structure=f"general/memory/{asked}/{subject.split()[-2].lower()}/{kinds}",
        turns=(f"{introduction} {between}", "I will.", f"What is the {asked}?"),
        answer=answer,
        rule=_exact(answer),
        statements=(
            f"{introduction} {between} The {asked} is {remembered}.",
            f"{introduction} {between}\nYou said the {asked} is {remembered}.",
        ),
    )


def record(dice: Dice) -> Task:
    """Ask for a record with two given fields, one per line."""
    first, second = dice.sample(("name", "town", "day", "colour", "animal"), 2)
    values = {
        "name": dice.pick(NAMES),
        "town": dice.pick(countries()).capital,
        "day": dice.pick(DAYS),
        "colour": dice.pick(KINDS["colours"]),
        "animal": dice.pick(KINDS["animals"]),
    }
    answer = f"{first}: {values[first]}\n{second}: {values[second]}"
    fields = f"{first} {values[first]} and {second} {values[second]}"
    return Task(
        structure=f"general/record/{first}/{second}",
        turns=(f"Make a record of {fields}.",),
        answer=answer,
        rule=_exact(answer),
        statements=(f"A record of {fields}:\n{answer}",),
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
    reading,
    memory,
    record,
)
