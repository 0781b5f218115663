"""Answer with llama.cpp from an exported GGUF file, as the run did. Needs llama.cpp; skips without.

    pip install llama-cpp-python
    LLAMA_CPP=FOLDER python -m pytest tests/commands/test_gguf.py

FOLDER has llama.cpp's converter; the source distribution of llama-cpp-python contains it, below
``vendor/llama.cpp``.
"""

import json
import os
from pathlib import Path

import pytest

import sft_lab
from sft_lab.commands.main import main
from sft_lab.paths import resolve

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = f"""
model: {{base: "world://base", quantization: fp32, lora: {{r: 32, lora_alpha: 64}}}}
trainer: {CONFIGS}/trainer.yaml
corpus: {CONFIGS}/world/corpus.yaml
data: {{stages: {{math: {{mixture: {{math: 1}}, max_steps: 20, lr: 2e-3}}}}}}
evaluation:
  benchmarks:
    world_math:
      class_path: sft_lab.evaluation.benchmarks.world.WorldMath
      init_args: {{path: items.jsonl, source: math, max_new_tokens: 44}}
"""
F32 = 0  # GGML_TYPE_F32, for keys and values; llama.cpp's default is float16

# The converter knows tokenizers by a digest. The world's splits text as SmolLM's does.
AS_SMOLLM = """
import runpy, sys
sys.path[:0] = [{folder!r}, {folder!r} + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
runpy.run_path({folder!r} + "/convert_hf_to_gguf.py", run_name="__main__")
"""


@pytest.mark.slow
def test_llama_cpp_gives_the_answers_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = os.environ.get("LLAMA_CPP")
    if not folder:
        pytest.skip("LLAMA_CPP names no folder with convert_hf_to_gguf.py")
    monkeypatch.chdir(tmp_path)
    lines = Path(resolve("world://data/world_math.jsonl")).read_text().splitlines()[:20]
    Path("items.jsonl").write_text("\n".join(lines))
    Path("run.yaml").write_text(CONFIG)
    run = sft_lab.fit("run.yaml", {"trainer.accelerator": "cpu", "trainer.precision": "32-true"})
    Path("as_smollm").mkdir()
    Path("as_smollm/convert_hf_to_gguf.py").write_text(AS_SMOLLM.format(folder=folder))
    monkeypatch.setenv("LLAMA_CPP", "as_smollm")
    assert main(["export", run.run_id, "--what=gguf", "--out=made"]) == 0
    model = llama_cpp.Llama("made/model.gguf", n_ctx=512, type_k=F32, type_v=F32, verbose=False)

    def answer(line: str) -> str:
        questions = [
            {key: turn[key] for key in ("role", "content")}
            for turn in json.loads(line)["messages"]
            if turn["role"] != "assistant"
        ]
        reply = model.create_chat_completion(questions, temperature=0, max_tokens=44)
        return str(reply["choices"][0]["message"]["content"])

    expected = list(run.answers(20)["completion"])
    assert [answer(line) for line in lines] == expected
    assert len(set(expected)) > 10
