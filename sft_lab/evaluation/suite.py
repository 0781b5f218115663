"""The evaluation settings of a run: its benchmarks, how often, and with which weights."""

import re
from collections.abc import Mapping

from sft_lab.config.ranges import OpenUnitInterval, PositiveInt
from sft_lab.data.rendering import Renderer
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Benchmark
from sft_lab.evaluation.budget import budget_share
from sft_lab.evaluation.generation import (
    GREEDY,
    Decoding,
    Engine,
    EngineName,
    TokenPair,
    VllmServer,
    make_engine,
)
from sft_lab.evaluation.prompts import Prompts
from sft_lab.evaluation.reasoning import check_reasoning, template_reasons
from sft_lab.evaluation.references import reference_pairs
from sft_lab.evaluation.split import Side, Split, selection_items
from sft_lab.model.unquantized import EvaluationWeights
from sft_lab.terminal import percent

RESERVED_NAMES = {
    *("ability", "average", "forgetting", "retention", "backward_transfer", "change_from_base"),
    *("form", "form_forgetting", "answer_loss", "train_loss", "val_loss", "kl_base"),
    *("selection", "guard_limit", "guard_share", "lr", "progress", "speed", "time"),
}
"""First parts of the metric keys that are not a benchmark's."""


class EvaluationSuite:
    """The benchmarks of a run and the settings to measure them with.

    Args:
        benchmarks: Benchmarks by name; the name begins their metric keys.
        every_n_steps: Optimizer steps between evaluations; in addition, a run is evaluated before
            the first step and at every stage boundary.
        batch_size: Maximum number of answers generated at a time.
        batch_tokens: Maximum number of tokens in a batch, including padding and room for answers;
            with many long prompts, batches become smaller. Unlimited by default.
        weights: ``live`` generates with the weights as trained; ``dequantized`` dequantises the
            4-bit layers once per evaluation and keeps the adapters separate as in training: the
            same arithmetic without its slowest part, at the cost of holding those layers in the
            compute dtype; ``merged`` uses an unquantised copy of base and adapters: the same
            function up to rounding, fastest, at the cost of holding the copy.
        engine: ``native``; ``transformers_continuous``, which needs CUDA; or ``vllm``, a server
            that answers with its own base and the adapters of the run.
        vllm: The server for ``vllm``; port 8000 on this machine by default.
        decoding: Decoding settings by benchmark; greedy by default.
        drafts: Whether ``native`` tries an item's previous answer as a draft: one pass verifies the
            whole draft instead of generating token by token, and the answer is the same up to
            rounding. Greedy answers only; the previous answers are part of the checkpoint.
        budget: Share of a run's time that evaluations may take, ``10%`` or ``0.1``: evaluations
            between stage boundaries then use a fixed part of the items, whose size is chosen from
            the run's speed when the first of them is due.
        cut_reasoning: Whether answers are graded without the reasoning before them, up to the last
            ``</think>``; an answer whose reasoning never ends is then wrong. By default, whether
            the chat template mentions ``</think>``.
        primary: By source, the score that represents its ability, such as ``{math:
            gsm8k/strict}``; by default the first score of the source's first benchmark.
        answer_loss: Whether to log ``answer_loss/<source>``, the loss of the reference answers
            given their prompts: one forward pass over each item. An engine without likelihoods,
            such as ``vllm``, has none.
        split: Part of each benchmark's items, in whole clusters, that only choose: they are what
            the guard, a search and ``validate`` read. Everything reported is measured on the
            others. By default all items are reported, and nothing may choose by them.

    Raises:
        RequestError: If a number is out of range or a name cannot begin a metric key.
    """

    def __init__(
        self,
        benchmarks: dict[str, Benchmark],
        every_n_steps: PositiveInt | None = None,
        batch_size: PositiveInt = 64,
        batch_tokens: PositiveInt | None = None,
        weights: EvaluationWeights = "live",
        engine: EngineName | Engine = "native",
        vllm: VllmServer | None = None,
        decoding: dict[str, Decoding] | None = None,
        drafts: bool = True,
        budget: float | str | None = None,
        cut_reasoning: bool | None = None,
        primary: dict[str, str] | None = None,
        answer_loss: bool = True,
        split: OpenUnitInterval | None = None,
    ) -> None:
        for name in benchmarks:
            if not re.fullmatch(r"[A-Za-z_]\w{0,59}", name, re.ASCII):
                raise RequestError(
                    f"evaluation.benchmarks: {name!r} begins metric keys; "
                    "use letters, digits and _, at most 60."
                )
            if name in RESERVED_NAMES:
                raise RequestError(
                    f"evaluation.benchmarks: {name!r} begins metric keys of the lab itself, as do "
                    f"{', '.join(sorted(RESERVED_NAMES - {name}))}; choose another name."
                )
        self.engine = (
            engine
            if isinstance(engine, Engine)
            else make_engine(engine, batch_size, batch_tokens, vllm, weights=weights, drafts=drafts)
        )
        if not self.engine.is_local and weights != "live":
            raise RequestError(
                f"evaluation.weights {weights} applies to engines in this process, but "
                f"evaluation.engine {self.engine.name} generates on a server, from the base it "
                "has loaded; set weights to live."
            )
        for name, benchmark in benchmarks.items():
            benchmark.key = f"evaluation.benchmarks.{name}.init_args."
            if benchmark.needs_likelihoods and not self.engine.gives_likelihoods:
                raise RequestError(
                    f"evaluation.benchmarks.{name}: {type(benchmark).__name__} needs likelihoods, "
                    f"which evaluation.engine {self.engine.name} does not give; set it to native."
                )
        for name in decoding or {}:
            if name not in benchmarks:
                raise RequestError(
                    f"evaluation.decoding: there is no benchmark {name!r}; there are "
                    f"{', '.join(benchmarks) or 'none'}."
                )
            if benchmarks[name].decides_decoding:
                raise RequestError(
                    f"evaluation.decoding: {name!r} fixes its own decoding; leave it out."
                )
        self.benchmarks: Mapping[str, Benchmark] = benchmarks
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.weights: EvaluationWeights = weights
        self._decoding = decoding or {}
        self.drafts = drafts
        self.budget = budget_share(budget)
        self.cut_reasoning = cut_reasoning
        self.primary: Mapping[str, str] = self._primary(primary or {})
        if split is not None and not 0 < split < 1:
            raise RequestError(
                f"evaluation.split must be a part of the items between 0 and 1, got {split}. Leave "
                "it out to report all items."
            )
        self.answer_loss = answer_loss
        self.split = split
        self._splits: dict[str, Split] = {}
        self._rendered: tuple[Renderer, dict[str, Prompts]] | None = None
        self._references: tuple[Renderer, dict[str, list[TokenPair | None]]] | None = None

    def decoding(self, name: str) -> Decoding:
        """Return the decoding of a benchmark's answers."""
        benchmark = self.benchmarks[name]
        if benchmark.decides_decoding:
            return benchmark.decoding
        return self._decoding.get(name, GREEDY)

    def cuts_reasoning(self, renderer: Renderer) -> bool:
        """Return whether reasoning is cut from answers in the template of ``renderer``.

        Raises:
            RequestError: If it is to be cut, but its end cannot be seen in decoded answers.
        """
        cuts = self.cut_reasoning
        if cuts is None:
            cuts = template_reasons(renderer)
        if cuts:
            check_reasoning(renderer)
        return cuts

    def prompts(self, renderer: Renderer) -> dict[str, Prompts]:
        """Return the prompts of every benchmark; rendered once per renderer.

        Raises:
            RequestError: If a benchmark's file is unusable, it cannot be split, or reasoning cannot
                be cut.
        """
        if self._rendered is None or self._rendered[0] is not renderer:
            self.cuts_reasoning(renderer)
            prompts = {name: Prompts(b.items(), renderer) for name, b in self.benchmarks.items()}
            for name in prompts:
                self.split_of(name)
            self._rendered = (renderer, prompts)
        return self._rendered[1]

    def references(self, renderer: Renderer) -> dict[str, list[TokenPair | None]]:
        """Return prompt and reference answer of every item, by benchmark of ``abilities``.

        There are none where ``answer_loss`` is off or the engine gives no likelihoods.
        """
        if not self.answer_loss or not self.engine.gives_likelihoods:
            return {}
        if self._references is None or self._references[0] is not renderer:
            found = {
                name: reference_pairs(self.benchmarks[name], renderer) for name in self.abilities
            }
            self._references = (renderer, found)
        return self._references[1]

    def split_of(self, name: str) -> Split:
        """Return the sides of a benchmark's items.

        Raises:
            RequestError: If one side has no items.
        """
        if name not in self._splits:
            benchmark, fraction = self.benchmarks[name], self.split
            chosen = None if fraction is None else selection_items(benchmark.all_items(), fraction)
            self._splits[name] = Split(name, benchmark.items(), chosen, fraction)
        return self._splits[name]

    def num_items(self, side: Side) -> dict[str, int]:
        """Return the number of items on a side of the split, by benchmark."""
        return {name: len(self.split_of(name).indices[side]) for name in self.benchmarks}

    @property
    def abilities(self) -> dict[str, str]:
        """The name of the ability that a benchmark represents, by the benchmark's name."""
        return {key.partition("/")[0]: name for name, key in self.primary.items()}

    @property
    def score_keys(self) -> dict[str, str]:
        """The metric key of every benchmark's main score: a primary one, or else the first."""
        first = {name: f"{name}/{b.score_names[0]}" for name, b in self.benchmarks.items()}
        return first | {key.partition("/")[0]: key for key in self.primary.values()}

    @property
    def labels(self) -> dict[str, str]:
        """The metric keys of ``score_keys`` by a short name: that of the ability, if it is one."""
        return {self.abilities.get(name, name): key for name, key in self.score_keys.items()}

    def _primary(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return the score of each ability by source, or by benchmark if it has no source.

        Ratings are excluded, since they are not comparable with shares, and so are scores for which
        lower is better.
        """
        known: dict[str, list[str]] = {}
        for name, benchmark in self.benchmarks.items():
            scores = filter(benchmark.is_ability, benchmark.score_names)
            keys = [f"{name}/{score}" for score in scores]
            if benchmark.scale == (0, 1) and keys:
                known.setdefault(benchmark.source or name, []).extend(keys)
        for source, key in chosen.items():
            if key not in known.get(source, ()):
                fix = (
                    f"choose one of {', '.join(known[source])}"
                    if source in known
                    else (f"sources with such a benchmark: {', '.join(known) or 'none'}")
                )
                raise RequestError(
                    f"evaluation.primary.{source}: {key} is not a score in [0, 1] of a benchmark "
                    f"with this source; {fix}."
                )
        return {source: chosen.get(source, keys[0]) for source, keys in known.items()}

    def is_mean_of_items(self, key: str) -> bool:
        """Return whether a score is a mean over items."""
        name, _, score_name = key.partition("/")
        return self.benchmarks[name].mark_of(score_name) is not None

    def is_percent(self, key: str) -> bool:
        """Return whether a score is shown in percent; a rating is not."""
        return self.benchmarks[key.partition("/")[0]].scale == (0, 1)

    def shown(self, key: str, value: float) -> str:
        """Return a score as text: a share in percent, a rating unscaled."""
        return percent(value) if self.is_percent(key) else f"{value:.2f}"

    def is_due(self, step: int, boundaries: list[int]) -> bool:
        """Return whether an evaluation is due after ``step`` optimizer steps.

        Args:
            step: Optimizer steps taken.
            boundaries: Optimizer steps at which stages end.
        """
        between = self.every_n_steps is not None and step % self.every_n_steps == 0
        return step == 0 or step in boundaries or between
