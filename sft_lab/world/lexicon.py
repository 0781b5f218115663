"""List the words that sources, benchmarks and pretraining text share."""

NAMES = ("Ben", "Mia", "Tom", "Ann", "Sam", "Eva", "Leo", "Zoe", "Max", "Ida", "Kim", "Jon")

THINGS = (
    "apples",
    "balls",
    "books",
    "cards",
    "coins",
    "cups",
    "eggs",
    "pens",
    "shells",
    "stamps",
    "stones",
    "toys",
)

# kind (plural) -> its members; no word belongs to two kinds
KINDS = {
    "animals": ("fox", "hen", "cow", "dog", "cat", "pig", "goat", "duck", "bear", "wolf"),
    "fruits": ("plum", "pear", "fig", "lemon", "peach", "grape", "melon", "mango"),
    "colours": ("red", "blue", "green", "black", "white", "pink", "grey", "brown"),
    "tools": ("saw", "axe", "hammer", "drill", "rake", "spade", "wrench", "knife"),
    "clothes": ("hat", "coat", "sock", "shoe", "glove", "scarf", "shirt", "belt"),
    "metals": ("iron", "gold", "silver", "copper", "tin", "lead", "zinc", "steel"),
}

OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("old", "young"),
    ("fast", "slow"),
    ("wet", "dry"),
    ("hard", "soft"),
    ("full", "empty"),
    ("rich", "poor"),
    ("loud", "quiet"),
    ("dark", "light"),
    ("long", "short"),
    ("high", "low"),
    ("open", "shut"),
    ("early", "late"),
    ("near", "far"),
    ("strong", "weak"),
)

NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
ORDINALS = ("first", "second", "third", "last")
SPOTS = ("market", "station", "harbour", "library", "park", "school", "bridge", "museum")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def kind_of(word: str) -> str:
    """Return the kind, in the plural, that a word belongs to.

    >>> kind_of("fox")
    'animals'
    """
    return next(kind for kind, members in KINDS.items() if word in members)
