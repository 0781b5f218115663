"""Pretrain the small Llama base on text, for a number of tokens.

Weights are float32; matrix products are bfloat16 where the machine computes it natively.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typing_extensions import override

from sft_lab.config.compose import best_precision

HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, INTERMEDIATE_SIZE = 192, 4, 3, 512
BATCH_SIZE, BLOCK_LENGTH = 8, 256  # rows a step; tokens a row
MUON_LR, MUON_WEIGHT_DECAY, ADAMW_LR = 0.02, 0.1, 0.01
# With transformers' 0.02 and AdamW at 0.003, 300,000 tokens bring the loss to 1.34, not to 1.20. A
# standard deviation of 1 with both rates doubled brings it to 1.11, but the weights grow so large
# that after 5.5 million tokens adapters learn worse (math 65 %) and forget more.
EMBEDDING_STD = 0.5
WARMUP_SHARE = 0.05
LOG_EVERY_STEPS = 100


class Muon(torch.optim.Optimizer):
    """Optimize hidden matrices by momentum with orthogonalised updates.

    ``torch.optim.Muon`` iterates in bfloat16, which CPUs without AVX512-BF16 emulate at a
    fifteenth of the speed. This one takes the dtype and handles equal shapes together.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        num_iterations: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        settings = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "num_iterations": num_iterations,
            "dtype": dtype,
        }
        super().__init__(params, settings)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(state["momentum"], group["momentum"])
                by_shape.setdefault(param.shape, []).append((param, update))
            for shape, pairs in by_shape.items():
                updates = torch.stack([update for _, update in pairs])
                updates = orthogonalise(updates.to(group["dtype"]), group["num_iterations"])
                lr = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.sub_(update, alpha=lr)


def orthogonalise(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Bring the singular values near 1 by Newton-Schulz steps.

    Args:
        matrices: Float ``[N, rows, columns]``.
        num_iterations: Steps; five bring the values into 0.7 to 1.2.

    Returns:
        Matrices of the same shape and singular vectors.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def blocks(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Tensor]:
    """Yield the texts, each followed by the end token, as blocks of int64 ``[BLOCK_LENGTH]``."""
    rest: list[int] = []
    texts = iter(texts)
    while chunk := list(islice(texts, 1000)):
        for input_ids in tokenizer(chunk)["input_ids"]:
            rest += [*input_ids, tokenizer.eos_token_id]
        whole = len(rest) // BLOCK_LENGTH * BLOCK_LENGTH
        yield from torch.tensor(rest[:whole]).view(-1, BLOCK_LENGTH)
        rest = rest[whole:]


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return an untrained model for the tokenizer."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=INTERMEDIATE_SIZE,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=NUM_HEADS,
            max_position_embeddings=tokenizer.model_max_length,
            # Tied to the head, all tokens that pretraining never shows, the roles among them,
            # would be pushed to the same embedding.
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    return model


def schedule(step: int, num_steps: int) -> float:
    """Return the factor on both learning rates: linear warm-up, then linear decay to zero."""
    warmup = max(1, round(WARMUP_SHARE * num_steps))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup))


def pretrain(
    model: LlamaForCausalLM,
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    num_tokens: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Train a model in place.

    Args:
        model: The model, in float32.
        texts: Documents, at least ``num_tokens`` tokens of them.
        tokenizer: The world's tokenizer.
        num_tokens: Token budget, rounded up to whole optimizer steps.
        log: Called with each line of progress.

    Returns:
        The recipe: sizes, learning rates, final loss in nats per token, duration.
    """
    started = time.monotonic()
    dtype = torch.bfloat16 if best_precision() == "bf16-mixed" else torch.float32
    model.train()
    by_token = ("model.embed_tokens.weight", "lm_head.weight")  # matrices, but lists of vectors
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and name not in by_token]
    others = [p for name, p in named.items() if p.ndim != 2 or name in by_token]
    num_steps = math.ceil(num_tokens / (BATCH_SIZE * BLOCK_LENGTH))
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=MUON_LR, weight_decay=MUON_WEIGHT_DECAY, dtype=dtype),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    schedulers = [LambdaLR(o, lambda step: schedule(step, num_steps)) for o in optimizers]
    losses: list[float] = []
    source = blocks(texts, tokenizer)
    for step in range(num_steps):
        input_ids = torch.stack(list(islice(source, BATCH_SIZE)))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        loss.backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % LOG_EVERY_STEPS == 0 or step + 1 == num_steps:
            seconds = time.monotonic() - started
            speed = (step + 1) * input_ids.numel() / seconds
            recent = losses[-LOG_EVERY_STEPS:]
            log(
                f"step {step + 1}/{num_steps}: loss {sum(recent) / len(recent):.3f}, "
                f"{speed:.0f} tokens/s, {seconds:.0f} s"
            )
    tail = losses[-LOG_EVERY_STEPS:]
    return {
        "tokens": num_steps * BATCH_SIZE * BLOCK_LENGTH,
        "steps": num_steps,
        "batch_size": BATCH_SIZE,
        "block_length": BLOCK_LENGTH,
        "optimizers": {
            "Muon": {"lr": MUON_LR, "weight_decay": MUON_WEIGHT_DECAY},
            "AdamW": {"lr": ADAMW_LR, "betas": [0.9, 0.95]},
        },
        "embedding_std": EMBEDDING_STD,
        "schedule": f"linear warm-up over {WARMUP_SHARE:.0%}, then linear to zero",
        "weights": "float32",
        "arithmetic": str(dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(sum(tail) / len(tail), 4),
        "duration_s": round(time.monotonic() - started, 1),
    }
