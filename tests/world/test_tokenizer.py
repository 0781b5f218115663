import gzip
import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft_lab.world.build import WORLD
from sft_lab.world.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("SFT_LAB_SHARED", ROOT.parent / "shared"))
TEXTS = (
    "First 12+30=42.\n#### 42",
    "  two  spaces , don't ! ( a ) [ b ] 's",
    "\ttab\r\nwindows\u00a0no-break\u2028line\x00\x7f",
    "汉字「你好」、世界。٣ 四",
    "emoji 🎉👩‍👩‍👧 flag 🇫🇷, e\u0301 and é, ﬁ, ½, ٣",
    "def f(x):\n    return {k: v for k, v in x.items() if k >= 1_000}\n",
    "",
    " ",
    "\n\n\n",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(WORLD / "base")


def round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    return tokenizer.decode(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert round_trip(tokenizer, text) == text


def test_all_byte_values_and_every_plane_come_back(tokenizer: PreTrainedTokenizerFast) -> None:
    latin = bytes(range(256)).decode("latin-1")
    planes = "".join(
        chr(point) for point in range(0x20, 0x1F000, 97) if not 0xD800 <= point < 0xE000
    )
    for text in (latin, planes):
        assert round_trip(tokenizer, text) == text


def test_code_of_this_project_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    for path in (ROOT / "sft_lab").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text, path


@pytest.mark.slow
def test_gsm8k_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    path = SHARED / "data" / "gsm8k" / "train.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no GSM8K at {path}; set SFT_LAB_SHARED to the folder that holds data/gsm8k")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [value for line in lines for value in json.loads(line).values()]
    decoded = tokenizer.batch_decode(tokenizer(texts)["input_ids"])
    assert len(texts) > 10_000
    assert decoded == texts


def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("1234+56=7") == ["1", "2", "3", "4", "+", "5", "6", "=", "7"]


def test_special_tokens_are_distinct(tokenizer: PreTrainedTokenizerFast) -> None:
    roles = tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>"])
    assert len({*roles, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 5
    assert tokenizer.eos_token == "<|end|>"


CONVERSATION = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "user", "content": "My name is 李.\n"},
    {"role": "assistant", "content": " OK. "},
    {"role": "user", "content": "What is my name?"},
    {"role": "assistant", "content": "李 🎉"},
]


def test_template_keeps_the_text_of_every_role(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == (
        "<|system|>  Be brief. <|end|><|user|>My name is 李.\n<|end|><|assistant|> OK. <|end|>"
        "<|user|>What is my name?<|end|><|assistant|>李 🎉<|end|>"
    )


@pytest.mark.parametrize("turn", [2, 4])
def test_a_prompt_is_a_prefix_of_its_conversation(
    tokenizer: PreTrainedTokenizerFast, turn: int
) -> None:
    prompt, whole = CONVERSATION[:turn], CONVERSATION[: turn + 1]
    for tokenize in (False, True):
        start = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=tokenize, return_dict=False
        )
        full = tokenizer.apply_chat_template(whole, tokenize=tokenize, return_dict=False)
        assert full[: len(start)] == start
    reply = tokenizer.decode(full[len(start) :])
    assert reply == whole[-1]["content"] + tokenizer.eos_token


def test_assistant_mask_covers_reply_and_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = tokenizer.apply_chat_template(
        CONVERSATION[1:3], return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, inside in pairs if inside]) == " OK. <|end|>"


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="got 260"):
        train_tokenizer(["text"], vocab_size=260)
