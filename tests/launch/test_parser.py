"""Parse configs without building anything from them."""

import pytest

from sft_lab.launch.parser import parse, parse_recorded
from sft_lab.training.shares import Share

DMT = "--config=configs/world/dmt.yaml"


@pytest.mark.parametrize(
    ("k", "name"),
    [("1/16", "dmt k=1/16 seed 3"), ("{rows: 6}", "dmt k=6 rows seed 3")],
)
def test_a_run_is_named_after_strategy_k_and_seed(k: str, name: str) -> None:
    assert parse([DMT, f"--data.k={k}", "--seed_everything=3"]).run_name == name


def test_values_are_typed_resolved_and_have_their_origin() -> None:
    config = parse([DMT, "--data.k=1/4"])
    share = config.values.data.stages["generalize"].mixture["math"]
    assert isinstance(share, Share)
    assert (str(share), config.plain["data"]["stages"]["generalize"]["mixture"]["math"]) == (
        "1/4",
        "1/4",
    )
    assert config.origin("data.k") == "--data.k: "
    assert config.origin("data.stages.specialize.lr").endswith("configs/world/dmt.yaml, line 12: ")


def test_a_recorded_config_is_parsed_to_the_same_values() -> None:
    config = parse([DMT, "--data.k={rows: 6}", "--model.lora.r=8"])
    again = parse_recorded(config.plain)
    assert again.plain == config.plain
    assert again.model_settings == config.model_settings
