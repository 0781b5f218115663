"""Checks a run's whole config as ``fit`` does, and makes nothing of it."""

import json
from typing import Any, ClassVar

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from sft_lab.callbacks.run_checkpoint import RunCheckpoint
from sft_lab.errors import RequestError
from sft_lab.launch.parser import explain
from sft_lab.launch.run import LabCLI
from sft_lab.model.qlora import Lora
from sft_lab.training.module import check_trainable


class CheckCLI(LabCLI):
    """Parses and checks a run's config as far as it can be on a machine that does not train it.

    Its parser is made once: a study checks many configs. ``composed`` is the config as it is
    written, ``plain`` with its defaults.

    Args:
        arguments: What stands behind ``fit``.

    Raises:
        RequestError: If ``fit`` would refuse the config.
    """

    _fit_parser: ClassVar[LightningArgumentParser | None] = None

    def __init__(self, arguments: list[str]) -> None:
        super().__init__("fit", arguments)

    @override
    def setup_parser(self, *args: Any) -> None:
        if CheckCLI._fit_parser is None:
            super().setup_parser(*args)
            CheckCLI._fit_parser = self._parser("fit")
        self.parser = CheckCLI._fit_parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if rest := args[3:]:  # behind fit --config CONTENT
            raise RequestError(f"fit knows no {rest[0]}.")
        try:
            parsed = parser.parse_object(self.composed.resolved())
        except ArgumentError as fault:
            raise RequestError(explain(str(fault), self.composed)) from fault
        self.config = Namespace(subcommand="fit", fit=parsed)

    @override
    def _set_seed(self) -> None:
        """Leave the random state of this process alone."""

    @override
    def before_instantiate_classes(self) -> None:
        # Twenty times as fast as YAML, with the same values.
        options = {"skip_link_targets": False, "skip_unset": False, "skip_validation": True}
        dumped = self.parser.dump(self.settings, format="json_compact", **options)
        self.plain = json.loads(dumped)
        self.check_settings()
        model, lora = self.plain["model"], self.plain["model"]["lora"]
        check_trainable(model["quantization"], lora, self.plain["evaluation"]["engine"])
        if lora is not None:
            Lora(**lora)
        RunCheckpoint(**self.plain["checkpoint"])

    @override
    def instantiate_classes(self) -> None:
        """Make nothing."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""
