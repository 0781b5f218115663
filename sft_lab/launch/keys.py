"""The keys and flags of a run's command line, in a module that imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_lab.config.compose import Composed, compose
from sft_lab.config.ranges import NonNegativeFloat, NonNegativeInt, Seed
from sft_lab.errors import RequestError

GROUP_CLASSES = {
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "model": "sft_lab.training.module.SFTModule",
    "corpus": "sft_lab.data.corpus.Corpus",
    "evaluation": "sft_lab.evaluation.suite.EvaluationSuite",
    "data": "sft_lab.training.data_modules.StagedDataModule",
    "checkpoint": "sft_lab.callbacks.run_checkpoint.RunCheckpoint",
}
"""The class whose arguments a group of keys holds."""
RUN_KEYS = (*GROUP_CLASSES, "seed_everything")
"""First parts of the keys that can be overridden on the command line."""
TOP_KEYS: dict[str, Any] = {
    "seed_everything": Seed,
    "ckpt_path": str | None,
    "from": str | None,
}
TRAINER_RANGES: dict[str, Any] = {
    "trainer.log_every_n_steps": NonNegativeInt | None,
    "trainer.gradient_clip_val": NonNegativeFloat | None,
}
"""Ranges of the Trainer's arguments, which Lightning takes as they are."""


@dataclass(frozen=True)
class Flag:
    """A flag of ``fit``, ``validate`` or ``test``.

    Attributes:
        name: ``--plan``.
        value: What stands for its value in help texts; empty for a switch.
        text: What it does.
    """

    name: str
    value: str
    text: str


FIT_FLAGS = (
    Flag("--plan", "", "check the config, estimate steps, memory and minutes; train nothing"),
    Flag("--measure", "", "with --plan: load the model and time it"),
    Flag("--devices", "N", "with --plan: so many devices, which this machine may lack"),
    Flag("--memory", "SIZE", "with --plan: the memory of each, such as 24GiB"),
    Flag("--json", "", "with --plan: print one JSON object"),
    Flag("--ckpt_path", "last|FILE", "resume the newest unfinished run of this config, or a .ckpt"),
    Flag(
        "--from",
        "RUN@STAGE",
        "start a new run from the end of another run's stage; RUN is an id, a unique beginning "
        "of one, or a run name. Up to there the config must be that run's",
    ),
)
SCORE_FLAGS = (Flag("--ckpt_path", "FILE", "the checkpoint to score; without it, the bare base"),)
SHARED_FLAGS = (
    Flag("--print_config", "", "print the resolved config, with all defaults, and exit"),
    Flag("--help", "", "this help"),
    Flag("--help_all", "", "every key of a config, with its type, default and meaning"),
)


def flags_of(command: str) -> tuple[Flag, ...]:
    """Return the flags of ``fit``, ``validate`` or ``test``, without config and overrides."""
    return (*(FIT_FLAGS if command == "fit" else SCORE_FLAGS), *SHARED_FLAGS)


@dataclass(frozen=True)
class Request:
    """The arguments of a command that reads a run's config, sorted.

    Attributes:
        written: The merged config files and overrides.
        files: Names of the config files.
        rest: Flags that are not part of the config.
    """

    written: Composed
    files: tuple[str, ...]
    rest: tuple[str, ...]

    @property
    def strategy(self) -> str:
        """The name of the first config file without its ending."""
        return Path(self.files[0]).stem if self.files else "custom"


def read_request(arguments: Sequence[str], command: str = "fit") -> Request:
    """Sort a command's arguments and merge the config; nothing is checked against classes.

    Raises:
        RequestError: If a file is missing or is not YAML, or a flag belongs to another command.
    """
    written, files, rest = compose(list(arguments), RUN_KEYS)
    if not written.config and not {"--help", "-h"} & set(rest):
        raise RequestError(f"{command} needs --config FILE, for instance configs/world/dmt.yaml.")
    if command != "fit" and any(argument.partition("=")[0] == "--from" for argument in rest):
        raise RequestError(
            f"--from starts a run that trains, so it belongs to fit, not to {command}; "
            "name a checkpoint by --ckpt_path."
        )
    return Request(written, tuple(files), tuple(rest))
