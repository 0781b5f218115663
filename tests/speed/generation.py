"""Time the evaluation's generation against transformers' ``generate`` at its best.

    python tests/speed/generation.py [--batch_size 64 128 200] [--steps N] [--drafted N]
        [--repeats N]

The world's base in NF4, with adapters trained for N steps on the world's sources, answers the
world's 600 items: transformers' ``generate`` from a merged copy with the longest prompts first, and
from the live weights in the order of the files; the lab from the live weights, from a dequantised
base with separate adapters, and from a merged copy, counting the time to make each. Each is timed
as in the first evaluation of a run, and as in a later one, which has the previous evaluation's
answers as drafts; "wrong drafts" has each prompt try its neighbour's answer. All alternate, and the
best of their repeats counts, of seconds and of CPU seconds. The ratios are to transformers' merged
copy at whichever batch size is best for it. Tokens are those of the answers with their end tokens,
without padding.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
import yaml

from sft_lab.data.corpus import Corpus
from sft_lab.data.rendering import Renderer
from sft_lab.data.row_files import file_rows
from sft_lab.data.sources import Source
from sft_lab.evaluation.generation import generate
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.qlora import compute_dtype, load_base
from sft_lab.model.unquantized import EvaluationWeights, evaluation_weights
from sft_lab.paths import resolve
from sft_lab.terminal import format_table
from sft_lab.training.batches import Batch, collate, target_tokens
from sft_lab.training.loss import read_targets
from sft_lab.training.order import RowRef

CONFIG = Path(__file__).parents[2] / "configs" / "world" / "evaluation.yaml"
BASE = "world://base"
TRAINED_ROWS = 16  # rows a step
MERGED, LIVE = "transformers, merged, longest first", "transformers, live, file order"
Prompts = dict[int, list[list[int]]]
Answers = list[list[int]]


def read_prompts(renderer: Renderer) -> Prompts:
    """Return the prompts of the world's benchmarks, by the limit of their answers in tokens."""
    prompts = {}
    for benchmark in yaml.safe_load(CONFIG.read_text())["benchmarks"].values():
        path, limit = (benchmark["init_args"][key] for key in ("path", "max_new_tokens"))
        rows = [row.values for row in file_rows(path, Path(resolve(path)))]
        prompts[limit] = [renderer.prompt_ids(row["messages"]) for row in rows]
    return prompts


class Training:
    """Train adapters on rows of all sources, as a run does, so that answers end."""

    def __init__(self, model: Any, corpus: Corpus) -> None:
        corpus.load(list(corpus.sources))
        self.model, self.corpus = model, corpus
        self.refs = [
            RowRef(name, i) for name, rows in corpus.loaded.items() for i in rows.trainable
        ]
        self.generator = torch.Generator().manual_seed(0)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-3)

    def run(self, steps: int) -> None:
        """Train for more steps."""
        for _ in range(steps):
            places = torch.randint(len(self.refs), (TRAINED_ROWS,), generator=self.generator)
            bins = [[self.refs[place]] for place in places.tolist()]
            batch = collate(self.corpus, bins, target_tokens(self.corpus, bins))
            moved = {key: value.to(self.model.device) for key, value in batch.items()}  # type: ignore[attr-defined]
            read_targets(
                self.model, cast(Batch, moved), list(self.corpus.sources)
            ).nll.mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


@torch.no_grad()
def theirs(
    model: Any,
    prompts: Prompts,
    renderer: Renderer,
    batch_size: int,
    weights: EvaluationWeights,
    dtype: torch.dtype,
    *,
    longest_first: bool,
) -> Answers:
    """Answer with transformers."""
    ends = set(renderer.stop_token_ids)
    answers: Answers = []
    model.eval()
    with evaluation_weights(model, weights, dtype) as generator:
        for limit, some in prompts.items():
            found: dict[int, list[int]] = {}
            order = sorted(range(len(some)), key=lambda place: -len(some[place]) * longest_first)
            for start in range(0, len(order), batch_size):
                places = order[start : start + batch_size]
                batch = [some[place] for place in places]
                longest = max(map(len, batch))
                padding = [longest - len(prompt) for prompt in batch]
                rows = zip(padding, batch, strict=True)
                output = generator.generate(
                    input_ids=torch.tensor(
                        [[renderer.pad_token_id] * n + prompt for n, prompt in rows],
                        device=model.device,
                    ),
                    attention_mask=torch.tensor(
                        [[0] * n + [1] * (longest - n) for n in padding], device=model.device
                    ),
                    do_sample=False,
                    max_new_tokens=limit,
                    eos_token_id=sorted(ends),
                    pad_token_id=renderer.pad_token_id,
                    use_cache=True,
                )
                for place, answer in zip(places, output[:, longest:].tolist(), strict=True):
                    ended = (n for n, token in enumerate(answer) if token in ends)
                    found[place] = answer[: next(ended, len(answer))]
            answers += [found[place] for place in range(len(some))]
    model.train()
    return answers


