"""Loss masks of whole rows, written out by hand: prompts, and the tokens to learn."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from sft_lab.data.conversation import Conversation, RowError
from sft_lab.data.rendering import Renderer
from sft_lab.data.tokenized_row import IGNORED

WORLD = Path(__file__).parents[2] / "sft_lab" / "world" / "base"

ONE_TURN = Conversation(
    ({"role": "user", "content": "1+2"}, {"role": "assistant", "content": "30"})
)
TWO_TURNS = Conversation(
    (
        {"role": "system", "content": "7"},
        *ONE_TURN.messages,
        {"role": "user", "content": "4"},
        {"role": "assistant", "content": "9!"},
    )
)

TEMPLATES = ["world", "vicuna_v1.1", "alpaca", "chatml", "llama3"]
ADDED = {
    "world": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}

# Tokens joined by spaces; prompts and answers alternate.
# In byte-level tokens a space is written Ġ, a line break Ċ.
GPT2: dict[str, tuple[list[str], list[str]]] = {
    "world": (
        ["<|user|> 1 + 2 <|end|> <|assistant|>", "30 <|end|>"],
        [
            "<|system|> 7 <|end|> <|user|> 1 + 2 <|end|> <|assistant|>",
            "30 <|end|>",
            "<|user|> 4 <|end|> <|assistant|>",
            "9 ! <|end|>",
        ],
    ),
    "vicuna_v1.1": (
        [
            "<s> A Ġchat Ġbetween Ġa Ġcurious Ġuser Ġand Ġan Ġartificial Ġintelligence Ġassistant "
            ". ĠThe Ġassistant Ġgives Ġhelpful , Ġdetailed , Ġand Ġpolite Ġanswers Ġto Ġthe Ġuser "
            "'s Ġquestions . ĠUS ER : Ġ1 + 2 ĠASS IST ANT :",
            "Ġ30 </s>",
        ],
        [
            "<s> 7 ĠUS ER : Ġ1 + 2 ĠASS IST ANT :",
            "Ġ30 </s>",
            "USER : Ġ4 ĠASS IST ANT :",
            "Ġ9 ! </s>",
        ],
    ),
    "alpaca": (
        [
            "<s> Below Ġis Ġan Ġinstruction Ġthat Ġdescribes Ġa Ġtask . ĠWrite Ġa Ġresponse Ġthat "
            "Ġappropriately Ġcompletes Ġthe Ġrequest . Ċ Ċ ### ĠInstruction : Ċ 1 + 2 "
            "Ċ Ċ ### ĠResponse : Ċ",
            "30 </s>",
        ],
        [
            "<s> 7 Ċ Ċ ### ĠInstruction : Ċ 1 + 2 Ċ Ċ ### ĠResponse : Ċ",
            "30 </s>",
            "Ċ Ċ ### ĠInstruction : Ċ 4 Ċ Ċ ### ĠResponse : Ċ",
            "9 ! </s>",
        ],
    ),
    "chatml": (
        [
            "<|im_start|> user Ċ 1 + 2 <|im_end|> Ċ <|im_start|> ass istant Ċ",
            "30 <|im_end|> Ċ",
        ],
        [
            "<|im_start|> system Ċ 7 <|im_end|> Ċ <|im_start|> user Ċ 1 + 2 <|im_end|> Ċ "
            "<|im_start|> ass istant Ċ",
            "30 <|im_end|> Ċ",
            "<|im_start|> user Ċ 4 <|im_end|> Ċ <|im_start|> ass istant Ċ",
            "9 ! <|im_end|> Ċ",
        ],
    ),
    "llama3": (
        [
            "<s> <|start_header_id|> user <|end_header_id|> ĊĊ 1 + 2 <|eot_id|> "
            "<|start_header_id|> ass istant <|end_header_id|> ĊĊ",
            "30 <|eot_id|>",
        ],
        [
            "<s> <|start_header_id|> system <|end_header_id|> ĊĊ 7 <|eot_id|> "
            "<|start_header_id|> user <|end_header_id|> ĊĊ 1 + 2 <|eot_id|> "
            "<|start_header_id|> ass istant <|end_header_id|> ĊĊ",
            "30 <|eot_id|>",
            "<|start_header_id|> user <|end_header_id|> ĊĊ 4 <|eot_id|> "
            "<|start_header_id|> ass istant <|end_header_id|> ĊĊ",
            "9 ! <|eot_id|>",
        ],
    ),
}

# The world's tokenizer is rebuilt now and then, but digits and special tokens are always one token
# each. So prompts are given as text, and answers as tokens; there is no bos.
WORLDS: dict[str, tuple[list[str], list[str]]] = {
    "world": (
        ["<|user|>1+2<|end|><|assistant|>", "3 0 <|end|>"],
        [
            "<|system|>7<|end|><|user|>1+2<|end|><|assistant|>",
            "3 0 <|end|>",
            "<|user|>4<|end|><|assistant|>",
            "9 ! <|end|>",
        ],
    ),
    "vicuna_v1.1": (
        [
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
            "USER: 1+2 ASSISTANT:",
            "Ġ 3 0 <|end|>",
        ],
        ["7 USER: 1+2 ASSISTANT:", "Ġ 3 0 <|end|>", "USER: 4 ASSISTANT:", "Ġ 9 ! <|end|>"],
    ),
    "alpaca": (
        [
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request."
            "\n\n### Instruction:\n1+2\n\n### Response:\n",
            "3 0 <|end|>",
        ],
        [
            "7\n\n### Instruction:\n1+2\n\n### Response:\n",
            "3 0 <|end|>",
            "\n\n### Instruction:\n4\n\n### Response:\n",
            "9 ! <|end|>",
        ],
    ),
    "chatml": (
        ["<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n", "3 0 <|im_end|> Ċ"],
        [
            "<|im_start|>system\n7<|im_end|>\n<|im_start|>user\n1+2<|im_end|>\n"
            "<|im_start|>assistant\n",
            "3 0 <|im_end|> Ċ",
            "<|im_start|>user\n4<|im_end|>\n<|im_start|>assistant\n",
            "9 ! <|im_end|> Ċ",
        ],
    ),
    "llama3": (
        [
            "<|start_header_id|>user<|end_header_id|>\n\n1+2<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "3 0 <|eot_id|>",
        ],
        [
            "<|start_header_id|>system<|end_header_id|>\n\n7<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n1+2<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "3 0 <|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\n4<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "9 ! <|eot_id|>",
        ],
    ),
}


@pytest.fixture
def gpt2(shared_data: Callable[[str], Path]) -> Any:
    """Load GPT-2's tokenizer with another end token: after a word its own is read as text."""
    folder = shared_data("../tokenizers/gpt2/tokenizer.json").parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return tokenizer


