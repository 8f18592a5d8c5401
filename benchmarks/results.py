"""Results: rounds as they were measured, medians, and ratios with what is known of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from .install import HERE

RESULTS = HERE / "results"


class Measurement(TypedDict):
    """One run of the load generator. `variant` is what a case varies: "16 in flight"."""

    round: int
    peer: str
    variant: str
    report: dict[str, Any]


class Results(TypedDict):
    """A results file."""

    case: str
    parameters: dict[str, Any]
    machine: dict[str, str]
    versions: dict[str, str]
    measurements: list[Measurement]


def load(case: str, folder: Path = RESULTS) -> Results | None:
    """Return a case's results, None if it has not been run."""
    path = folder / f"{case}.json"
    if not path.is_file():
        return None
    results: Results = json.loads(path.read_text())
    return results


def save(results: Results, folder: Path = RESULTS) -> Path:
    """Write a case's results."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results['case']}.json"
    head = json.dumps({**results, "measurements": []}, indent=1).removesuffix("]\n}")
    # There are hundreds: a line for each.
    lines = ",\n".join(f"  {json.dumps(one)}" for one in results["measurements"])
    path.write_text(f"{head}\n{lines}\n ]\n}}\n")
    return path


def variants(measurements: Iterable[Measurement]) -> list[str]:
    """Return the variants in the order in which they were measured."""
    return list(dict.fromkeys(m["variant"] for m in measurements))


def peers(measurements: Iterable[Measurement]) -> list[str]:
    """Return the peers in the order in which they were measured."""
    return list(dict.fromkeys(m["peer"] for m in measurements))


def values(
    measurements: Iterable[Measurement], peer: str, variant: str, metric: str
) -> Mapping[int, float]:
    """Return a metric by round."""
    return {
        m["round"]: float(m["report"][metric])
        for m in measurements
        if m["peer"] == peer and m["variant"] == variant and metric in m["report"]
    }


def common(results: Results) -> list[Measurement]:
    """Return what was measured in the rounds that all peers had their part in: figures that stand
    side by side are made of these. A ratio is made of all the rounds that both of its peers had."""
    repeat = results["parameters"]["repeat"]
    return [m for m in results["measurements"] if m["round"] < repeat]


def median_of(
    measurements: Iterable[Measurement], peer: str, variant: str, metric: str
) -> float | None:
    """Return the median over rounds, None if it was not measured."""
    found = values(measurements, peer, variant, metric)
    return median(found.values()) if found else None


def ratios_of(
    measurements: Iterable[Measurement], peer: str, other: str, variant: str, metric: str
) -> list[float]:
    """Return `peer` ÷ `other` for each round that both were measured in.

    What disturbs the machine disturbs both of a round, so a ratio within it is worth more than the
    ratio of two medians.
    """
    measurements = list(measurements)
    ours, theirs = (values(measurements, name, variant, metric) for name in (peer, other))
    return [ours[r] / theirs[r] for r in ours if theirs.get(r, 0) > 0]


def median_interval(sample: Iterable[float]) -> tuple[float, float] | None:
    """Return a confidence interval of at least 95 % for the median; None of fewer than 6 values.

    It assumes nothing of how the values are distributed: each lies on either side of the true
    median with the same chance, so how many do is binomial, and the interval ends at two of the
    values (Conover, Practical Nonparametric Statistics, section 3.2).
    """
    ordered = sorted(sample)
    outside, beyond = 0, 0.0
    while (beyond := beyond + comb(len(ordered), outside) / 2 ** len(ordered)) <= 0.025:
        outside += 1
    return (ordered[outside - 1], ordered[-outside]) if outside else None
