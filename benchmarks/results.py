"""Results: rounds as they were measured, medians, and medians of ratios."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
    path.write_text(json.dumps(results, indent=1) + "\n")
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


def median_of(
    measurements: Iterable[Measurement], peer: str, variant: str, metric: str
) -> float | None:
    """Return the median over rounds, None if it was not measured."""
    found = values(measurements, peer, variant, metric)
    return median(found.values()) if found else None


def ratio_of(
    measurements: Iterable[Measurement], peer: str, other: str, variant: str, metric: str
) -> float | None:
    """Return the median over rounds of `peer` ÷ `other` within the same round.

    What disturbs the machine disturbs both of a round, so a ratio within it is worth more than the
    ratio of two medians.
    """
    measurements = list(measurements)
    ours, theirs = (values(measurements, name, variant, metric) for name in (peer, other))
    ratios = [ours[r] / theirs[r] for r in ours if r in theirs and theirs[r] > 0]
    return median(ratios) if ratios else None
