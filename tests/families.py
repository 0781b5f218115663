"""Try transformers' families on tiny random models, and write docs/families.md.

    python tests/families.py                     # all of them
    python tests/families.py --only llama mamba  # these rows of the page

Every family is built from its config alone, saved, loaded as a run loads it, and compared with
transformers: losses with the model's own, answers with ``generate`` of each prompt alone, packed
rows with rows alone, merged and exported weights with the live ones. The table names what the lab
refuses and why; anything else that is not right is marked WRONG.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from tiny_families import tiny_model

from sft_lab.errors import RequestError
from sft_lab.evaluation.generation import generate
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.logits import check_logits, check_packing, hidden_states
from sft_lab.model.merged import merged_copy
from sft_lab.model.qlora import load_base, plain_causal_lm
from sft_lab.model.unquantized import dequantized

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
COMMAND = "python tests/families.py"
SIX = ("llama", "gemma2", "qwen3_moe", "falcon_h1", "mamba", "gpt2")
"""The families that the ordinary tests try."""
FAMILIES = """
    apertus arcee bailing_hybrid bamba bitnet bloom codegen cohere cohere2 cohere2_moe
    ctrl cwm deepseek_v2 deepseek_v3 deepseek_v4 diffllama doge dots1 ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon_h1 falcon_mamba flex_olmo gemma gemma2
    gemma3_text gemma3n_text glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neo
    gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared helium
    hunyuan_v1_dense hunyuan_v1_moe hy_v3 jais2 jamba jetmoe kimi_linear lfm2 lfm2_moe
    llama llama4_text longcat_flash mamba mamba2 mimo_v2_flash minicpm3 minimax
    minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder mpt nanochat
    nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe opt persimmon phi phi3 phimoe
    qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
    recurrent_gemma rwkv seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm
    youtu zamba2
""".split()  # noqa: SIM905

_IDS = torch.arange(60).reshape(3, 20) * 7 % 61 + 3
_PROMPTS = [
    [5 + (row * 7 + place * 3) % 50 for place in range(3 + row * 5 % 9)] for row in range(6)
]
_NEW_TOKENS = 16
_TOLERANCE = 1e-3  # of logits' or losses' size; mistakes are far larger in these models


@dataclass
class Row:
    """Hold what was seen of one family; a cell is ``yes``, ``no`` (refused) or ``WRONG``."""

    family: str
    trains: str = ""
    loss: str = ""
    answers: str = ""
    packing: str = ""
    merged: str = ""
    exported: str = ""
    nf4: str = ""
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Return the row of the table."""
        values = [getattr(self, each.name) for each in fields(self)[:-1]]
        return [f"`{values[0]}`", *values[1:], "; ".join(dict.fromkeys(self.notes))]


def try_family(family: str) -> Row:
    """Return what works for one family."""
    row = Row(family)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny_model(family).save_pretrained(folder)
        for name, quantization in (("trains", "fp32"), ("nf4", "nf4")):
            try:
                model = _adapted(folder, quantization)
            except RequestError as fault:
                setattr(row, name, "no")
                row.notes.append(_reason(fault, quantization))
                continue
            if quantization == "fp32":
                base = load_base(folder, "fp32", torch.float32).eval()
                _try(row, "loss", lambda base=base: _same_loss(base))
                _try(row, "packing", lambda base=base: _packs(base))
                _try(row, "answers", lambda model=model: _same_answers(model))
                _try(row, "merged", lambda model=model: _merges(model))
                _try(row, "exported", lambda model=model: _exports(model, Path(folder) / "out"))
                _try(row, "trains", lambda model=model: _trains(model))
            else:
                _try(row, "nf4", lambda model=model: _trains(model) and _dequantizes(model))
    return row


