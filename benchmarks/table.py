"""Tables for docs/performance.md, made from the results files and put between markers."""

from __future__ import annotations

import re
from pathlib import Path

from .cases import CASES, Case, Metric
from .chart import IMAGES, format_value, label_of
from .install import ROOT
from .results import (
    RESULTS,
    Measurement,
    Results,
    load,
    median_of,
    peers,
    ratio_of,
    values,
    variants,
)

PAGE = ROOT / "docs" / "performance.md"
MARKERS = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def metric_table(measurements: list[Measurement], metric: Metric) -> str:
    """Return a table of medians; behind a peer's figure how many times ours is better."""
    columns = [
        variant
        for variant in variants(measurements)
        if any(values(measurements, peer, variant, metric.key) for peer in peers(measurements))
    ]
    if not columns:
        return ""
    ours = peers(measurements)[0]
    lines = [
        f"| {metric.title} | " + " | ".join(columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for peer in peers(measurements):
        cells = []
        for variant in columns:
            value = median_of(measurements, peer, variant, metric.key)
            cell = "–" if value is None else format_value(value, metric)
            ratio = ratio_of(measurements, ours, peer, variant, metric.key)
            if peer != ours and ratio:
                better = ratio if metric.higher_is_better else 1 / ratio
                cell += f" (×{better:.2f})"
            cells.append(cell)
        lines.append(f"| {label_of(peer)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def case_section(case: Case, results: Results | None) -> str:
    """Return everything between a case's markers."""
    if results is None:
        return "\nNot measured yet.\n\n"
    measurements = results["measurements"]
    parts = [table for m in case.metrics if (table := metric_table(measurements, m))]
    machine, parameters = results["machine"], results["parameters"]
    rounds = len({m["round"] for m in measurements})
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    parts.append(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, "
        f"Linux {machine['kernel']}; "
        f"{rounds} round{'s' if rounds != 1 else ''} of {parameters['seconds']:g} s after "
        f"{parameters['warmup']:g} s. {versions}.\n"
    )
    bound = sorted(
        {
            f"{label_of(m['peer'])} ({m['variant']})"
            for m in measurements
            if m["report"].get("generator_bound")
        }
    )
    if bound and case.name != "generator":
        parts.append(f"The load generator, not the server, was the limit of: {', '.join(bound)}.\n")
    reordered = sorted({label_of(m["peer"]) for m in measurements if m["report"].get("reordered")})
    if reordered:
        parts.append(f"Delivered out of order, in part: {', '.join(reordered)}.\n")
    disturbed = sum(1 for m in measurements if m["report"].get("disturbed"))
    if disturbed:
        parts.append(
            f"Something else ran beside the server or the generator during {disturbed} of "
            f"{len(measurements)} measurements: these figures are not to be relied on.\n"
        )
    if case.chart and (IMAGES / f"{case.name}.svg").is_file():
        parts.append(f"![{case.summary}](images/{case.name}.svg)\n")
    return "\n" + "\n".join(parts) + "\n"


def fill(text: str, folder: Path = RESULTS) -> str:
    """Return `text` with each pair of markers filled from the results.

    Raises:
        KeyError: a marker names no case.
    """

    def section(match: re.Match[str]) -> str:
        return match[1] + case_section(CASES[match[2]], load(match[2], folder)) + match[3]

    return MARKERS.sub(section, text)
