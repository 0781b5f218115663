"""A tiny random base, a tiny world around it, and four-line data sets; all made once a session."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Two pools of threads on the same cores would spin against each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Output is that of a pipe, whatever the width of the terminal.
os.environ.pop("COLUMNS", None)

# Fixtures: the command line, a cache of the hub, a judge, a stand-in for vLLM, ways to isolate
# programs.
pytest_plugins = ["tiny_lab", "hub_cache", "study_runs", "judge_server", "vllm_server", "sandboxes"]


# Longest first. A file is run by one process, so a long one begun last would leave the others idle.
LONG_FILES = (
    "test_two_ranks.py",
    "test_sharded_ranks.py",
    "test_study.py",
    "test_kill_and_resume.py",
    "test_report.py",
    "test_configs.py",
    "test_fork.py",
    "test_resume.py",
    "test_cluster.py",
    "test_real_files.py",
    "test_job.py",
    "test_forgetting_guard.py",
    "test_extensions.py",
    "test_build.py",
    "test_run_cost.py",
    "test_training_seams.py",
    "test_sandbox_verdicts.py",
    "test_sandbox.py",
    "test_study_commands.py",
    "test_vllm_engine.py",
    "test_compare.py",
    "test_gpu.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: index for index, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection() -> None:
    gc.disable()  # imports leave a million objects and next to no garbage


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later garbage collections."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tokenised rows of tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORLD_SOURCES = ("math", "code", "general")
WORLD_ROWS = 24
WORLD_ITEMS = 4


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }


def byte_tokenizer(**changes: Any) -> Any:
    """Return a tokenizer with one token a byte, and <user>, <assistant>, <system>, <end>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<system>", "<user>", "<assistant>", "<end>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate([*names, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    special = {"pad_token": "<pad>", "eos_token": "<end>", **changes}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Makes a tokenizer with one token a byte and no chat template; takes special tokens."""
    return byte_tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """The tiny base's tokenizer: <user>Hi<end><assistant>Yo<end> is 8 tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> Path:
    """A folder in Hugging Face format: a random Llama of 40 k parameters and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "base"
    tokenizer = chat_tokenizer
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_world_data(data: Path, num_rows: int, num_items: int) -> None:
    """Write data/<source>.jsonl and data/world_<source>.jsonl of a folder for SFT_LAB_WORLD."""
    for source in WORLD_SOURCES:
        rows = [chat(f"{source}: what is {n} plus {n}?", f"#### {2 * n}") for n in range(num_rows)]
        write_jsonl(data / f"{source}.jsonl", rows)
        items = [
            {
                "id": f"{source}/{n}",
                "messages": [{"role": "user", "content": f"{source}: what is {n} plus 1?"}],
                "answer": str(n + 1),
                "prompt": "def f():\n",
                "entry_point": "f",
                "canonical_solution": f"    return {n}",
                "test": f"def check(f):\n    assert f() == {n}\n",
                "rule": {"form": "words", "words": [str(n)], "among": [str(n)]},
            }
            for n in range(num_items)
        ]
        write_jsonl(data / f"world_{source}.jsonl", items)


@pytest.fixture(scope="session")
def tiny_world(tiny_base: Path) -> Path:
    """A folder for SFT_LAB_WORLD: base/, data/<source>.jsonl and data/world_<source>.jsonl."""
    write_world_data(tiny_base.parent / "data", WORLD_ROWS, WORLD_ITEMS)
    return tiny_base.parent


@pytest.fixture
def four_rows(tmp_path: Path) -> Path:
    """A JSONL file of four conversations of 18, 17, 16 and 15 tokens."""
    rows = [chat("What is 1+1?"[: 12 - n], str(n) * 2) for n in range(4)]
    return write_jsonl(tmp_path / "four.jsonl", rows)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Paths of real data, which lie beside the checkout or where SFT_LAB_SHARED points."""
    root = Path(os.environ.get("SFT_LAB_SHARED") or Path(__file__).parents[2] / "shared")

    def find(name: str) -> Path:
        path = root / "data" / name
        if not path.is_file():
            pytest.skip(f"no {path}; set SFT_LAB_SHARED to the folder that holds data/")
        return path

    return find
