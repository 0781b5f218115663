import peft
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sft_lab.evaluation.generation import batches_longest_first, generate

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,  # far from ties, and answers that vary
    "attention_dropout": 0.5,  # must not act
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
# A window shorter than the prompts: its cache drops old tokens, padding first.
WINDOW = {
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
PAD, EOS = 0, (1, 2, 3, 4)
PROMPTS = [[5 + (row * 7 + place * 3) % 35 for place in range(3 + row % 6)] for row in range(12)]


def tiny(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    match architecture:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**GROUPED))
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**GROUPED))
        case "gpt_neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
        case "gemma3":
            # Tied embeddings would repeat one token for ever.
            config = Gemma3TextConfig(**GROUPED, **WINDOW, tie_word_embeddings=False)
            return Gemma3ForCausalLM(config)
    raise ValueError(architecture)


def with_lora(model: PreTrainedModel) -> peft.PeftModel:
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False
    )
    return peft.get_peft_model(model, config)


def ours(model: PreTrainedModel, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    return generate(model, prompts, max_new_tokens=12, eos_token_ids=EOS, pad_token_id=PAD)


def theirs(model: PreTrainedModel) -> list[list[int]]:
    model.eval()
    answers = []
    for prompt in PROMPTS:
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(EOS),
            pad_token_id=PAD,
        )
        answer = output[0, len(prompt) :].tolist()
        answers.append(answer[:-1] if answer[-1] in EOS else answer)
    return answers


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "gemma3"])
def test_answers_are_those_of_transformers_one_by_one(architecture: str) -> None:
    model = tiny(architecture)
    expected = theirs(model)
    assert len({len(answer) for answer in expected}) > 2  # rows end at different times
    assert ours(model) == expected


def test_adapters_in_training_with_checkpointing() -> None:
    model = with_lora(tiny("llama"))
    expected = theirs(model)
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    assert ours(model) == expected
    assert model.is_activation_checkpointing
    with model.disable_adapter():
        assert ours(model) != expected


def test_modes_and_random_state_are_left_alone() -> None:
    model = tiny("llama").train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    ours(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_modes_are_restored_after_an_error() -> None:
    model = tiny("llama").train()
    with pytest.raises(IndexError):
        ours(model, [[5, 99]])  # no such token
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_the_limit_cuts_and_the_end_is_not_returned() -> None:
    model = tiny("llama")
    long = ours(model)
    assert not {token for answer in long for token in answer} & set(EOS)
    short = generate(model, PROMPTS, max_new_tokens=2, eos_token_ids=EOS, pad_token_id=PAD)
    assert short == [answer[:2] for answer in long]


@pytest.mark.parametrize("prompts", [[], [[5], []]])
def test_empty_prompts_are_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="no empty one"):
        ours(tiny("llama"), prompts)


def test_batches_hold_every_prompt_once_longest_first() -> None:
    assert batches_longest_first([2, 7, 4, 7, 1], batch_size=2) == [[1, 3], [2, 0], [4]]
    assert batches_longest_first([], batch_size=2) == []
    with pytest.raises(ValueError, match="got 0"):
        batches_longest_first([1], batch_size=0)
