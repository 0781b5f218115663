"""The table of cards in docs/cost.md is what its script writes."""

import cards
import pytest
from hub_cache import HubCache
from tiny_lab import CONFIGS


def test_every_base_of_the_shipped_configs_is_in_the_table() -> None:
    shipped = {path.parent.name for path in CONFIGS.glob("*/model.yaml")} - {"world"}
    assert shipped - set(cards.BASES) == {"paper_exact"}  # all weights in float32, on many cards
    page = cards.PAGE.read_text(encoding="utf-8").partition(cards.TITLE)[2]
    assert all(f"| `{folder}` |" in page for folder in cards.BASES)


@pytest.mark.extended
def test_a_row_is_what_the_plan_says(hub_cache: HubCache) -> None:
    cards.add_long_rows(hub_cache)
    page = cards.PAGE.read_text(encoding="utf-8")
    assert cards.row(hub_cache, "gemma3_1b") in page
