"""Runs whose adapters are given in PEFT's own words, by the command line."""

from pathlib import Path

import pytest
import torch
from tiny_lab import Lab

from sft_lab.commands.trained_model import load_stage, load_trained
from sft_lab.runs.stages import find_stage

# DoRA on the layers, a copy of the last norm, and two tokens that were added to tied embeddings.
PEFT = """
model:
  base: enlarged
  lora: null
  peft:
    class_path: peft.LoraConfig
    init_args:
      r: 2
      use_dora: true
      target_modules: all-linear
      modules_to_save: [norm]
      trainable_token_indices: [261, 262]
corpus: {template: chatml}
evaluation: {every_n_steps: null}
trainer: {log_every_n_steps: 1}
data:
  stages: {first: {epochs: null, max_steps: 3}, second: {epochs: null, max_steps: 3}}
"""
IDS = torch.tensor([[*range(30, 40), 261, 262], [262, *range(50, 60), 261]])


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.fixture(autouse=True)
def world(tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_LAB_WORLD", str(tiny_world))


def enlarge(base: Path, out: Path) -> None:
    """Add ChatML's two tokens to a base, as docs/configuration.md says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(out)


def test_a_run_of_dora_with_added_tokens_forks_and_exports(
    lab: Lab, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.folder)
    lab.write("peft.yaml", PEFT)
    enlarge(tiny_base, lab.folder / "enlarged")
    config = "--config=peft.yaml"
    whole = lab.fit(config)
    assert whole.code == 0, whole.err
    run_id = lab.run.info.run_id
    losses = lab.points("train_loss/all", run_id)
    forked = lab.fit(config, f"--from={run_id}@first")
    assert forked.code == 0, forked.err
    [fork] = [run for run in lab.runs if run.info.run_id != run_id]
    # From the checkpoint of the first stage the fork trains what the run did.
    assert lab.points("train_loss/all", fork.info.run_id) == losses
    checkpoint = lab.folder / "mlruns/checkpoints" / run_id / "last.ckpt"
    live = logits(load_trained(checkpoint)[0])
    stage = find_stage(lab.store, f"{run_id}@second")
    assert torch.equal(logits(load_stage(lab.store, stage)[0]), live)
    exported = lab("export", f"{run_id}@second", "--out=merged", "--what=merged")
    assert exported.code == 0, exported.err
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(lab.folder / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), live, rtol=1e-4, atol=1e-4)
    trained = merged.get_input_embeddings().weight
    added = AutoModelForCausalLM.from_pretrained(lab.folder / "enlarged").get_input_embeddings()
    is_changed = (trained != added.weight).any(dim=1)
    assert is_changed.nonzero().flatten().tolist() == [261, 262]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.peft.class_path=peft.IA3Config"],
            "model.lora and model.peft both describe the adapters; set model.lora to null",
        ),
        (
            ["--config=peft.yaml", "--model.peft.init_args.use_dorra=true"],
            "unknown key 'model.peft.init_args.use_dorra'; did you mean",
        ),
        (
            ["--config=peft.yaml", "--model.peft.init_args.target_modules=[query]"],
            "No modules were targeted for adaptation.",
        ),
        (
            ["--config=peft.yaml", "--model.peft.class_path=peft.PromptTuningConfig"],
            "peft.PromptTuningConfig: it adds to the input of the model, and the lab trains what",
        ),
        (
            ["--config=peft.yaml", "--model.peft.class_path=peft.LoraConfi"],
            "PEFT has no config class peft.LoraConfi (did you mean 'LoraConfig'?); name one",
        ),
        (
            ["--config=peft.yaml", "--data.stages.second.hand_over=NewAdapter"],
            "NewAdapter needs the LoRA adapters of model.lora, which is null",
        ),
        (
            [
                "--config=peft.yaml",
                "--model.quantization=nf4",
                "--model.peft.init_args.init_lora_weights=pissa",
            ],
            "pissa changes the base's weights, which are in nf4; set model.quantization",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused_before_anything_is_written(
    lab: Lab, arguments: list[str], message: str
) -> None:
    text = PEFT.replace("base: enlarged", "").replace("corpus: {template: chatml}", "")
    lab.write("peft.yaml", text)
    refused = lab.fit(*arguments)
    assert refused.code == 2
    assert message in refused.err
    assert len(refused.err.strip().splitlines()) <= 2
    assert not (lab.folder / "mlruns").exists()
