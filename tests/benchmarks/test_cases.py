"""In which order peers are measured, and with which servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cases
from benchmarks.cases import Bench, Parameters, blocks, by_turns, in_turn
from benchmarks.peers import Peer
from benchmarks.process import Failed, Report


def test_rounds_with_the_same_servers_come_in_blocks() -> None:
    assert blocks(7, 3) == [range(2), range(2, 4), range(4, 7)]
    assert blocks(2, 3) == [range(1), range(1, 2)]
    assert blocks(9, 2, start=5) == [range(5, 7), range(7, 9)]


def test_every_other_round_goes_backwards() -> None:
    assert [in_turn(["a", "b", "c"], number) for number in range(3)] == [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["a", "b", "c"],
    ]


def bench_of(*peers: str, repeat: int = 8, close: int = 0, seconds: float = 0.1) -> Bench:
    parameters = Parameters(peers=peers, repeat=repeat, close=close, seconds=seconds)
    return Bench(parameters, Path("unused"))


def counting(stopped: list[int]) -> Callable[[ExitStack, Peer], int]:
    """Return what starts peers, and says with a number which start it was."""
    started = iter(range(1000))

    def start(stack: ExitStack, peer: Peer) -> int:
        number = next(started)
        stack.callback(stopped.append, number)
        return number

    return start


def test_every_block_begins_afresh() -> None:
    stopped: list[int] = []
    rounds = [
        (number, dict(up), list(stopped))
        for number, up in bench_of("realtime", "bun", repeat=6).side_by_side(counting(stopped))
    ]
    assert [number for number, _, _ in rounds] == list(range(6))
    assert rounds[1][1:] == ({"realtime": 0, "bun": 1}, [])
    assert rounds[2][1:] == ({"realtime": 2, "bun": 3}, [1, 0])
    assert sorted(stopped) == list(range(6))


def test_a_peer_that_fails_is_out_until_the_next_block() -> None:
    bench = bench_of("realtime", "bun", repeat=9)
    took_part = []
    for number, up in bench.side_by_side(counting([])):
        took_part.append(list(up))
        if number == 1:
            with bench.guarded(number, "bun", out_of=up):
                raise Failed("it sent too much")
    assert took_part[1:4] == [["realtime", "bun"], ["realtime"], ["realtime", "bun"]]
    assert bench.failures == ["bun  (round 2): it sent too much"]


def test_a_peer_that_does_not_start_stops_nobody_else() -> None:
    def start(stack: ExitStack, peer: Peer) -> None:
        if peer.name == "bun":
            raise Failed("it did not start")

    bench = bench_of("bun", "realtime", repeat=1)
    assert [list(up) for _, up in bench.side_by_side(start)] == [["realtime"]]
    assert len(bench.failures) == 1


def test_a_slow_peer_is_measured_in_the_first_round_of_a_block() -> None:
    bench = bench_of("realtime", "channels", repeat=6)
    stopped: list[int] = []
    rounds = [
        (number, "channels" in up, list(stopped))
        for number, up in bench.side_by_side(counting(stopped))
    ]
    assert [number for number, takes_part, _ in rounds if takes_part] == [0, 2, 4]
    # In the other rounds it does not run beside the others.
    assert [ended for _, _, ended in rounds[:3]] == [[], [1], [1, 0]]


RATES = {
    "realtime": {"1": 100.0, "16": 200.0},
    "bun": {"1": 80.0, "16": 184.0},
    "ws": {"1": 50.0, "16": 180.0},
    "socketio": {"1": 108.0, "16": 900.0},
}


def took_part(bench: Bench, stopped: list[int]) -> list[tuple[int, list[str]]]:
    """Return who took part in which round, where all measure what `RATES` says."""
    found = []
    for number, up in bench.side_by_side(counting(stopped), metric="rate"):
        found.append((number, sorted(up)))
        for name in up:
            for variant, rate in RATES[name].items():
                report = {"rate": rate}
                bench.measurements.append(
                    {"round": number, "peer": name, "variant": variant, "report": report}
                )
    return found


def test_who_comes_close_takes_part_in_further_rounds() -> None:
    stopped: list[int] = []
    found = took_part(bench_of("realtime", "ws", "bun", "socketio", repeat=6, close=4), stopped)
    everyone, rivals = ["bun", "realtime", "socketio", "ws"], ["bun", "realtime", "socketio"]
    assert found == [(n, everyone if n < 6 else rivals) for n in range(10)]
    # Blocks have the same length: two rounds.
    assert len(stopped) == 3 * 4 + 2 * 3


def test_where_nobody_comes_close_there_are_no_further_rounds() -> None:
    found = took_part(bench_of("realtime", "ws", repeat=2, close=4), [])
    assert [number for number, _ in found] == [0, 1]


class Machine:
    """Stands for the clock and the servers' core; time passes while somebody measures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.others = 0.0
        self.log: list[str] = []
        monkeypatch.setattr(cases, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(cases, "cores", lambda: (0, 1))
        monkeypatch.setattr(cases, "core_seconds", lambda core: self.now + self.others)
        monkeypatch.setattr(cases, "cpu_seconds", lambda pids: self.now)

    def stands(self, **slices: float) -> dict[str, Any]:
        """Return peers, each with the length of its slices."""
        return {
            name: SimpleNamespace(
                server=SimpleNamespace(port=port, pids=[], said=str),
                crowd=FakeCrowd(self, name, length),
            )
            for port, (name, length) in enumerate(slices.items())
        }


class FakeCrowd:
    def __init__(self, machine: Machine, name: str, length: float) -> None:
        self.machine, self.name, self.length, self.measured = machine, name, length, 0.0
        self.disturbance = iter(())
        self.fails = False

    def measure(self, in_flight: int) -> float:
        if self.fails:
            raise Failed("it sent too much")
        self.machine.log.append(self.name)
        self.machine.now += self.length
        self.machine.others += next(self.disturbance, 0.0)
        self.measured += self.length
        return self.measured

    def report(self) -> Report:
        seconds, self.measured = self.measured, 0.0
        return {"seconds": seconds, "disturbed": False}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with monkeypatch.context() as patches:
        yield Machine(patches)


def test_slices_alternate_until_each_peer_had_its_time(machine: Machine) -> None:
    reports = by_turns(bench_of(seconds=0.1), 0, 4, machine.stands(ours=0.04, slow=0.3, bun=0.06))
    assert machine.log == ["ours", "slow", "bun", "ours", "bun", "ours"]
    assert list(reports) == ["ours", "slow", "bun"]
    assert [report["seconds"] for report in reports.values()] == pytest.approx([0.12, 0.3, 0.12])


def test_the_next_round_goes_backwards(machine: Machine) -> None:
    by_turns(bench_of(seconds=0.1), 1, 4, machine.stands(ours=0.05, ws=0.05, bun=0.05))
    assert machine.log == ["bun", "ws", "ours", "bun", "ws", "ours"]


def test_what_was_disturbed_is_measured_again(machine: Machine) -> None:
    stands = machine.stands(ours=0.1, bun=0.1)
    stands["bun"].crowd.disturbance = iter([0.1])
    reports = by_turns(bench_of(seconds=0.1), 0, 4, stands)
    assert machine.log == ["ours", "bun"] * 2
    assert not any(report["disturbed"] for report in reports.values())


def test_what_stays_disturbed_is_marked(machine: Machine) -> None:
    stands = machine.stands(ours=0.1, bun=0.1)
    stands["bun"].crowd.disturbance = iter([0.1] * 2)
    reports = by_turns(bench_of(seconds=0.1), 0, 4, stands)
    assert machine.log == ["ours", "bun"] * 2
    assert all(report["disturbed"] for report in reports.values())


def test_a_peer_that_fails_between_slices_is_left_out(machine: Machine) -> None:
    stands = machine.stands(ours=0.05, bun=0.05)
    stands["bun"].crowd.fails = True
    bench = bench_of(seconds=0.1)
    assert list(by_turns(bench, 0, 4, stands)) == ["ours"]
    assert list(stands) == ["ours"]
    assert len(bench.failures) == 1
