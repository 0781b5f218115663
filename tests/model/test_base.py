"""Bases as people have them on disk: what cannot be trained is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_lab.data.tokenizer import load_tokenizer
from sft_lab.errors import RequestError
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.logits import check_logits
from sft_lab.model.merged import merged_copy
from sft_lab.model.qlora import check_base, check_weights, load_base
from sft_lab.model.size import model_size


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be changed."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def edit(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "t5"}, "is a t5 model, for which transformers has no causal"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "holds quantised weights; n",
        ),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"model_type": "mine"}, "no model can be loaded from"),
    ],
)
def test_what_is_no_plain_causal_model_is_refused_by_its_config(
    base: Path, keys: dict[str, Any], message: str
) -> None:
    edit(base, **keys)
    with pytest.raises(RequestError, match=rf"^model\.base: .*{message}"):
        check_base(str(base))


def test_code_that_comes_with_a_base_never_runs_and_nobody_is_asked(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    (base / "mine.py").write_text("raise SystemExit('ran')\n")
    mapped = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    edit(base, model_type="mine", auto_map=mapped)
    for read in (check_base, lambda b: model_size(b, "fp32", None, "32-true")):
        with pytest.raises(RequestError, match="custom code"):
            read(str(base))
    (base / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}})
    )
    (base / "tokenizer.json").unlink()
    with pytest.raises(RequestError, match=r"corpus\.tokenizer: no tokenizer"):
        load_tokenizer(str(base))
    assert not asked


def test_an_adapter_inside_a_base_is_not_loaded_unasked(base: Path) -> None:
    add_adapters(load_base(str(base), "fp32", torch.float32), Lora(r=4), 0).save_pretrained(base)
    with pytest.raises(RequestError, match="holds an adapter besides its model"):
        check_base(str(base))


def test_missing_weights_are_not_drawn_at_random(base: Path) -> None:
    edit_weights(base, lambda w: [w.pop(name) for name in [*w] if "layers.1.mlp" in name])
    with pytest.raises(RequestError, match=r"lacks the weights model\.layers\.1\.mlp\.down_proj"):
        load_base(str(base), "fp32", torch.float32)


def test_weights_that_cannot_be_read_are_named(base: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(RequestError, match=r"the weights of .*base cannot be loaded: .*header"):
        load_base(str(base), "fp32", torch.float32)
    (base / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="holds no weights"):
        check_weights(str(base))


def test_damaged_weights_are_said_to_be(base: Path) -> None:
    edit_weights(base, lambda w: w["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(RequestError, match="logits of LlamaForCausalLM are not finite"):
        check_logits(load_base(str(base), "fp32", torch.float32))


def test_a_model_that_sees_later_tokens_is_refused(base: Path) -> None:
    model = load_base(str(base), "fp32", torch.float32)
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: 9 * output.flip(1))
    with pytest.raises(RequestError, match="in LlamaForCausalLM a token sees later ones"):
        check_logits(model)


@pytest.mark.parametrize(
    "targets", [["embed_tokens"], ["lm_head"], ["lm_head", "embed_tokens"], ["q_proj"]]
)
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_of_embeddings_are_merged_right_although_they_are_tied(
    base: Path, targets: list[str], tied: bool
) -> None:
    edit(base, tie_word_embeddings=tied)
    if not tied:
        embedding = "model.embed_tokens.weight"
        edit_weights(
            base, lambda w: w.update({"lm_head.weight": w[embedding].flip(0).contiguous()})
        )
    model = add_adapters(
        load_base(str(base), "fp32", torch.float32), Lora(r=4, target_modules=targets), 0
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.normal_(std=0.1)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        live = model.eval()(input_ids=ids).logits
        torch.testing.assert_close(merged_copy(model, torch.float32)(input_ids=ids).logits, live)


def test_a_pattern_of_modules_that_is_no_pattern_is_refused(base: Path) -> None:
    model = load_base(str(base), "fp32", torch.float32)
    with pytest.raises(RequestError, match=r"^model\.lora does not fit .*: missing \)"):
        add_adapters(model, Lora(target_modules="q_proj|("), seed=0)
