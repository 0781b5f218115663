"""What is measured inside a run: the benchmarks, how often, and on which weights."""

from collections.abc import Mapping
from typing import Literal

from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark


class EvaluationSuite:
    """The benchmarks of a run and how they are measured.

    Args:
        benchmarks: Benchmarks by name; the name begins their metric keys.
        every_n_steps: Optimizer steps between evaluations; besides these there is one before the
            first step and one at every stage boundary.
        batch_size: Prompts generated at a time.
        weights: ``live`` generates with the weights as they are trained; ``merged`` with an
            unquantised copy of base and adapters, made once an evaluation: the same function up to
            rounding, several times faster for a small model, for the memory of the copy.

    Raises:
        RequestError: If a number is out of range or a name cannot begin a metric key.
    """

    def __init__(
        self,
        benchmarks: dict[str, Benchmark],
        every_n_steps: int | None = None,
        batch_size: int = 64,
        weights: Literal["live", "merged"] = "live",
    ) -> None:
        for name in benchmarks:
            if not name.isidentifier():
                raise RequestError(
                    f"evaluation.benchmarks: {name!r} begins metric keys; "
                    "use letters, digits and _."
                )
        if every_n_steps is not None and every_n_steps < 1:
            raise RequestError(f"evaluation.every_n_steps must be 1 or more, got {every_n_steps}.")
        if batch_size < 1:
            raise RequestError(f"evaluation.batch_size must be 1 or more, got {batch_size}.")
        self.benchmarks: Mapping[str, Benchmark] = benchmarks
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.weights = weights

    @property
    def score_keys(self) -> dict[str, str]:
        """The metric key of every benchmark's score, by benchmark."""
        return {
            name: f"{name}/{benchmark.score_name}" for name, benchmark in self.benchmarks.items()
        }

    def is_due(self, step: int, boundaries: list[int]) -> bool:
        """Say whether an evaluation belongs before optimizer step ``step``, or behind the last one.

        Args:
            step: Optimizer steps taken.
            boundaries: Optimizer steps at which stages end.
        """
        between = self.every_n_steps is not None and step % self.every_n_steps == 0
        return step == 0 or step in boundaries or between
