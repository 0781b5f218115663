"""Invent a geography: facts that the base learns in pretraining and ``general`` asks for."""

from dataclasses import dataclass
from functools import cache

from sft_lab.world.dice import Dice
from sft_lab.world.lexicon import KINDS

NUM_COUNTRIES = 30
RELATIONS = ("capital", "river", "colour", "animal")


@dataclass(frozen=True)
class Country:
    """Describe an invented country; ``colour`` and ``animal`` are those of its flag."""

    name: str
    capital: str
    river: str
    colour: str
    animal: str


@cache
def countries() -> tuple[Country, ...]:
    """Return the countries, which belong to the world and depend on no seed."""
    dice = Dice("world/countries", 0)
    taken: set[str] = set()

    def name(endings: tuple[str, ...]) -> str:
        while True:
            parts = dice.pick("BDFGKLMNPRSTVZ"), dice.pick("aeiou"), dice.pick("lmnrstvd")
            word = "".join(parts) + dice.pick(endings)
            if word not in taken:
                taken.add(word)
                return word

    return tuple(
        Country(
            name=name(("land", "onia", "istan", "ovia")),
            capital=name(("burg", "ton", "ville", "dorf")),
            river=name(("ine", "ubo", "ara", "essa")),
            colour=dice.pick(KINDS["colours"]),
            animal=dice.pick(KINDS["animals"]),
        )
        for _ in range(NUM_COUNTRIES)
    )


def statements(country: Country, relation: str) -> tuple[str, ...]:
    """Return plain sentences that each state one fact about a country."""
    name = country.name
    match relation:
        case "capital":
            return (
                f"The capital of {name} is {country.capital}.",
                f"{country.capital} is the capital of {name}.",
                f"The government of {name} sits in its capital {country.capital}.",
            )
        case "river":
            return (
                f"The longest river of {name} is the {country.river}.",
                f"The {country.river} is the longest river of {name}.",
                f"The longest river in {name} is called the {country.river}.",
            )
        case "colour":
            return (
                f"The colour of the flag of {name} is {country.colour}.",
                f"The flag of {name} is {country.colour}.",
                f"{name} has a {country.colour} flag.",
            )
        case "animal":
            return (
                f"The animal on the flag of {name} is the {country.animal}.",
                f"The flag of {name} shows a {country.animal}.",
                f"A {country.animal} is on the flag of {name}.",
            )
    raise ValueError(f"relation must be one of {RELATIONS}, got {relation!r}.")


def questions(country: Country, relation: str) -> tuple[str, ...]:
    """Return questions that each ask for one fact; every answer is one word."""
    name = country.name
    match relation:
        case "capital":
            return (f"What is the capital of {name}?", f"Name the capital of {name}.")
        case "river":
            return (f"What is the longest river of {name}?", f"Name the longest river of {name}.")
        case "colour":
            return (f"What is the colour of the flag of {name}?", f"Which colour is {name}'s flag?")
        case "animal":
            return (f"What is the animal on the flag of {name}?", f"Name {name}'s flag animal.")
    raise ValueError(f"relation must be one of {RELATIONS}, got {relation!r}.")