def ours(
    model: Any,
    prompts: Prompts,
    renderer: Renderer,
    batch_size: int,
    weights: EvaluationWeights,
    dtype: torch.dtype,
    drafts: Answers | None = None,
) -> Answers:
    """Answer as the lab's evaluation does."""
    answers: Answers = []
    with evaluation_weights(model, weights, dtype) as generator:
        for limit, some in prompts.items():
            start = len(answers)
            answers += generate(
                generator,
                some,
                max_new_tokens=limit,
                eos_token_ids=renderer.stop_token_ids,
                pad_token_id=renderer.pad_token_id,
                batch_size=batch_size,
                drafts=None if drafts is None else drafts[start : start + len(some)],
            )
    return answers


def measure(ways: dict[str, Callable[[], Answers]], repeats: int) -> list[list[str]]:
    """Time the ways in turns and compare them with the best of transformers' merged copies."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Answers] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            answers[name] = way()
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    theirs_best = [name for name in ways if name.startswith(MERGED)]
    first = theirs_best[0]
    best_s = min(min(seconds[name]) for name in theirs_best)
    best_cpu_s = min(min(cpu[name]) for name in theirs_best)
    num_tokens = sum(len(answer) + 1 for answer in answers[first])
    return [
        [
            name,
            f"{min(seconds[name]):.1f}",
            f"{min(cpu[name]):.1f}",
            f"{num_tokens / min(seconds[name]):,.0f}",
            f"{best_s / min(seconds[name]):.2f}",
            f"{best_cpu_s / min(cpu[name]):.2f}",
            f"{sum(map(list.__eq__, answers[name], answers[first]))} of {len(answers[first])}",
        ]
        for name in ways
    ]


def neighbours(prompts: Prompts, answers: Answers) -> Answers:
    """Return for each prompt the answer to the one before it."""
    moved, start = [], 0
    for some in prompts.values():
        part = answers[start : start + len(some)]
        moved += part[-1:] + part[:-1]
        start += len(some)
    return moved


def lengths(prompts: Prompts, answers: Sequence[Sequence[int]]) -> str:
    """Describe the lengths of the answers."""
    described, start = [], 0
    for limit, some in prompts.items():
        counts = [len(answer) for answer in answers[start : start + len(some)]]
        start += len(some)
        described.append(f"{sum(counts) / len(counts):.1f} (limit {limit})")
    return ", ".join(described)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[64, 128, 200])
    parser.add_argument("--steps", type=int, default=100, help="steps of training")
    parser.add_argument("--drafted", type=int, default=70, help="step of the drafts")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    dtype = compute_dtype("bf16-true" if cuda else "32-true")
    sources = {n: Source(f"world://data/{n}.jsonl") for n in ("math", "code", "general")}
    corpus = Corpus(sources, BASE, max_length=512, contamination="ignore")
    model = add_adapters(load_base(BASE, "nf4", dtype), Lora(r=32, lora_alpha=64), seed=0)
    renderer = corpus.renderer
    prompts = read_prompts(renderer)
    training = Training(model, corpus)
    training.run(arguments.drafted)
    drafts = ours(model, prompts, renderer, 64, "merged", dtype)
    training.run(arguments.steps - arguments.drafted)
    answers = ours(model, prompts, renderer, 64, "merged", dtype)
    device = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    print(f"{device}, {dtype}; adapters of {arguments.steps} steps")
    print(f"tokens an answer: {lengths(prompts, answers)}")
    print(
        f"drafts: the answers after {arguments.drafted} steps, "
        f"{sum(map(list.__eq__, drafts, answers))} of {len(answers)} the same"
    )
    ways: dict[str, Callable[[], Answers]] = {}
    kinds = (("", None), (", drafts", drafts), (", wrong drafts", neighbours(prompts, answers)))
    for batch_size in arguments.batch_size:
        common = (model, prompts, renderer, batch_size)
        ways |= {
            f"{MERGED} {batch_size}": partial(theirs, *common, "merged", dtype, longest_first=True),
            f"{LIVE} {batch_size}": partial(theirs, *common, "live", dtype, longest_first=False),
        }
        for kind, earlier in kinds:
            for weights in get_args(EvaluationWeights):
                if weights == "merged" or earlier is not kinds[-1][1]:
                    name = f"{weights}{kind} {batch_size}"
                    ways[name] = partial(ours, *common, weights, dtype, earlier)
    header = ["batch size", "seconds", "CPU", "tokens/s", "times", "CPU times", "same answers"]
    print(format_table(header, measure(ways, arguments.repeats)))


if __name__ == "__main__":
    main()
