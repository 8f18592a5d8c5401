"""Bar charts as SVG, without a library: one panel for each variant, one bar for each peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from .cases import CASES, Metric
from .install import ROOT
from .peers import PEERS
from .results import Results, common, median_of, peers, variants

WIDTH, LEFT, RIGHT, BAR, GAP, TITLE = 760, 270, 90, 20, 6, 34
OURS, THEIRS = "#c2410c", "#64748b"
IMAGES = ROOT / "docs" / "images"


def label_of(peer: str) -> str:
    """Return how a peer is called in tables and charts."""
    return PEERS[peer].label if peer in PEERS else peer


def format_value(value: float, metric: Metric) -> str:
    """Return a figure with thousands separated by thin spaces."""
    return f"{value:,.{metric.digits}f}".replace(",", "\u202f")


def draw(
    title: str,
    panels: Sequence[tuple[str, Sequence[tuple[str, float, bool]]]],
    show: Callable[[float], str],
) -> str:
    """Return an SVG.

    Args:
        title: the heading.
        panels: name and bars of each; a bar is its label, its value, and whether it is ours.
        show: how a value is written.
    """
    height = TITLE + sum(TITLE + len(bars) * (BAR + GAP) + 8 for _, bars in panels) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="24" font-size="16" font-weight="600" fill="#0f172a">'
        f"{escape(title)}</text>",
    ]
    y = TITLE
    for name, bars in panels:
        parts.append(
            f'<text x="12" y="{y + 22}" font-weight="600" fill="#334155">{escape(name)}</text>'
        )
        y += TITLE
        most = max((value for _, value, _ in bars), default=0.0) or 1.0
        for label, value, ours in bars:
            width = max(1.0, value / most * (WIDTH - LEFT - RIGHT))
            parts.append(
                f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end" fill="#0f172a">'
                f"{escape(label)}</text>"
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"'
                f' fill="{OURS if ours else THEIRS}"/>'
                f'<text x="{LEFT + width + 6:.1f}" y="{y + 15}" fill="#334155">'
                f"{escape(show(value))}</text>"
            )
            y += BAR + GAP
        y += 8
    parts.append("</svg>\n")
    return "\n".join(parts)


def write_chart(results: Results, folder: Path = IMAGES) -> Path | None:
    """Draw a case's chart into `folder`; return its path, None if the case has none."""
    case = CASES[results["case"]]
    metric = next((m for m in case.metrics if m.key == case.chart), None)
    if metric is None:
        return None
    measurements = common(results)
    panels = []
    for variant in variants(measurements):
        bars = [
            (label_of(peer), value, peer.startswith("realtime"))
            for peer in peers(measurements)
            if (value := median_of(measurements, peer, variant, metric.key)) is not None
        ]
        bars.sort(key=lambda bar: bar[1], reverse=metric.higher_is_better)
        panels.append((variant, bars))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.name}.svg"
    path.write_text(
        draw(f"{case.name}: {metric.title.lower()}", panels, lambda v: format_value(v, metric))
    )
    return path
