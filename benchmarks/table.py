"""Tables for docs/performance.md, made from the results files and put between markers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from .cases import CASES, Case, Metric
from .chart import IMAGES, format_value, label_of
from .install import ROOT
from .results import (
    RESULTS,
    Results,
    common,
    load,
    median_interval,
    median_of,
    peers,
    ratios_of,
    values,
    variants,
)

PAGE = ROOT / "docs" / "performance.md"
MARKERS = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _times(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def better(ratios: Sequence[float]) -> str:
    """Return how many times better ours is: the median, and its confidence interval if there are
    enough rounds for one."""
    interval = median_interval(ratios)
    known = ", {}–{}".format(*map(_times, interval)) if interval else ""
    return f"×{_times(median(ratios))}{known}"


def metric_table(results: Results, metric: Metric) -> str:
    """Return a table of medians; behind a peer's figure how many times ours is better."""
    measurements, side_by_side = results["measurements"], common(results)
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
            value = median_of(side_by_side, peer, variant, metric.key)
            cell = "–" if value is None else format_value(value, metric)
            pair = (ours, peer) if metric.higher_is_better else (peer, ours)
            if peer != ours and (ratios := ratios_of(measurements, *pair, variant, metric.key)):
                cell += f" ({better(ratios)})"
            cells.append(cell)
        lines.append(f"| {label_of(peer)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _rounds(results: Results) -> str:
    ours = {m["round"] for m in common(results)}
    further = {m["round"] for m in results["measurements"]} - ours
    more = f", {len(further)} more of those who came close," if further else ""
    return f"{len(ours)} round{'s' if len(ours) != 1 else ''}{more}"


def case_section(case: Case, results: Results | None) -> str:
    """Return everything between a case's markers."""
    if results is None:
        return "\nNot measured yet.\n\n"
    measurements = results["measurements"]
    parts = [table for m in case.metrics if (table := metric_table(results, m))]
    machine, parameters = results["machine"], results["parameters"]
    rounds = _rounds(results)
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    length = f" of {parameters['seconds']:g} s after {parameters['warmup']:g} s"
    parts.append(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, "
        f"Linux {machine['kernel']}; {rounds}"
        f"{length if case.timed else ''}. {versions}.\n"
    )
    every = Counter((m["peer"], m["variant"]) for m in measurements)
    bound = Counter(
        (m["peer"], m["variant"]) for m in measurements if m["report"].get("generator_bound")
    )
    if bound and case.name != "generator":
        named = sorted(
            f"{label_of(peer)}, {variant} ({count} of {every[peer, variant]})"
            for (peer, variant), count in bound.items()
        )
        parts.append(f"The load generator, not the server, was the limit of: {'; '.join(named)}.\n")
    reordered = sorted({label_of(m["peer"]) for m in measurements if m["report"].get("reordered")})
    if reordered:
        parts.append(f"Delivered out of order, in part: {', '.join(reordered)}.\n")
    disturbed = sum(1 for m in measurements if m["report"].get("disturbed"))
    # Of many rounds a few change no median.
    few = len(measurements) // 10
    if disturbed:
        untrustworthy = ": these figures are not to be relied on" if disturbed > few else ""
        parts.append(
            f"Something else ran beside the server or the generator during {disturbed} of "
            f"{len(measurements)} measurements{untrustworthy}.\n"
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
