"""Medians, ratios, tables and charts."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.cases import CASES
from benchmarks.chart import write_chart
from benchmarks.process import read_report
from benchmarks.results import (
    Measurement,
    Results,
    load,
    median_interval,
    median_of,
    ratios_of,
    save,
)
from benchmarks.table import PAGE, better, fill, metric_table


def measured(*rows: tuple[int, str, str, float]) -> list[Measurement]:
    return [
        Measurement(round=number, peer=peer, variant=variant, report={"deliveries_per_s": value})
        for number, peer, variant, value in rows
    ]


ROWS = measured(
    *((0, "realtime", "1 in flight", 200), (0, "bun", "1 in flight", 100)),
    *((1, "realtime", "1 in flight", 60), (1, "bun", "1 in flight", 20)),
    *((2, "realtime", "1 in flight", 400), (2, "bun", "1 in flight", 100)),
)


def results(rows: list[Measurement], repeat: int = 3) -> Results:
    return Results(
        case="fanout",
        parameters={"repeat": repeat, "seconds": 4.0, "warmup": 1.0},
        machine={"cpu": "A CPU", "cores": "2", "memory": "8 GB", "kernel": "6.1"},
        versions={"python": "3.11.7"},
        measurements=rows,
    )


def test_ratios_are_those_within_rounds() -> None:
    assert ratios_of(ROWS, "realtime", "bun", "1 in flight", "deliveries_per_s") == [2, 3, 4]
    assert median_of(ROWS, "realtime", "1 in flight", "deliveries_per_s") == 200


def test_a_round_that_one_of_the_two_missed_does_not_count() -> None:
    rows = measured((0, "realtime", "v", 10), (1, "realtime", "v", 50), (1, "bun", "v", 5))
    assert ratios_of(rows, "realtime", "bun", "v", "deliveries_per_s") == [10]
    assert ratios_of(rows, "realtime", "ws", "v", "deliveries_per_s") == []


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (16, 4), (20, 6)])
def test_the_interval_of_a_median_ends_at_the_ranks_of_the_tables(count: int, rank: int) -> None:
    """The ranks are those of the sign test's tables."""
    sample = [float(n) for n in range(count, 0, -1)]
    assert median_interval(sample) == (rank, count + 1 - rank)


def test_few_rounds_have_no_interval() -> None:
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert better([1.0, 2.0, 4.0]) == "×2.00"


def test_a_ratio_shows_its_interval() -> None:
    assert better([1.0, 1.1, 1.2, 1.3, 1.4, 1.5]) == "×1.25, 1.00–1.50"
    assert better([9.0, 12.34, 1234.5, 12.34, 12.34, 12.34]) == "×12.3, 9.00–1234"


def test_smaller_is_better_turns_the_ratio_over() -> None:
    cpu = CASES["fanout"].metrics[1]
    rows = measured((0, "realtime", "v", 2), (0, "bun", "v", 3))
    for row in rows:
        row["report"] = {cpu.key: row["report"]["deliveries_per_s"]}
    assert "| Bun's native publish | 3.00 (×1.50) |" in metric_table(results(rows), cpu)


def test_a_table_has_medians_and_says_how_many_times_better_ours_is() -> None:
    table = metric_table(results(ROWS), CASES["fanout"].metrics[0])
    assert "| starlette-realtime | 200 |" in table
    assert "| Bun's native publish | 100 (×3.00) |" in table


def test_tables_go_between_their_markers_and_the_rest_stays(tmp_path: Path) -> None:
    save(results(ROWS), tmp_path)
    text = "before\n<!-- table: fanout -->\nold\n<!-- end -->\nafter\n"
    filled = fill(text, tmp_path)
    assert filled.startswith("before\n<!-- table: fanout -->\n")
    assert filled.endswith("<!-- end -->\nafter\n")
    assert "old" not in filled
    assert "| starlette-realtime | 200 |" in filled
    assert fill(filled, tmp_path) == filled


def test_a_table_says_how_many_rounds_only_some_took_part_in(tmp_path: Path) -> None:
    text = "<!-- table: fanout -->\n<!-- end -->"
    for repeat, said in (
        (3, "3 rounds of 4 s"),
        (1, "1 round, 2 more of those who came close, of"),
    ):
        save(results(ROWS, repeat), tmp_path)
        assert said in fill(text, tmp_path)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    save(results(ROWS), tmp_path)
    assert load("fanout", tmp_path) == results(ROWS)


def test_a_case_without_results_says_so(tmp_path: Path) -> None:
    assert load("fanout", tmp_path) is None
    text = "<!-- table: fanout -->\n<!-- end -->"
    assert "Not measured yet." in fill(text, tmp_path)


def test_the_page_has_a_table_for_every_case() -> None:
    text = PAGE.read_text()
    assert [name for name in CASES if f"<!-- table: {name} -->" not in text] == []


def test_a_chart_has_a_bar_for_each_peer(tmp_path: Path) -> None:
    path = write_chart(results(ROWS), tmp_path)
    assert path is not None
    svg = ElementTree.parse(path).getroot()
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "1 in flight" in texts
    assert texts.index("starlette-realtime") < texts.index("Bun's native publish")


def test_a_run_that_the_generator_limited_is_marked() -> None:
    report = '{"generator_cpu": %s, "server_cpu": %s, "generator_share": %s}'
    assert read_report(report % (0.95, 0.5, 1.0))["generator_bound"]
    assert not read_report(report % (0.95, 0.95, 1.0))["generator_bound"]
    assert not read_report(report % (0.5, 0.5, 1.0))["generator_bound"]
    assert read_report(report % (0.5, 0.5, 0.8))["disturbed"]