def _adapted(folder: str, quantization: Any) -> Any:
    """Return a base as a run loads it, with adapters that already change its output."""
    base = load_base(folder, quantization, torch.float32)
    check_logits(base)
    model = add_adapters(base, Lora(r=4, lora_alpha=8), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def _try(row: Row, name: str, check: Callable[[], bool]) -> None:
    try:
        setattr(row, name, "yes" if check() else "WRONG")
    except RequestError as fault:
        setattr(row, name, "no")
        row.notes.append(_reason(fault))
    except Exception as fault:  # a table is written of whatever happens
        setattr(row, name, "WRONG")
        row.notes.append(f"{name}: {type(fault).__name__}: {str(fault).splitlines()[0][:120]}")


def _reason(fault: RequestError, quantization: str = "fp32") -> str:
    words = str(fault).partition("; ")[0].partition(". ")[0].replace("|", "/")
    return words if quantization == "fp32" else f"{quantization}: {words}"


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (found.float() - expected.float()).norm() / expected.float().norm()
    return bool(difference < _TOLERANCE)


def _our_loss(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    is_target = torch.zeros_like(ids, dtype=torch.bool)
    is_target[:, 1:] = (positions > 0)[:, 1:]
    places = is_target.flatten().nonzero().squeeze(1)
    states = hidden_states(plain_causal_lm(model), ids, positions, places - 1)
    return states.nll(ids.flatten()[places]).mean()


def _positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


def _same_loss(base: Any) -> bool:
    expected = base(input_ids=_IDS, labels=_IDS, use_cache=False).loss
    return _close(_our_loss(base, _IDS, _positions(_IDS)), expected)


def _packs(base: Any) -> bool:
    check_packing(base)
    packed = _our_loss(base, _IDS, _positions(_IDS) % 10)
    rows = _IDS.reshape(6, 10)
    return _close(packed, _our_loss(base, rows, _positions(rows)))


def _trains(model: Any) -> bool:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    model.train()
    for _ in range(4):
        loss = _our_loss(model, _IDS, _positions(_IDS))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses[-1] < losses[0]


@torch.no_grad()
def _same_answers(model: Any) -> bool:
    free = _theirs(model, [63])
    # End tokens that some rows meet early, and others late or never.
    ends = sorted(
        {answer[4 * i + 1] for i, answer in enumerate(free[:3]) if len(answer) > 4 * i + 1}
    )
    expected = _theirs(model, ends or [63])
    found = generate(
        model, _PROMPTS, max_new_tokens=_NEW_TOKENS, eos_token_ids=ends or [63], pad_token_id=0
    )
    return found == expected


def _theirs(model: Any, ends: list[int]) -> list[list[int]]:
    """Return transformers' answers, each prompt alone."""
    model.eval()
    answers = []
    for prompt in _PROMPTS:
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            use_cache=True,
            max_new_tokens=_NEW_TOKENS,
            eos_token_id=ends,
            pad_token_id=0,
        )
        answer = output[0, len(prompt) :].tolist()
        answers.append(answer[:-1] if answer[-1] in ends else answer)
    return answers


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=_IDS, use_cache=False).logits
    return found


def _merges(model: Any) -> bool:
    return _close(_logits(merged_copy(model, torch.float32)), _logits(model))


def _exports(model: Any, out: Path) -> bool:
    from transformers import AutoModelForCausalLM

    merged_copy(model, torch.float32).save_pretrained(out)
    found: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    return _close(_logits(found), _logits(model))


def _dequantizes(model: Any) -> bool:
    live = _logits(model)
    with dequantized(model):
        return _close(_logits(model), live)


def table_row(row: Row) -> str:
    """Return a family's line of the table."""
    return f"| {' | '.join(row.cells())} |"


def page(lines: list[str]) -> str:
    """Return the page as Markdown.

    Args:
        lines: The table's lines, one a family.
    """
    names = ("torch", "transformers", "peft", "bitsandbytes")
    return _PAGE.format(
        num=len(lines),
        right=sum("WRONG" not in line for line in lines),
        table="\n".join(sorted(lines, key=_name)),
        command=COMMAND,
        versions=", ".join(f"{name} {version(name).partition('+')[0]}" for name in names),
    )


def _name(line: str) -> str:
    return line.split("`")[1]


_PAGE = """# Families

{num} of transformers' families, each as a tiny random model that a run's code loads, trains and
answers with, compared with transformers. In {right} of them everything is right or refused with
a reason. Random weights show mistakes of code, not the quality of a family's models.

| column | `yes` means |
|---|---|
| trains | LoRA on `all-linear` lowers the loss |
| loss | the loss at target tokens is the one that the model itself computes |
| answers | greedy answers in a batch, its rows ending at different times, are `generate`'s |
| packing | rows of a packed sequence have the losses of rows alone (`data.packing`) |
| merged, exported | what `merged` and `export` write has the logits of the live model |
| NF4 | a 4-bit base trains too, and `evaluation.weights: dequantized` has its logits |

`no` is refused, with the reason in the last column; `WRONG` is neither right nor refused.
Written by `{command}` with {versions}.

| family | trains | loss | answers | packing | merged | exported | NF4 | why not |
|---|---|---|---|---|---|---|---|---|
{table}
"""


def main() -> None:
    """Write or print the page."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, metavar="FAMILY")
    options = parser.parse_args()
    lines = {}
    if options.only != FAMILIES:
        known = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
        lines = {_name(line): line for line in known if line.count("|") == 10}
    for family in options.only:
        lines[family] = table_row(try_family(family))
        print(lines[family], file=sys.stderr, flush=True)
        PAGE.write_text(page(list(lines.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
