"""Compare runs that a real vLLM server answers with a run that the native engine answers.

    python tests/vllm_real.py --vllm ENV/bin/vllm [--items N] [--steps N]

The world's base in float32 is trained over three stages, and answers N items of each benchmark
before, between and after them: once by the native engine, once by the server, which sleeps between
evaluations. Greedy answers are compared one by one. Two more runs sample from the server with the
same seeds. The server is started here, on a CPU or a GPU, and ends with the script.
docs/generation.md has the recipe for the environment and what was seen. Exits with 1 if an answer
differs or adapters stay in the server.
"""

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sft_lab
from sft_lab.paths import resolve
from sft_lab.terminal import format_table

CONFIG = Path(__file__).parents[1] / "configs" / "world" / "sequential.yaml"
RANK = 32
BENCHMARKS = ("world_math", "world_code", "world_general")
STOP = {"evaluation.decoding.world_general.stop_strings": ["."]}
SAMPLED = {"evaluation.decoding.world_math": {"num_samples": 2, "temperature": 0.8, "top_p": 0.9}}


@contextmanager
def served(vllm: str, log: Path) -> Iterator[str]:
    """Start a server of the world's base and yield its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [vllm, "serve", resolve("world://base"), "--dtype", "float32", "--enforce-eager"]
    command += ["--enable-lora", "--max-lora-rank", str(RANK), "--generation-config", "vllm"]
    # vLLM 0.32 fails on a CPU where it splits the prompt of a sample that has a seed.
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384"]
    command += ["--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port)]
    environ = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1"}
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environ)
        try:
            for _ in range(600):
                if server.poll() is not None:
                    raise RuntimeError(f"vLLM has ended, see {log}")
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5)
                    break
                except OSError:
                    time.sleep(1)
            else:
                raise RuntimeError(f"vLLM is not ready after 10 minutes, see {log}")
            yield url
        finally:
            server.terminate()
            server.wait(60)


def get(url: str) -> Any:
    """Return a reply of the server's."""
    with urllib.request.urlopen(url, timeout=60) as reply:
        return json.load(reply)


def overrides(items: int, steps: int, folder: Path) -> dict[str, Any]:
    """Return the changes to the world's config: float32, few items, few steps, own record."""
    changes: dict[str, Any] = {
        "model.quantization": "fp32",
        "model.lora.r": RANK,
        "trainer.precision": "32-true",
        "trainer.accelerator": "cpu",
        "evaluation.weights": "live",
        "evaluation.split": None,
        **{f"data.stages.{stage}.max_steps": steps for stage in ("code", "math", "general")},
        **{f"data.stages.{stage}.epochs": None for stage in ("code", "math", "general")},
        **STOP,
    }
    for name in BENCHMARKS:
        rows = Path(resolve(f"world://data/{name}.jsonl")).read_text().splitlines(keepends=True)
        path = folder / f"{name}.jsonl"
        path.write_text("".join(rows[:items]))
        changes[f"evaluation.benchmarks.{name}.init_args.path"] = str(path)
    return changes


def same(one: sft_lab.LoadedRun, other: sft_lab.LoadedRun) -> tuple[int, int]:
    """Return how many answers of two runs are equal, and how many there are."""
    keys = ["step", "benchmark", "id", "sample"]
    both = one.answers().merge(other.answers(), on=keys, validate="one_to_one")
    if not len(both) == len(one.answers()) == len(other.answers()):
        raise RuntimeError("the runs did not answer the same prompts")
    return int((both["completion_x"] == both["completion_y"]).sum()), len(both)


def main() -> None:
    """Run the comparison and print it as a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vllm", required=True, help="the command vllm of its environment")
    parser.add_argument("--items", type=int, default=32, help="of each benchmark")
    parser.add_argument("--steps", type=int, default=40, help="of each stage")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vllm-real-"))
    changes = overrides(arguments.items, arguments.steps, folder)
    os.chdir(folder)  # the record of the runs
    native = sft_lab.fit(CONFIG, changes)
    with served(arguments.vllm, folder / "vllm.log") as url:
        version = get(f"{url}/version")["version"]
        changes |= {"evaluation.engine": "vllm", "evaluation.vllm.base_url": url}
        changes |= {"evaluation.vllm.sleep": True}
        greedy = sft_lab.fit(CONFIG, changes)
        changes |= {f"data.stages.{stage}.max_steps": 2 for stage in ("code", "math", "general")}
        sampled = [sft_lab.fit(CONFIG, changes | SAMPLED) for _ in range(2)]
        stays = [card["id"] for card in get(f"{url}/v1/models")["data"] if card.get("parent")]
        asleep = get(f"{url}/is_sleeping")["is_sleeping"]
    draws = sampled[0].answers().query("benchmark == 'world_math'")
    distinct = draws.groupby(["step", "id"])["completion"].nunique().gt(1).sum()
    rows = [
        ["greedy answers, native and vLLM", "{} of {} equal".format(*same(native, greedy))],
        ["answers of two vLLM runs, math sampled", "{} of {} equal".format(*same(*sampled))],
        ["prompts whose two samples differ", f"{distinct} of {len(draws) // 2}"],
        ["distinct answers of the native run", f"{native.answers()['completion'].nunique()}"],
        ["adapters left in the server", str(len(stays))],
        ["the server sleeps at the end", "yes" if asleep else "no"],
    ]
    print(f"vLLM {version}; {folder}")
    print(format_table(["what", "found"], rows))
    unequal = any(len(set(same(*pair))) > 1 for pair in ((native, greedy), sampled))
    raise SystemExit(int(unequal or bool(stays) or not asleep))


if __name__ == "__main__":
    main()
