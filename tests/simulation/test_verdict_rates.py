"""Simulate verdicts: their rates of false findings, coverage and power.

Runs of two arms answer the same items, which differ in difficulty and come in clusters. An arm's
runs differ by their seed: their expected scores are normal around the arm's, with the given
standard deviation. The verdicts are those of a report with this one test; the correction over more
tests only makes wrong ones rarer. The table in ``docs/studies.md`` is the output of
``python tests/simulation/test_verdict_rates.py 1000``.
"""

import sys
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from sft_lab.analysis.abilities import Ability
from sft_lab.analysis.measurements import Comparison
from sft_lab.analysis.verdicts import DIRECTIONS, verdict
from sft_lab.metrics.equivalence import MARGIN, equivalence_p
from sft_lab.metrics.paired import paired_over_seeds

ITEMS, CLUSTERS = 200, 150
OF_CLUSTERS, OF_ITEMS = 1.0, 0.7  # standard deviations of difficulty, in units of an answer's noise
ABILITY = Ability("math", "world_math/accuracy", source="math")
DEVIATIONS = (0.0, 0.03, 0.06, 0.20)
EFFECTS = (0.05, 0.10, 0.20)


def rates(effect: float, deviation: float, num_seeds: int, draws: int) -> dict[str, float]:
    """Return the share of draws with each verdict, and how often the interval covers the effect."""
    rng = np.random.default_rng([round(1000 * effect), round(1000 * deviation), num_seeds])
    clusters = np.arange(ITEMS) % CLUSTERS
    spread = np.sqrt(1 + OF_CLUSTERS**2 + OF_ITEMS**2)
    counts: Counter[str] = Counter()
    for _ in range(draws):
        hard = rng.normal(0, OF_CLUSTERS, CLUSTERS)[clusters] + rng.normal(0, OF_ITEMS, ITEMS)
        sides = []
        for level in (0.5 - effect / 2, 0.5 + effect / 2):
            scores = np.clip(rng.normal(level, deviation, num_seeds), 0.02, 0.98)
            latent = spread * stats.norm.ppf(scores)[:, None] - hard
            sides.append((rng.normal(size=latent.shape) < latent).astype(float).tolist())
        found = paired_over_seeds(*sides, clusters=clusters.tolist())
        comparison = Comparison(
            "",
            ABILITY,
            "a",
            "b",
            found,
            p_holm=found.p,
            p_equivalent=equivalence_p(found, MARGIN),
            seeds=(num_seeds, num_seeds),
        )
        for direction in DIRECTIONS:
            counts[direction] += verdict(direction, [comparison]) == "supported"
        counts["covered"] += found.low <= effect <= found.high
    return {name: counts[name] / draws for name in ("higher", "lower", "same", "covered")}


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_verdicts_are_seldom_wrong(deviation: float, num_seeds: int) -> None:
    draws = 100
    limit = stats.binom.ppf(0.9999, draws, 0.05) / draws  # 14 of 100: one failure in 10,000
    null = rates(0.0, deviation, num_seeds, draws)
    assert null["higher"] + null["lower"] <= limit
    assert null["covered"] >= 1 - limit
    assert rates(MARGIN, deviation, num_seeds, draws)["same"] <= limit


@pytest.mark.slow
def test_a_great_effect_is_found() -> None:
    assert rates(0.20, 0.03, 5, draws=50)["higher"] >= 0.9


def main(draws: int) -> None:
    """Print the table of the documentation."""
    percent = "{:.1f}".format
    header = ["seed deviation", "seeds", "false supported", "coverage", "false no effect"]
    header += ["no effect, none there", *(f"power, {100 * effect:g} points" for effect in EFFECTS)]
    rows = []
    for deviation in DEVIATIONS:
        for num_seeds in (3, 5):
            null = rates(0.0, deviation, num_seeds, draws)
            margin = rates(MARGIN, deviation, num_seeds, draws)
            great = [rates(effect, deviation, num_seeds, draws) for effect in EFFECTS[1:]]
            shares = [null["higher"] + null["lower"], null["covered"], margin["same"]]
            shares += [null["same"], *(found["higher"] for found in (margin, *great))]
            cells = [percent(100 * share) for share in shares]
            rows.append([f"{100 * deviation:g} points", str(num_seeds), *cells])
    for row in (header, ["---"] * len(header), *rows):
        sys.stdout.write(f"| {' | '.join(row)} |\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
