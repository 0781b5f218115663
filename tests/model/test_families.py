"""The page of families is what its script writes, here for six of them."""

from pathlib import Path

import families
import pytest
from tiny_families import tiny_model

from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora
from sft_lab.model.coverage import coverage


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


def test_rwkv_in_4_bits_is_refused_before_it_loads(tmp_path: Path) -> None:
    # Its weights are divided for evaluation, and multiplied for training, in place.
    tiny_model("rwkv").config.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"rwkv rescales its weights .*, got nf4; set it to"):
        coverage(str(tmp_path), "nf4", Lora())
    assert coverage(str(tmp_path), "fp32", Lora()).adapted
