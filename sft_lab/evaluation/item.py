"""Items, answers and their verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["selection", "report", "all"]
"""The items that a number comes from: selection and report items, or all where nothing is split."""


@dataclass(frozen=True)
class Item:
    """One problem, or one turn of a conversation.

    Attributes:
        id: Unique within the benchmark.
        messages: A conversation that ends with the user's turn.
        row: The row of the file.
        text: A text to continue verbatim, without a chat template, instead of messages.
        group: The problem that a turn belongs to; scores and paired tests count the answers of one
            group as one item. Empty if the item is not part of another one.
        cluster: Problems that are not independent of each other, such as those of one structure;
            intervals and tests take them together. Empty if the problem is its own cluster.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    row: Mapping[str, Any]
    text: str | None = None
    group: str = ""
    cluster: str = ""

    @property
    def group_id(self) -> str:
        """The group, or the item's own id."""
        return self.group or self.id

    @property
    def cluster_id(self) -> str:
        """The cluster, or the group."""
        return self.cluster or self.group_id


Mark = bool | float | tuple[bool, ...]
"""A value that a grader gives a completion; a tuple if an item has several parts."""


@dataclass(frozen=True)
class Verdict:
    """One graded completion.

    Attributes:
        marks: The grader's values by name; None if the completion could not be graded.
        reason: The answer read from the completion, or why it failed.
    """

    marks: Mapping[str, Mark] | None
    reason: str

    def mark(self, name: str) -> float | None:
        """Return a mark as a number; an item of several parts is right if all of them are.

        >>> Verdict({"strict": (True, False)}, "").mark("strict")
        0.0
        """
        value = None if self.marks is None else self.marks.get(name)
        if value is None:
            return None
        return float(all(value) if isinstance(value, tuple) else value)


@dataclass(frozen=True)
class Answer:
    """One graded answer of an evaluation.

    Attributes:
        item: What was asked.
        completion: The text that was graded.
        verdict: The grade.
        reasoning: What the model wrote before it; see ``split_reasoning``.
        part: The part of the items that it belongs to.
    """

    item: Item
    completion: str
    verdict: Verdict
    reasoning: str = ""
    part: Part = "all"
