"""Draw the README's picture: the score of every ability over the steps of two runs.

sft-lab fit --config configs/world/sequential.yaml --evaluation.every_n_steps 40
sft-lab fit --config configs/world/dmt.yaml --evaluation.every_n_steps 40
python docs/figures/abilities.py "sequential seed 0" "dmt k=1/16 seed 0"
"""

import argparse
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from sft_lab.runs.results import RunResult, read_result
from sft_lab.runs.store import RunStore

COLOURS = {"world_math": "#0072b2", "world_code": "#c94f00", "world_general": "#00805d"}


def draw(axes: Axes, run: RunResult) -> None:
    """Draw one run: a line per ability with its 95 % interval, and the stages below."""
    for key in run.score_keys.values():
        name = key.partition("/")[0]
        points = [(p.step, p.scores[key]) for p in run.points if key in p.scores]
        steps = [step for step, _ in points]
        colour = COLOURS.get(name)
        low, high = ([100 * getattr(s, end) for _, s in points] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            steps,
            [100 * score.value for _, score in points],
            color=colour,
            marker="o",
            markersize=3.5,
            label=name.removeprefix("world_"),
        )
    start = 0
    for stage, end in zip(run.stages, accumulate(run.stages.values()), strict=True):
        axes.axvline(end, color="#9aa3af", linewidth=0.8, linestyle=":")
        axes.text((start + end) / 2, 104, stage, ha="center", color="#5a6472", fontsize=9)
        start = end
    axes.set(xlim=(0, start), ylim=(-3, 103), xlabel="optimizer steps")
    axes.set_title(run.name, fontsize=11, pad=20)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Read the runs by name and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--store", default="sqlite:///mlruns/mlflow.db")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".svg"))
    options = parser.parse_args()
    store = RunStore(options.store)
    # The same runs give the same file.
    mpl.rcParams.update({"svg.hashsalt": "abilities", "svg.fonttype": "path"})
    figure, panels = plt.subplots(
        1, len(options.runs), figsize=(10, 3.6), sharey=True, layout="constrained"
    )
    for axes, name in zip(panels, options.runs, strict=True):
        draw(axes, read_result(store, store.find(name)))
    panels[0].set_ylabel("right in any form, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(options.out, metadata={"Date": None} if options.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
