"""Draw tasks of the eleven families of instructions in ``general``.

Every family combines a few parts, such as the kind of word and how many; the combination is the
structure. A question is answered by a sentence and, as in ``math``, a final line ``#### X``; an
instruction by what was asked for. A task also has plain statements, which pretraining shows.
"""

from collections.abc import Callable, Mapping, Sequence
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
    """Describe an instruction.

    ``turns`` alternate user and assistant texts, the user's last; ``rule`` is that of
    ``WorldGeneral``.
    """

    structure: str
    difficulty: int
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


def _final(sentence: str, word: str, among: Sequence[str]) -> dict[str, Any]:
    """Return answer and rule of a question whose answer is one word."""
    rule = {"form": "final", "words": [word], "among": list(among)}
    return {"answer": f"{sentence}\n#### {word}", "rule": rule}


def _words(words: Sequence[str], among: Sequence[str]) -> dict[str, Any]:
    """Return answer and rule of an instruction whose answer is a row of words."""
    rule = {"form": "words", "words": list(words), "among": list(among)}
    return {"answer": " ".join(words), "rule": rule}


def fact(dice: Dice) -> Task:
    """Ask for a fact of the invented geography."""
    country, relation = dice.pick(countries()), dice.pick(RELATIONS)
    value = getattr(country, relation)
    values = sorted({getattr(other, relation) for other in countries()})
    return Task(
        structure=f"general/fact/{relation}/{country.name}",
        difficulty=1,
        turns=(dice.pick(questions(country, relation)),),
        **_final(f"The {relation} is {value}.", value, values),
        statements=statements(country, relation),
    )


def kind(dice: Dice) -> Task:
    """Ask what kind of thing a word names."""
    word = dice.pick(WORDS)
    kinds = kind_of(word)
    return Task(
        structure=f"general/kind/{word}",
        difficulty=1,
        turns=(dice.pick((f"What kind of word is {word}?", f"Which group is {word} in?")),),
        **_final(f"It is one of the {kinds}.", kinds, KIND_NAMES),
        statements=(f"The word {word} is one of the {kinds}.",),
    )


def opposite(dice: Dice) -> Task:
    """Ask for the opposite of an adjective."""
    pair = dice.pick(OPPOSITES)
    word, other = dice.sample(pair, 2)
    adjectives = [each for both in OPPOSITES for each in both if each != word]
    return Task(
        structure=f"general/opposite/{word}",
        difficulty=1,
        turns=(dice.pick((f"What is the opposite of {word}?", f"Give the opposite of {word}.")),),
        **_final(f"The opposite is {other}.", other, adjectives),
        statements=(f"The opposite of {word} is {other}.",),
    )


def listing(dice: Dice) -> Task:
    """Ask for a number of members of a kind, with dashes or numbers."""
    kinds, count = dice.pick(KIND_NAMES), dice.integer(2, 3)
    layout = dice.pick(("dashes", "numbers"))
    marks = ["-"] * count if layout == "dashes" else [f"{place}." for place in range(1, count + 1)]
    words = dice.sample(KINDS[kinds], count)
    answer = "\n".join(f"{mark} {word}" for mark, word in zip(marks, words, strict=True))
    verb = dice.pick(("List", "Name", "Give me"))
    return Task(
        structure=f"general/list/{layout}/{count}/{kinds}",
        difficulty=count - 1,
        turns=(f"{verb} {NUMBER_WORDS[count]} {kinds} with {layout}.",),
        answer=answer,
        rule={"form": layout, "count": count, "among": list(KINDS[kinds])},
        statements=(f"{NUMBER_WORDS[count].capitalize()} {kinds} with {layout}:\n{answer}",),
    )


def casing(dice: Dice) -> Task:
    """Ask for words in upper case or with capitals."""
    style, count, kinds = dice.pick(("upper", "capital")), dice.integer(1, 3), dice.pick(KIND_NAMES)
    given = " ".join(dice.sample(KINDS[kinds], count))
    written = given.upper() if style == "upper" else given.title()
    how = "in upper case" if style == "upper" else "with capitals"
    found = _words(written.split(), KINDS[kinds])
    found["rule"]["case"] = True
    return Task(
        structure=f"general/casing/{style}/{count}/{kinds}",
        difficulty=count,
        turns=(f"Write {given} {how}.",),
        **found,
        statements=(
            f"Writing {given} {how} gives {written}.",
            f"The words {given}.\n{how.capitalize()}: {written}",
        ),
    )


def order(dice: Dice) -> Task:
    """Ask for words in reverse order."""
    count, kinds = dice.integer(2, 4), dice.pick(KIND_NAMES)
    words = dice.sample(KINDS[kinds], count)
    text, turned = " ".join(words), " ".join(reversed(words))
    return Task(
        structure=f"general/order/{count}/{kinds}",
        difficulty=count - 1,
        turns=(dice.pick((f"Reverse the words {text}.", f"Turn round the words {text}.")),),
        **_words(words[::-1], KINDS[kinds]),
        statements=(
            f"The reverse of {text} is {turned}.",
            f"The words {text}.\nTurned round: {turned}",
        ),
    )


