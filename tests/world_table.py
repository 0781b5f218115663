"""Run the embedded world's strategies over seeds and print tables of their scores.

    python tests/world_table.py --seeds 0 1 2
    python tests/world_table.py --seeds 0 1 2 --study order
    python tests/world_table.py --seeds 0 1 2 --study guard

Runs that are already finished in the store are not repeated. Scores are those at a run's end, in
percent, as mean [least, greatest] over the seeds; retention is that score over the best before.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from sft_lab.runs.store import RunStore

STORE = "sqlite:///mlruns/mlflow.db"
REPLAY = "--data.k=1/64"
STUDIES: dict[str, list[tuple[str, list[str]]]] = {
    "strategies": [
        ("sequential", []),
        ("mixed_sequential", []),
        ("dmt", [REPLAY]),
        ("dmt", ["--data.k=1/16"]),
    ],
    # Shows why sources are spread evenly: the same rows in orders that may cluster them.
    "order": [
        ("dmt", [REPLAY]),
        ("dmt", [REPLAY, "--data.order=random"]),
        ("dmt", [REPLAY, "--data.order=length"]),
    ],
    # Compares fixed shares with those that the guard adapts.
    "guard": [("dmt", [REPLAY]), ("dmt", ["--data.k=1/16"]), ("guarded", [])],
}
SCORES = {
    "math": "world_math/format_free",
    "code": "world_code/format_free",
    "general": "world_general/format_free",
}


def run_name(strategy: str, overrides: Sequence[str], seed: int) -> str:
    """Return the name of a run, by default the one that the run gives itself."""
    changed = "".join(f" {override.removeprefix('--data.')}" for override in overrides)
    return f"{strategy}{changed} seed {seed}"


def finished(store: RunStore) -> dict[str, Any]:
    """Return the newest finished run of each name."""
    runs = [run for run in store.runs() if run.info.status == "FINISHED"]
    return {run.info.run_name: run for run in reversed(runs)}


def spread(values: Sequence[float | None], scale: float, digits: int) -> str:
    """Return mean [least, greatest], or a dash if no seed has a value."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    return f"{mean:.{digits}f} [{min(known):.{digits}f}, {max(known):.{digits}f}]"


def best(store: RunStore, run: Any, key: str) -> float:
    """Return the best score of a run."""
    return max(p.value for p in store.client.get_metric_history(run.info.run_id, key))


def main() -> None:
    """Complete the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--study", choices=STUDIES, default="strategies")
    options = parser.parse_args()
    study = STUDIES[options.study]
    for strategy, overrides in study:
        for seed in options.seeds:
            name = run_name(strategy, overrides, seed)
            if name not in finished(RunStore(STORE)):
                command = [sys.executable, "-m", "sft_lab", "fit"]
                command += ["--config", f"configs/world/{strategy}.yaml"]
                command += [*overrides, f"--seed_everything={seed}"]
                command += [f"--trainer.logger.init_args.run_name={name}"]
                subprocess.run(command, check=True, stdout=sys.stderr)
    store = RunStore(STORE)
    runs = finished(store)
    print("| run | " + " | ".join(SCORES) + " | best math | best code | math kept | code kept |")
    print("|---" * (len(SCORES) + 5) + "|")
    for strategy, overrides in study:
        found = [runs[run_name(strategy, overrides, seed)] for seed in options.seeds]
        last = [run.data.metrics for run in found]
        cells = [spread([m[key] for m in last], 100, 0) for key in SCORES.values()]
        for name in ("math", "code"):
            cells.append(spread([best(store, run, SCORES[name]) for run in found], 100, 0))
        for name in ("math", "code"):
            cells.append(spread([m.get(f"retention/{name}") for m in last], 1, 2))
        print(f"| {strategy} {' '.join(overrides)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
