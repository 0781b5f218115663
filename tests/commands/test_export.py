from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lab import FinishedRun, Lab

from sft_lab.commands.export import load_trained

IDS = torch.arange(5, 45).reshape(2, 20)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def world(tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_LAB_WORLD", str(tiny_world))


def test_an_adapter_is_loaded_by_peft(finished: FinishedRun, lab: Lab, tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outcome = lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=made/adapter")
    assert outcome.code == 0, outcome.err
    assert [entry.name for entry in (lab.folder / "made").iterdir()] == ["adapter"]
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, lab.folder / "made/adapter")
    assert torch.equal(logits(model), logits(load_trained(finished.lab.checkpoint)[0]))
    assert AutoTokenizer.from_pretrained(lab.folder / "made/adapter").chat_template
    assert (lab.folder / "made/adapter").stat().st_mode & 0o077  # as readable as any other folder


@pytest.mark.slow
def test_the_tokenizer_has_the_template_used_in_training(lab: Lab) -> None:
    from transformers import AutoTokenizer

    steps = [f"--data.stages.{name}.max_steps=1" for name in ("first", "second")]
    assert lab.fit("--corpus.template=vicuna_v1.1", *steps).code == 0
    assert lab("export", f"--ckpt_path={lab.checkpoint}", "--out=adapter").code == 0
    tokenizer = AutoTokenizer.from_pretrained(lab.folder / "adapter")
    messages = [{"role": "user", "content": "Hello"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered.endswith("USER: Hello ASSISTANT:")


def check_merged(lab: Lab, checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    outcome = lab("export", f"--ckpt_path={checkpoint}", "--out=merged", "--what=merged")
    assert outcome.code == 0, outcome.err
    merged = AutoModelForCausalLM.from_pretrained(lab.folder / "merged", dtype=torch.float32)
    assert not hasattr(merged.config, "quantization_config")
    live = logits(load_trained(checkpoint)[0])
    torch.testing.assert_close(logits(merged), live, rtol=1e-4, atol=1e-5)


def test_a_merged_model_needs_no_base(finished: FinishedRun, lab: Lab) -> None:
    check_merged(lab, finished.lab.checkpoint)


@pytest.mark.slow
def test_a_four_bit_base_is_merged_as_quantised(lab: Lab) -> None:
    steps = [f"--data.stages.{name}.max_steps=2" for name in ("first", "second")]
    # In float32 on every machine, or rounding to bfloat16 would hide what merging gets wrong.
    outcome = lab.fit("--model.quantization=nf4", "--trainer.precision=32-true", *steps)
    assert outcome.code == 0, outcome.err
    check_merged(lab, lab.checkpoint)


def test_an_existing_folder_stays_untouched(finished: FinishedRun, lab: Lab) -> None:
    (lab.folder / "out").mkdir()
    outcome = lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=out")
    assert outcome.code == 2
    assert outcome.err == "error: --out out already exists; choose a new folder.\n"
    assert list((lab.folder / "out").iterdir()) == []


def test_an_unusable_folder_is_refused(finished: FinishedRun, lab: Lab) -> None:
    outcome = lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=tiny.yaml/out")
    assert outcome.code == 2
    assert "--out: tiny.yaml cannot be made" in outcome.err


def test_a_failed_export_leaves_no_folder(
    finished: FinishedRun, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any, out: Path) -> None:
        (out / "half").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr("sft_lab.commands.export.save_trained", fail)
    before = sorted(lab.folder.iterdir())
    with pytest.raises(OSError, match="No space left"):
        lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=out")
    assert sorted(lab.folder.iterdir()) == before
