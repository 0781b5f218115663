"""Selection items and report items: what chooses between models never sees what is reported."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from sft_lab.data.hash_rank import hash_rank
from sft_lab.errors import RequestError
from sft_lab.evaluation.item import Item, Part

Side = Literal["selection", "report"]


def selection_items(items: Sequence[Item], fraction: float) -> frozenset[str]:
    """Return the groups of the selection items: about this fraction of all items.

    Clusters are ordered by a hash of their names and taken whole, so the sides share no cluster.
    The choice depends on nothing but the names and sizes of clusters, so runs compare.

    Args:
        items: All items of a benchmark's file.
        fraction: Selection items as a part of all items, in (0, 1).

    >>> items = [Item(str(n), (), {}, cluster=str(n // 2)) for n in range(8)]
    >>> sorted(selection_items(items, 0.5))
    ['4', '5', '6', '7']
    """
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item.cluster_id, []).append(item.group_id)
    clusters = list(groups)
    chosen: list[str] = []
    for index in hash_rank(clusters, seed=0):
        found = groups[clusters[index]]
        if len(chosen) + len(found) / 2 > fraction * len(items):
            break
        chosen += found
    return frozenset(chosen)


class Split:
    """The sides of one benchmark's items.

    Args:
        name: The benchmark, for errors.
        items: The items that are measured.
        chosen: Groups of the selection items; None without a split.
        fraction: The asked part of selection items; None without a split.

    Raises:
        RequestError: If one side has no items.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[Item],
        chosen: Collection[str] | None,
        fraction: float | None,
    ) -> None:
        self.fraction = fraction
        self._chosen = chosen
        self.indices: Mapping[Side, list[int]] = {
            "selection": [n for n, item in enumerate(items) if self.part(item) == "selection"],
            "report": [n for n, item in enumerate(items) if self.part(item) != "selection"],
        }
        self._ids = [items[index].id for index in self.indices["selection"]]
        if chosen is not None and not all(self.indices.values()):
            clusters = len({item.cluster_id for item in items})
            raise RequestError(
                f"evaluation.split: {fraction:g} leaves one side of benchmark {name!r} without "
                f"items: it measures {len(items)} in {clusters} clusters. Measure more, or set "
                "evaluation.split to null."
            )

    def part(self, item: Item) -> Part:
        """Return the part that an item, or a turn of it, belongs to."""
        if self._chosen is None:
            return "all"
        return "selection" if item.group_id in self._chosen else "report"

    @property
    def reported(self) -> Part:
        """The part that reported scores are measured on."""
        return "all" if self._chosen is None else "report"

    def record(self) -> dict[str, Any] | None:
        """Return the split as it is recorded: it decides which scores compare."""
        if self._chosen is None:
            return None
        return {
            "fraction": self.fraction,
            "selection": len(self.indices["selection"]),
            "report": len(self.indices["report"]),
            "digest": hashlib.sha256(json.dumps(self._ids).encode()).hexdigest(),
        }