def repeat(dice: Dice) -> Task:
    """Ask for one or two words several times."""
    count, num_words, kinds = dice.integer(2, 4), dice.integer(1, 2), dice.pick(KIND_NAMES)
    words = dice.sample(KINDS[kinds], num_words)
    text, said = " ".join(words), " ".join(words * count)
    return Task(
        structure=f"general/repeat/{num_words}/{count}/{kinds}",
        difficulty=count + num_words - 2,
        turns=(f"{dice.pick(('Say', 'Repeat'))} {text} {NUMBER_WORDS[count]} times.",),
        **_words(words * count, KINDS[kinds]),
        statements=(
            f"Saying {text} {NUMBER_WORDS[count]} times is {said}.",
            f"Now {text}.\n{NUMBER_WORDS[count].capitalize()} times: {said}",
        ),
    )


def position(dice: Dice) -> Task:
    """Ask for the word at a place in a row of words."""
    ordinal, count, kinds = dice.pick(ORDINALS), dice.integer(3, 4), dice.pick(KIND_NAMES)
    words = dice.sample(KINDS[kinds], count)
    word = words[-1] if ordinal == "last" else words[ORDINALS.index(ordinal)]
    text = " ".join(words)
    return Task(
        structure=f"general/position/{ordinal}/{count}/{kinds}",
        difficulty=count - 1,
        turns=(f"What is the {ordinal} word of {text}?",),
        **_final(f"The {ordinal} word is {word}.", word, KINDS[kinds]),
        statements=(
            f"The {ordinal} word of {text} is {word}.",
            f"The words {text}.\nThe {ordinal} word is {word}.",
        ),
    )


def reading(dice: Dice) -> Task:
    """State who met whom, where and when, and ask for one of these."""
    one, two = dice.sample(NAMES, 2)
    spot, day = dice.pick(SPOTS), dice.pick(DAYS)
    asked, question, sentence, word, among = dice.pick(
        (
            ("who", f"Who met {two}?", f"It was {one}.", one, _without(NAMES, two)),
            ("whom", f"Whom did {one} meet?", f"It was {two}.", two, _without(NAMES, one)),
            ("where", f"Where did {one} meet {two}?", f"It was at the {spot}.", spot, SPOTS),
            ("when", f"When did {one} meet {two}?", f"It was on {day}.", day, DAYS),
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
        difficulty=2,
        turns=(f"{scene} {question}",),
        **_final(sentence, word, among),
        statements=(f"{scene} {retold[asked]}",),
    )


def memory(dice: Dice) -> Task:
    """State two things in the first turn and ask for one in a later turn."""
    kinds, name, spot = dice.pick(KIND_NAMES), dice.pick(NAMES), dice.pick(SPOTS)
    word = dice.pick(KINDS[kinds])
    subject = dice.pick(("I am", "My son is", "My boss is"))
    asked, remembered, among = dice.pick((("name", name, NAMES), ("word", word, KINDS[kinds])))
    introduction = f"{subject} called {name} and the word is {word}."
    between = dice.pick(("Please keep that in mind.", f"We talk at the {spot}."))
    return Task(
        structure=f"general/memory/{asked}/{subject.split()[-2].lower()}/{kinds}",
        difficulty=3,
        turns=(f"{introduction} {between}", "I will.", f"What is the {asked}?"),
        **_final(f"You said {remembered}.", remembered, among),
        statements=(
            f"{introduction} {between} The {asked} is {remembered}.",
            f"{introduction} {between}\nYou said the {asked} is {remembered}.",
        ),
    )


def record(dice: Dice) -> Task:
    """Ask for a record of two or three given fields, one per line."""
    fields = dice.sample(("name", "town", "day", "colour", "animal"), dice.integer(2, 3))
    choices = {
        "name": NAMES,
        "town": tuple(country.capital for country in countries()),
        "day": DAYS,
        "colour": KINDS["colours"],
        "animal": KINDS["animals"],
    }
    values = [dice.pick(choices[field]) for field in fields]
    pairs = list(zip(fields, values, strict=True))
    answer = "\n".join(f"{field}: {value}" for field, value in pairs)
    given = ", ".join(f"{field} {value}" for field, value in pairs)
    return Task(
        structure=f"general/record/{'/'.join(fields)}",
        difficulty=len(fields),
        turns=(f"Make a record of {given}.",),
        answer=answer,
        rule={
            "form": "record",
            "fields": fields,
            "words": values,
            "among": [word for field in fields for word in choices[field]],
        },
        statements=(f"A record of {given}:\n{answer}",),
    )


def _without(words: Sequence[str], word: str) -> list[str]:
    return [other for other in words if other != word]


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
