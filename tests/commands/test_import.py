"""Configs of axolotl and LLaMA-Factory, in the form of their own examples."""

import json
from pathlib import Path

import pytest
from tiny_lab import Lab

from sft_lab.launch.parser import parse

AXOLOTL = """
base_model: NousResearch/Meta-Llama-3-8B-Instruct
model_type: LlamaForCausalLM
load_in_8bit: true
load_in_4bit: false
chat_template: llama3
datasets:
  - path: fozziethebeat/alpaca_messages_2k_test
    type: chat_template
    field_messages: messages
    roles: {user: [user]}
  - path: data/rows.jsonl
    type: alpaca
    shards: 3
dataset_prepared_path:
val_set_size: 0.05
sequence_len: 4096
sample_packing: true
adapter: lora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
gradient_checkpointing: true
warmup_steps: 10
weight_decay: 0.0
"""
LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
quantization_bit: 4
dataset: identity, alpaca_en
template: qwen3_nothink
cutoff_len: 1024
max_samples: 1000
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: linear
warmup_ratio: 0.1
"""
INFO = {
    "identity": {"file_name": "identity.json"},
    "alpaca_en": {"hf_hub_url": "llamafactory/alpaca_en", "columns": {"prompt": "instruction"}},
}


def test_an_axolotl_config_becomes_a_run(lab: Lab) -> None:
    lab.write("axolotl.yml", AXOLOTL)
    outcome = lab("import", "axolotl.yml", "--out=run.yaml")
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines() == [
        "left out: datasets[0].roles: {'user': ['user']}",
        "left out: datasets[1].shards: 3",
        "left out: model_type: LlamaForCausalLM",
        "left out: val_set_size: 0.05",
        "left out: warmup_steps: 10",
    ]
    config = parse([f"--config={lab.folder / 'run.yaml'}"]).plain
    model, corpus, data = config["model"], config["corpus"], config["data"]
    assert model["base"] == "NousResearch/Meta-Llama-3-8B-Instruct"
    assert (model["quantization"], model["gradient_checkpointing"]) == ("int8", True)
    lora = {"r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"}
    assert model["lora"].items() >= lora.items()
    assert (corpus["template"], corpus["max_length"]) == ("llama3", 4096)
    formats = {name: (s["path"], s["format"]) for name, s in corpus["sources"].items()}
    assert formats == {
        "alpaca_messages_2k_test": ("fozziethebeat/alpaca_messages_2k_test", None),
        "rows": ("data/rows.jsonl", "alpaca"),
    }
    assert (data["batch_size"], data["micro_batch_size"], data["packing"]) == (8, 2, True)
    stage = data["stages"]["all"]
    assert (stage["epochs"], stage["lr"], stage["lr_schedule"]) == (4, 2e-4, "cosine")


def test_a_llama_factory_config_becomes_a_run(lab: Lab) -> None:
    lab.write("sft.yaml", LLAMA_FACTORY)
    refused = lab("import", "sft.yaml")
    assert refused.code == 2
    assert "dataset_dir: no data/dataset_info.json" in refused.err
    (lab.folder / "data").mkdir()
    lab.write("data/dataset_info.json", json.dumps(INFO))
    outcome = lab("import", "sft.yaml")
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines() == [
        "left out: dataset_info.alpaca_en.columns: {'prompt': 'instruction'}",
        "left out: trust_remote_code: True",
        "left out: template: qwen3_nothink",
        "left out: max_samples: 1000",
    ]
    config = parse([f"--config={lab.write('run.yaml', outcome.out)}"]).plain
    assert config["model"]["quantization"] == "nf4"
    assert (
        config["model"]["lora"].items()
        >= {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "v_proj"],
        }.items()
    )
    paths = {name: source["path"] for name, source in config["corpus"]["sources"].items()}
    assert paths == {"identity": "data/identity.json", "alpaca_en": "llamafactory/alpaca_en"}
    assert (config["data"]["batch_size"], config["data"]["micro_batch_size"]) == (8, 1)
    stage = config["data"]["stages"]["all"]
    assert (stage["epochs"], stage["lr"], stage["warmup_ratio"]) == (3, 1e-4, 0.1)


@pytest.mark.parametrize(
    ("of", "keys", "adapters"),
    [
        (
            AXOLOTL,
            "peft_use_dora: true\npeft_use_rslora: false\nlora_modules_to_save: [lm_head]",
            ("peft.LoraConfig", {"r": 32, "use_dora": True, "modules_to_save": ["lm_head"]}),
        ),
        (
            LLAMA_FACTORY.replace("quantization_bit: 4\n", ""),
            "use_rslora: true\npissa_init: true\nadditional_target: embed_tokens,lm_head",
            (
                "peft.LoraConfig",
                {
                    "lora_alpha": 16,
                    "use_rslora": True,
                    "init_lora_weights": "pissa",
                    "modules_to_save": ["embed_tokens", "lm_head"],
                },
            ),
        ),
        (
            LLAMA_FACTORY.replace("type: lora", "type: oft").replace("lora_", "oft_"),
            "module_dropout: 0.1",
            ("peft.OFTConfig", {"r": 8, "module_dropout": 0.1, "oft_block_size": 0}),
        ),
    ],
)
def test_adapters_beyond_lora_become_those_of_peft(
    lab: Lab, of: str, keys: str, adapters: tuple[str, dict[str, object]]
) -> None:
    (lab.folder / "data").mkdir()
    lab.write("data/dataset_info.json", json.dumps(INFO))
    lab.write("sft.yaml", of + keys)
    outcome = lab("import", "sft.yaml")
    assert outcome.code == 0, outcome.err
    assert not any(key.split(":")[0] in outcome.err for key in keys.splitlines())
    model = parse([f"--config={lab.write('run.yaml', outcome.out)}"]).plain["model"]
    assert model["lora"] is None
    assert model["peft"]["class_path"] == adapters[0]
    assert model["peft"]["init_args"].items() >= adapters[1].items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "neither base_model (axolotl) nor model_name_or_path (LLaMA-Factory) is a key"),
        ("a: [", "cannot be read as YAML"),
        ("base_model: x\nrl: dpo", "rl: dpo is no supervised fine-tuning"),
        ("base_model: x\nadapter: lora", "datasets names no data set to train on"),
        ("model_name_or_path: x\nstage: dpo", "stage: dpo is no supervised fine-tuning (sft)"),
        (
            "model_name_or_path: x\nfinetuning_type: freeze",
            "expected lora, oft, full, got 'freeze'",
        ),
        ("base_model: x\ndatasets: {a: b}", "datasets: expected a list, got {'a': 'b'}"),
        ("base_model: x\ndatasets: [1]", "datasets[0]: expected keys and values, got 1"),
        # It would be read from the environment, and sent to the hub as the base's name.
        (
            "base_model: x/${oc.env:TOKEN}\ndatasets: [{path: a}]",
            "import: base_model: in a run's config, ${...} refers to another key",
        ),
        ("base_model: x\ndatasets: [{path: '${a}'}]", "import: datasets: in a run's config"),
    ],
)
def test_what_cannot_be_imported_is_refused(lab: Lab, text: str, message: str) -> None:
    lab.write("other.yaml", text)
    outcome = lab("import", "other.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_numbers_that_are_none_are_left_out(lab: Lab) -> None:
    rest = "num_epochs: .inf\nlearning_rate: fast\nwarmup_ratio: .nan\nweight_decay: '1e-2'\n"
    rest += "adapter: lora\nlora_r: sixteen\npeft_use_dora: 'yes'\n"
    lab.write("odd.yaml", f"base_model: x\ndatasets: [{{path: a.jsonl, type: alpaca}}]\n{rest}")
    outcome = lab("import", "odd.yaml")
    assert outcome.code == 0
    assert outcome.err.splitlines() == [
        "left out: num_epochs: inf",
        "left out: learning_rate: fast",
        "left out: warmup_ratio: nan",
        "left out: lora_r: sixteen",
        "left out: peft_use_dora: yes",
    ]
    assert "weight_decay: 0.01" in outcome.out


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 3}'])
def test_a_list_of_data_sets_that_is_none_is_named(lab: Lab, content: str) -> None:
    (lab.folder / "data").mkdir()
    lab.write("data/dataset_info.json", content)
    lab.write("sft.yaml", "model_name_or_path: x\ndataset: a")
    outcome = lab("import", "sft.yaml")
    assert outcome.code == 2
    assert "dataset_info" in outcome.err


def test_a_file_that_is_not_there_is_named(tmp_path: Path, lab: Lab) -> None:
    assert "nowhere.yml: cannot be read as YAML" in lab("import", "nowhere.yml").err
