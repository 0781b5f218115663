import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lab import CommandOutput, FinishedRun, Lab

from sft_lab.commands.trained_model import load_trained
from sft_lab.launch.parser import parse_files
from sft_lab.model.adapter_config import Lora, add_adapters
from sft_lab.model.qlora import load_base
from sft_lab.runs.checkpoint import read_checkpoint

IDS = torch.arange(5, 45).reshape(2, 20)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def world(tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_LAB_WORLD", str(tiny_world))


def shown(outcome: CommandOutput) -> list[str]:
    """Return the lines of a command, without the bars that it switches off before an import."""
    lines = re.split(r"[\r\n]+", outcome.err)
    return [line for line in lines if line and not line.startswith("Loading weights")]


def test_an_adapter_is_loaded_by_peft(finished: FinishedRun, lab: Lab, tiny_base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    outcome = lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=made/adapter")
    assert outcome.code == 0, outcome.err
    assert shown(outcome) == ["adapter written to made/adapter"]  # no advice of libraries
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


def test_a_merged_model_needs_no_base_and_is_one(finished: FinishedRun, lab: Lab) -> None:
    check_merged(lab, finished.lab.checkpoint)
    again = lab("validate", "--config=tiny.yaml", "--model.base=merged")
    assert again.code == 0, again.err
    assert lab.run.data.tags["base"] == "merged"


def store_of(finished: FinishedRun) -> str:
    return f"--tracking_uri=sqlite:///{finished.lab.folder}/mlruns/mlflow.db"


def test_a_stage_is_exported_with_a_card_of_what_it_had_learned(
    finished: FinishedRun, lab: Lab
) -> None:
    from huggingface_hub import ModelCard
    from peft import PeftModel

    run = finished.lab.run.info.run_name
    outcome = lab("export", f"{run}@first", "--out=first", store_of(finished))
    assert outcome.code == 0, outcome.err
    card = ModelCard.load(lab.folder / "first/README.md")
    assert card.data.library_name == "peft"
    assert card.data.license == "other"
    text = card.text
    assert "fine-tuned in the stages first by sft_lab" in text
    assert "| score | before | after first |" in text
    # Scripted gets 0 of 4 right before training, and 3 of 4 after the first stage.
    assert "| scripted/accuracy, % | 0.0 [0.0, 49.0] | 75.0 [30.1, 95.4] |" in text
    assert f"| math | world://data/math.jsonl | - | 24 | {digest(finished, 'math')} |" in text
    assert "python -m sft_lab fit --config run.yaml" in text
    assert parse_files([str(lab.folder / "first/run.yaml")], {}).run_name == "run k=1/4 seed 0"
    base = load_base("world://base", "fp32", torch.float32)
    PeftModel.from_pretrained(base, lab.folder / "first")


def digest(finished: FinishedRun, source: str) -> str:
    return str(finished.lab.json("record.json")["sources"][source]["digest"])


def test_gguf_needs_llama_cpp_and_uses_its_script(
    finished: FinishedRun, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("export", f"--ckpt_path={finished.lab.checkpoint}", "--what=gguf", "--out=g")
    monkeypatch.setenv("LLAMA_CPP", "nowhere")
    refused = lab(*arguments)
    assert refused.code == 2
    assert "LLAMA_CPP=nowhere has none" in refused.err
    assert "github.com/ggml-org/llama.cpp" in refused.err
    monkeypatch.setenv("LLAMA_CPP", ".")
    lab.write(
        "convert_hf_to_gguf.py",
        "import sys, pathlib\nfolder, *_, out = sys.argv[1:]\n"
        "assert (pathlib.Path(folder) / 'model.safetensors').exists()\n"
        "pathlib.Path(out).write_text('GGUF')\n",
    )
    outcome = lab(*arguments)
    assert outcome.code == 0, outcome.err
    assert {f.name for f in (lab.folder / "g").iterdir()} == {
        "README.md",
        "model.gguf",
        "run.yaml",
    }
    lab.write("convert_hf_to_gguf.py", "raise SystemExit('unknown architecture')\n")
    failed = lab(*arguments[:-1], "--out=h")
    assert failed.code == 2
    assert "convert_hf_to_gguf.py failed: unknown architecture" in failed.err
    assert not (lab.folder / "h").exists()


def test_an_upload_needs_a_login_and_is_private(
    finished: FinishedRun, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    done: list[Any] = []
    arguments = ("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=up")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    refused = lab(*arguments, "--push_to_hub=me/model")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--push_to_hub me/model: nobody is logged in; run hf auth login" in refused.err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(
            huggingface_hub.HfApi, name, lambda self, *names, **settings: done.append(settings)
        )
    assert lab(*arguments, "--push_to_hub=me/model").code == 0
    assert done[0] == {"private": True, "exist_ok": True}
    assert done[1]["repo_id"] == "me/model"


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight * torch.nan, "its weights hold NaN or infinity"),
        (lambda weight: weight[:, :1], "its weights do not match the base"),
        (None, "its weights do not match the base"),
    ],
)
def test_weights_that_are_not_those_of_a_run_are_refused(
    finished: FinishedRun, lab: Lab, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    checkpoint = read_checkpoint(finished.lab.checkpoint)
    weights = checkpoint.pop("state_dict")
    if change is not None:
        first, *others = weights
        changed = {first: change(weights[first]), **{name: weights[name] for name in others}}
        checkpoint["state_dict"] = changed
    monkeypatch.setattr("sft_lab.commands.trained_model.read_checkpoint", lambda path: checkpoint)
    outcome = lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=out")
    assert outcome.code == 2
    [line] = shown(outcome)
    assert said in line
    assert not (lab.folder / "out").exists()


def test_a_folder_or_run_that_is_not_there_is_refused_before_a_model_loads(
    finished: FinishedRun, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for load in ("load_trained", "load_stage"):
        monkeypatch.setattr(f"sft_lab.commands.trained_model.{load}", None)
    (lab.folder / "link").symlink_to("nowhere")
    outcome = lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=link")
    assert (outcome.code, outcome.err) == (
        2,
        "error: --out link already exists; choose a new folder.\n",
    )
    for run in ("", "@first"):  # as from a variable that is not set
        outcome = lab("export", run, "--out=out", store_of(finished))
        assert outcome.code == 2
        assert outcome.err.startswith("error: no run ''")


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

    monkeypatch.setattr("sft_lab.commands.trained_model.save_trained", fail)
    before = sorted(lab.folder.iterdir())
    with pytest.raises(OSError, match="No space left"):
        lab("export", f"--ckpt_path={finished.lab.checkpoint}", "--out=out")
    assert sorted(lab.folder.iterdir()) == before


@pytest.mark.parametrize("what", ["adapter", "merged"])
def test_an_exported_model_stops_where_its_template_ends_turns(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, make_tokenizer: Any, what: str
) -> None:
    from peft import PeftModel
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    # Like a Qwen base: documents end with its eos, and turns, in chatml, with another token.
    tokenizer = make_tokenizer(eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    base = lab.folder / "base"
    tokenizer.save_pretrained(base)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, eos_token_id=4, **sizes)
    )
    with torch.no_grad():  # the end of a turn follows everything
        model.lm_head.weight.zero_()
        model.lm_head.weight[end] = model.model.norm.weight
        model.model.embed_tokens.weight.copy_(torch.rand(len(tokenizer), 32))
    model.save_pretrained(base)
    overrides = {"model.base": str(base), "corpus.template": "chatml"}
    config = parse_files([str(lab.folder / "tiny.yaml")], overrides)
    trained = add_adapters(load_base(str(base), "fp32", torch.float32), Lora(r=4), seed=0)
    monkeypatch.setattr(
        "sft_lab.commands.trained_model.load_trained", lambda path: (trained, config)
    )
    monkeypatch.setattr("sft_lab.commands.trained_model.origin_of", lambda path: ("none", 1))
    lab.write("any", "")
    outcome = lab("export", "--ckpt_path=any", "--out=out", f"--what={what}")
    assert outcome.code == 0, outcome.err

    out = lab.folder / "out"
    chat = AutoTokenizer.from_pretrained(out)
    assert chat.eos_token == "<|im_end|>"
    prompt = chat.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    for settings in ({"generation_config": GenerationConfig.from_pretrained(out)}, {}):
        if what == "merged":
            loaded: Any = AutoModelForCausalLM.from_pretrained(out)
        else:
            plain = AutoModelForCausalLM.from_pretrained(base)
            loaded = PeftModel.from_pretrained(plain, out)
            settings = settings or {"eos_token_id": chat.eos_token_id}
        answer = loaded.generate(**prompt, max_new_tokens=9, do_sample=False, **settings)
        assert answer[0, prompt["input_ids"].shape[1] :].tolist() == [end]
    assert model.generation_config.eos_token_id == 4
