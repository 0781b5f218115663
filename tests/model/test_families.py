"""The page of families is what its script writes, here for six of them."""

import families
import pytest


@pytest.mark.parametrize("family", families.SIX)
def test_a_family_is_as_the_page_says(family: str) -> None:
    written = families.PAGE.read_text(encoding="utf-8").splitlines()
    assert families.table_row(families.try_family(family)) in written


def test_the_page_has_every_family_() -> None:
    text = families.PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(lines) >= 40
    assert [line.split("`")[1] for line in lines] == sorted(families.FAMILIES)
    assert text.partition("Written by")[0] == families.page(lines).partition("Written by")[0]
