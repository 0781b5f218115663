"""What a base cannot read is refused before its weights are loaded, by the key to change."""

from pathlib import Path
from typing import Any

import pytest
from tiny_lab import Lab


@pytest.fixture(scope="module")
def make_base(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Any:
    """Makes the folder of a GPT-2 without weights."""
    from transformers import GPT2Config

    def make(**settings: int) -> Path:
        folder = tmp_path_factory.mktemp("gpt2")
        sizes = {"vocab_size": len(chat_tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1}
        config = GPT2Config(**{**sizes, **settings}, bos_token_id=0, eos_token_id=4)
        config.architectures = ["GPT2LMHeadModel"]
        config.save_pretrained(folder)
        chat_tokenizer.save_pretrained(folder)
        return folder

    return make


_ANSWER = "--evaluation.benchmarks.world_math.init_args.max_new_tokens=40"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 100}, "corpus.tokenizer: the rows of corpus.sources.math use token id 2"),
        ({"vocab_size": 4}, "corpus.tokenizer: its special tokens use token id 4"),
        ({"n_positions": 30}, "corpus.max_length: a row of corpus.sources.math has 36"),
        ({"n_positions": 42}, "evaluation.benchmarks.world_math: a prompt and its answer of up to"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--plan",)])
def test_rows_and_prompts_that_a_base_cannot_read_are_refused(
    lab: Lab, make_base: Any, settings: dict[str, int], message: str, flags: tuple[str, ...]
) -> None:
    outcome = lab.fit(_ANSWER, f"--model.base={make_base(**settings)}", *flags)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err
    assert lab.runs == []


def test_a_tokenizer_of_its_own_is_used_and_must_fit_the_base(
    lab: Lab, tiny_base: Path, make_tokenizer: Any
) -> None:
    # The base's own, with a template that renders tools; and one that numbers tokens otherwise.
    fitting = make_tokenizer(chat_template=TEMPLATE)
    fitting.save_pretrained(lab.folder / "fitting")
    content = (lab.folder / "fitting/tokenizer.json").read_text(encoding="utf-8")
    fitting.save_pretrained(lab.folder / "other")
    swapped = content.replace('"A": 37', '"A": 38').replace('"B": 38', '"B": 37')
    (lab.folder / "other/tokenizer.json").write_text(swapped, encoding="utf-8")
    outcome = lab("inspect", "--config=tiny.yaml", "--corpus.tokenizer=fitting")
    assert "<user>!math: what is" in outcome.out
    outcome = lab.fit("--plan", "--corpus.tokenizer=fitting")
    assert outcome.code == 0, outcome.err
    outcome = lab.fit("--corpus.tokenizer=other")
    assert outcome.code == 2
    assert "corpus.tokenizer: other gives 'B' the id 37" in outcome.err
    assert lab.runs == []


TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>!' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>!{% endif %}"
)