def renderer_of(tokenizer: Any, template: str) -> Renderer:
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED.get(template, [])})
    if template == "world":
        tokenizer.chat_template = (WORLD / "chat_template.jinja").read_text(encoding="utf-8")
    return Renderer(tokenizer, None if template == "world" else template)


def stretches(renderer: Renderer, conversation: Conversation) -> list[list[str]]:
    """Return a row's tokens as alternating runs of prompt and answer."""
    row = renderer.row(conversation)
    tokens = renderer.tokenizer.convert_ids_to_tokens(list(row.input_ids))
    runs = groupby(zip(tokens, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return [[token for token, _ in run] for _, run in runs]


@pytest.mark.parametrize("template", TEMPLATES)
def test_masks_with_gpt2s_tokens(gpt2: Any, template: str) -> None:
    if template == "llama3":  # one token in Llama 3's vocabulary, whatever follows it
        gpt2.add_tokens([AddedToken("\n\n", normalized=False)])
    renderer = renderer_of(gpt2, template)
    one_turn, two_turns = GPT2[template]
    for conversation, expected in ((ONE_TURN, one_turn), (TWO_TURNS, two_turns)):
        found = [" ".join(tokens) for tokens in stretches(renderer, conversation)]
        assert [tokens.replace("\n", "Ċ") for tokens in found] == expected


@pytest.mark.parametrize("template", TEMPLATES)
def test_masks_with_the_worlds_tokens(template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WORLD)
    renderer = renderer_of(tokenizer, template)
    one_turn, two_turns = WORLDS[template]
    for conversation, expected in ((ONE_TURN, one_turn), (TWO_TURNS, two_turns)):
        runs = stretches(renderer, conversation)
        read = [tokenizer.convert_tokens_to_string(tokens) for tokens in runs[::2]]
        learnt = [" ".join(tokens) for tokens in runs[1::2]]
        assert (read, learnt) == (expected[::2], expected[1::2])


def test_gpt2s_own_tokens_merge_across_llama3s_border(gpt2: Any) -> None:
    # "\n\n" is one token at the end of a text and two before a word.
    with pytest.raises(RowError, match="tokens merge across the border of two turns"):
        renderer_of(gpt2, "llama3").row(ONE_TURN)
