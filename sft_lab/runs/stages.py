"""The stages of recorded runs, named ``RUN[@STAGE]``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.errors import RequestError
from sft_lab.runs.store import RunStore

BASE_STAGE = "base"
"""The name of a run's base in place of a stage."""


@dataclass(frozen=True)
class EndedStage:
    """A stage of a run, whose trained weights are among the run's artifacts.

    Attributes:
        run_id: The run.
        run_name: Its name.
        stage: The stage, or ``base`` for the model before training.
        config: The run's resolved config.
    """

    run_id: str
    run_name: str
    stage: str
    config: Mapping[str, Any]

    @property
    def label(self) -> str:
        """``RUN@STAGE`` for people."""
        return f"{self.run_name}@{self.stage}"


def find_stage(store: RunStore, text: str) -> EndedStage:
    """Return the stage that ``RUN[@STAGE]`` names; by default the last that has ended.

    Args:
        store: Where the run is recorded.
        text: RUN is an id, the beginning of one, or a run name; STAGE a stage of it, or ``base``.

    Raises:
        RequestError: If there is no such run, or the stage has not ended.
    """
    name, _, stage = text.rpartition("@") if "@" in text else (text, "", "")
    run = store.find(name)
    run_id, run_name = run.info.run_id, str(run.info.run_name)
    named = f"{text}: run {run_id[:8]} ({run_name})"
    if (command := run.data.tags.get("command")) != "fit":
        raise RequestError(f"{named} is one of `{command}`, which trains no stage; name a fit.")
    config = store.config(run_id)
    ended = {Path(file.path).name for file in store.client.list_artifacts(run_id, "stages")}
    known = [stage for stage in config["data"]["stages"] if stage in ended]
    if not stage and not known:
        raise RequestError(
            f"{named} has not reached the end of a stage; resume it (--ckpt_path last), or name "
            f"{name}@{BASE_STAGE}."
        )
    stage = stage or known[-1]
    if stage not in (*known, BASE_STAGE):
        raise RequestError(
            f"{named} has no stage {stage!r}; it has {', '.join([BASE_STAGE, *known])}."
        )
    return EndedStage(run_id, run_name, stage, config)
