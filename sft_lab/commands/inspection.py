"""Show the data of a config by stage and source, down to the sample; loads no model."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenized_row import IGNORED, TokenizedRow
from sft_lab.training.batches import bin_length
from sft_lab.training.data_modules import StagedDataModule
from sft_lab.training.order import RowRef
from sft_lab.training.plan import StagePlan


def inspection(data: StagedDataModule, stage: str | None, num_samples: int) -> dict[str, Any]:
    """Return what a run's stages train on.

    Args:
        data: A planned data module.
        stage: The stage to inspect; default: all.
        num_samples: Samples to render per source and stage.

    Returns:
        ``stages`` by name: ``steps``, ``passes``, ``sequences`` and their ``fill`` in [0, 1] if
        rows are packed, ``guarded`` with the ladder of shares by source if there is a guard,
        ``mixture`` by source with ``asked``, ``rows``, ``samples``, ``tokens`` and
        ``target_tokens``; ``sources`` by name: ``path``, all counts of ``IntakeReport``,
        ``held_out``, ``trained``, the number of its rows in these stages, ``lengths`` in tokens of
        the rows that may be trained on; and ``samples`` in pieces.
    """
    modules = [m for m in data.stage_modules if stage in (None, m.plan.name)]
    loaded = data.corpus.loaded
    num_tokens = {name: source.num_tokens for name, source in loaded.items()}
    num_target_tokens = {name: source.num_target_tokens for name, source in loaded.items()}
    nothing = {"samples": 0, "tokens": 0, "target_tokens": 0}  # if a stage ends before its rows
    stages: dict[str, dict[str, Any]] = {}
    for module in modules:
        plan = module.plan
        counted = plan.count(num_tokens, num_target_tokens)
        different = _different_rows(plan)
        stages[plan.name] = {
            "steps": plan.num_steps,
            "passes": len(plan.passes),
            **_packed(data, plan),
            **_guarded(data, plan),
            "mixture": {
                name: {
                    "asked": share.written,
                    "rows": different[name],
                    **counted.get(name, nothing),
                }
                for name, share in data.stages[plan.name].mixture.items()
                if name in loaded
            },
        }
    in_stages = {ref for module in modules for ref in module.plan.rows()}
    trained = Counter(ref.source for ref in in_stages)
    mixed = [name for name in loaded if any(name in s["mixture"] for s in stages.values())]
    return {
        "stages": stages,
        "sources": {
            name: {
                "path": data.corpus.sources[name].path,
                **loaded[name].report.to_json(),
                "held_out": loaded[name].val_rows,
                "trained": trained[name],
                "lengths": sorted(num_tokens[name][loaded[name].trainable].tolist()),
            }
            for name in mixed
        },
        "samples": [
            sample for module in modules for sample in _samples(data, module.plan, num_samples)
        ],
    }


def _packed(data: StagedDataModule, plan: StagePlan) -> dict[str, Any]:
    if not data.packing:
        return {}
    sequences = [refs for window in plan.windows for refs in window]
    tokens = sum(bin_length(data.corpus, refs) for refs in sequences)
    fill = tokens / (len(sequences) * data.corpus.max_length)
    return {"sequences": len(sequences), "fill": fill}


def _guarded(data: StagedDataModule, plan: StagePlan) -> dict[str, Any]:
    if data.guard is None or data.guard.stage != plan.name:
        return {}
    sources = data.guard.sources(data.evaluation)
    return {"guarded": {source: list(map(str, data.guard.shares)) for source in sources}}


def _different_rows(plan: StagePlan) -> Counter[str]:
    return Counter(ref.source for ref in set(plan.rows()))


def _samples(data: StagedDataModule, plan: StagePlan, count: int) -> Iterable[dict[str, Any]]:
    """Yield the first rows of every source, in training order."""
    taken: dict[str, list[RowRef]] = {}
    for ref in (ref for window in plan.passes[0] for refs in window for ref in refs):
        taken.setdefault(ref.source, [])
        if len(taken[ref.source]) < count:
            taken[ref.source].append(ref)
    for name, refs in taken.items():
        source = data.corpus.loaded[name]
        for ref in refs:
            yield {
                "stage": plan.name,
                "source": name,
                "sample_id": source.sample_ids[ref.index],
                "pieces": pieces(source.rows[ref.index], data.corpus.renderer),
            }


def pieces(row: TokenizedRow, renderer: Renderer) -> list[dict[str, Any]]:
    """Split a row where tokens change kind: ``text``, ``tokens``, ``trained``, ``special``."""
    tokenizer = renderer.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    # The first token has no predecessor, so it is never trained.
    trained = [index > 0 and label != IGNORED for index, label in enumerate(row.labels)]
    kinds = [(t, token in special) for t, token in zip(trained, row.input_ids, strict=True)]
    found = []
    for (is_trained, is_special), group in groupby(range(len(kinds)), key=kinds.__getitem__):
        ids = [int(row.input_ids[index]) for index in group]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append(
            {"text": text, "tokens": len(ids), "trained": is_trained, "special": is_special}
        )
    return found
