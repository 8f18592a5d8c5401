"""The cases: what is done to which peers, and which of the figures tell."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from . import install
from .machine import (
    core_seconds,
    cores,
    cpu_seconds,
    describe,
    memory_kb,
    own_version,
    package_versions,
)
from .peers import NATIVE, PEERS, PLAIN, Peer
from .process import (
    Awake,
    Crowd,
    Failed,
    Report,
    Server,
    arguments,
    blast,
    crowd,
    explained,
    generate,
    read_report,
    redis,
    resting,
    serve,
    settle,
)
from .results import Measurement, Results, ratios_of, variants
from .tokens import write_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class Parameters:
    """What the command line may change of a case."""

    peers: tuple[str, ...]
    repeat: int = 3
    close: int = 0
    """Further rounds, for those alone who came close to the first peer."""
    warmup: float = 1.0
    seconds: float = 4.0
    connections: int = 500
    in_flight: tuple[int, ...] = (1, 4, 16)
    payload: int = 64
    publishers: int = 1


@dataclass(frozen=True)
class Metric:
    """A figure worth a table. `digits` are shown after the point."""

    key: str
    title: str
    digits: int = 0
    higher_is_better: bool = True


@dataclass(frozen=True)
class Case:
    """A benchmark."""

    name: str
    summary: str
    defaults: Parameters
    run: Callable[[Bench], None]
    metrics: tuple[Metric, ...]
    chart: str = ""
    """The metric that is drawn; none if empty."""
    timed: bool = True
    """Whether a run lasts `seconds` after `warmup`, and not until it has done its work."""


BLOCKS = 3
CLOSE = 1.1
"""How many times better or worse is close: a few rounds don't tell such a difference."""


def blocks(end: int, most: int = BLOCKS, *, start: int = 0) -> list[range]:
    """Return the numbers of the rounds, those with the same servers together.

    Where a process's memory happens to lie is luck that lasts as long as the process, so a
    measurement is made with several.
    """
    groups = min(most, end - start)
    ends = [start + (end - start) * one // groups for one in range(groups + 1)]
    return [range(*each) for each in pairwise(ends)]


def in_turn(peers: Sequence[str], number: int) -> list[str]:
    """Return the peers in the order of a round: every other time backwards, so that none always
    comes first and none always follows the same one."""
    return list(reversed(peers) if number % 2 else peers)


@dataclass
class Bench:
    """A case under way: collects what is measured."""

    parameters: Parameters
    tokens: Path
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def rounds(self) -> Iterator[tuple[int, Peer]]:
        """Peers in turn, A B C A B C: a disturbance that lasts hits all of them."""
        for number in range(self.parameters.repeat):
            for name in self.parameters.peers:
                yield number, PEERS[name]

    def side_by_side(
        self, start: Callable[[ExitStack, Peer], T], *, metric: str = ""
    ) -> Iterator[tuple[int, dict[str, T]]]:
        """Rounds with all peers up together, begun afresh for every block of rounds; then, if there
        is a metric, those with the peers who come close in it.

        Args:
            start: starts a peer and warms it up: what compiles a program while it runs has to have
                seen its work.

        Yields:
            The number of a round, and what `start` has made, by peer. The caller takes out whoever
            fails: its server may be broken, and the next block has a fresh one.
        """
        p = self.parameters
        yield from self._with_peers(p.peers, blocks(p.repeat), start)
        rivals = self.rivals(metric) if metric and p.close else []
        if len(rivals) > 1:
            as_long = max(1, p.close * BLOCKS // p.repeat)
            more = blocks(p.repeat + p.close, as_long, start=p.repeat)
            yield from self._with_peers(rivals, more, start)

    def _with_peers(
        self,
        peers: Sequence[str],
        some: Sequence[range],
        start: Callable[[ExitStack, Peer], T],
    ) -> Iterator[tuple[int, dict[str, T]]]:
        for block in some:
            with ExitStack() as stack:
                up: dict[str, T] = {}
                stacks: dict[str, ExitStack] = {}
                for name in peers:
                    stacks[name] = stack.enter_context(ExitStack())
                    with self.guarded(block[0], name):
                        up[name] = start(stacks[name], PEERS[name])
                for number in block:
                    if number == block[0] + 1:
                        for name in [name for name in up if PEERS[name].slow]:
                            del up[name]
                    # Who takes no part is not to run beside the others.
                    for name in stacks.keys() - up.keys():
                        stacks.pop(name).close()
                    yield number, up

    def rivals(self, metric: str) -> list[str]:
        """Return the first peer and those who come close to it in any variant."""
        first, *others = self.parameters.peers

        def close(name: str) -> bool:
            found = (
                ratios_of(self.measurements, first, name, variant, metric)
                for variant in variants(self.measurements)
            )
            return any(1 / CLOSE <= median(ratios) <= CLOSE for ratios in found if ratios)

        return [first, *filter(close, others)]

    @contextmanager
    def guarded(
        self, number: int, peer: str, variant: str = "", *, out_of: dict[str, Any] | None = None
    ) -> Iterator[None]:
        """A failure of one peer is reported and does not end the others' measurements; it is taken
        `out_of` those that are up."""
        try:
            yield
        except Failed as failure:
            if out_of is not None:
                out_of.pop(peer, None)
            self.failures.append(f"{peer} {variant} (round {number + 1}): {failure}")
            print(f"  FAILED {self.failures[-1]}", file=sys.stderr)

    def add(self, number: int, peer: str, variant: str, report: Report) -> None:
        """Keep a report."""
        self.measurements.append(
            Measurement(round=number, peer=peer, variant=variant, report=report)
        )
        shown = {k: v for k, v in report.items() if k in _SHOWN}
        note = "  (the generator was the bottleneck)" if report["generator_bound"] else ""
        if report.get("reordered"):
            note += f"  ({report['reordered']} deliveries out of order)"
        note += "  (something else ran beside it)" if report["disturbed"] else ""
        figures = "  ".join(f"{k}={v:,.2f}" for k, v in shown.items())
        print(f"  {number + 1}  {peer:18} {variant:16} {figures}{note}", file=sys.stderr)

    def load(
        self, servers: Sequence[Server], peer: Peer, *extra: object, shared: bool = False
    ) -> Report:
        """Run the load generator against servers with the peer's dialogue. A run during which
        something else took part of a core is made again, twice at most. `shared`: what else runs on
        the servers' core belongs to the case."""
        command = arguments(servers, peer.dialect, self.tokens, ordered=peer.ordered)
        command += [str(one) for one in extra]
        for again in (True, True, False):
            report = self._load_once(servers, command)
            if not shared and report["others_cpu"] > 0.1:
                report["disturbed"] = True
            if not report["disturbed"] or not again:
                return report
        raise AssertionError("unreachable")

    def _load_once(self, servers: Sequence[Server], command: Sequence[str]) -> Report:
        core, _ = cores()
        pids = [pid for server in servers for pid in server.pids]
        begun, busy, used = time.monotonic(), core_seconds(core), cpu_seconds(pids)
        with explained(*servers):
            report = generate(command)
        others = core_seconds(core) - busy - (cpu_seconds(pids) - used)
        report["others_cpu"] = others / (time.monotonic() - begun)
        settle(servers)
        return report

    def window(self) -> list[object]:
        """Return the arguments for warm-up, measured time and publishers."""
        p = self.parameters
        return [
            *("--warmup", p.warmup, "--seconds", p.seconds),
            *("--size", p.payload, "--publishers", p.publishers),
        ]


_SHOWN = {
    "deliveries_per_s",
    "server_us_per_delivery",
    "server_us_per_broadcast",
    "latency_p50_us",
    "latency_p99_us",
    "connects_per_s",
    "server_us_per_connect",
    "kb_per_connection",
    "cpu_percent",
    "recoveries_per_s",
    "server_us_per_recovery",
    "last_join_p50_us",
    "first_join_p50_us",
    "wire_bytes_per_delivery",
    "server_cpu",
    "generator_cpu",
}


WARM_CONNECTS = 3000
"""Clients that a server which has just started takes before any are measured."""
SLICE = 0.1
"""Seconds that a peer measures before the next one does. What disturbs a virtual machine has no
time scale of its own: two slices in turn differ as much when they are short, and there are more."""
LEAD_IN = 0.15
"""Seconds of publishing before each slice. After the others' turns the processor's caches hold
nothing of a server: most peers need 0.1 s until they are as fast as they will be."""
WARM = 1.0
"""Seconds of slices, without what leads in, that a new server measures for nothing."""


@dataclass
class Stand:
    """A peer's server and its clients."""

    server: Server
    crowd: Crowd


def _fanout(bench: Bench) -> None:
    p = bench.parameters

    def start(stack: ExitStack, peer: Peer) -> Stand:
        server = stack.enter_context(serve(peer))
        command = arguments([server], peer.dialect, bench.tokens, ordered=peer.ordered)
        command += [str(one) for one in ("--mode", "fanout", "--connections", p.connections)]
        # While one waits for what is lost the others rest: not for longer than heartbeats may.
        command += ["--timeout", "20"]
        command += [str(one) for one in (*bench.window(), "--seconds", min(SLICE, p.seconds))]
        with explained(server):
            clients = stack.enter_context(crowd(command))
            levels = cycle(p.in_flight)
            while clients.measure(next(levels)) < WARM:
                pass
            clients.report()
        return Stand(server, clients)

    for number, up in bench.side_by_side(start, metric="deliveries_per_s"):
        for k in p.in_flight:
            for name, report in by_turns(bench, number, k, up).items():
                bench.add(number, name, f"{k} in flight", report)


def by_turns(bench: Bench, number: int, k: int, up: dict[str, Stand]) -> dict[str, Report]:
    """Let peers measure slice by slice until each has had its time; return their reports. Whoever
    fails is taken out of `up`. If something else ran, all is made again, once."""
    for again in (True, False):
        core, _ = cores()
        pids = [pid for stand in up.values() for pid in stand.server.pids]
        begun, busy, used = time.monotonic(), core_seconds(core), cpu_seconds(pids)
        with resting([stand.server for stand in up.values()]) as awake:
            reports = _slices(bench, number, k, up, awake)
        others = core_seconds(core) - busy - (cpu_seconds(pids) - used)
        for report in reports.values():
            report["others_cpu"] = others / (time.monotonic() - begun)
            report["disturbed"] |= report["others_cpu"] > 0.1
        if not again or not any(report["disturbed"] for report in reports.values()):
            return {name: reports[name] for name in up}
    raise AssertionError("unreachable")


def _slices(
    bench: Bench,
    number: int,
    k: int,
    up: dict[str, Stand],
    awake: Awake,
) -> dict[str, Report]:
    reports: dict[str, Report] = {}
    # Always round and round, never there and back: of a core that it shares the scheduler gives
    # more to who has rested, so all must rest equally long.
    while waiting := [name for name in up if name not in reports]:
        for name in in_turn(waiting, number):
            stand, variant = up[name], f"{k} in flight"
            with (
                bench.guarded(number, name, variant, out_of=up),
                explained(stand.server),
                awake(stand.server),
            ):
                if stand.crowd.measure(k) >= bench.parameters.seconds:
                    reports[name] = stand.crowd.report()
    return reports


def _connect(bench: Bench) -> None:
    p = bench.parameters
    run = ("--mode", "connect", "--connections", p.connections)

    def start(stack: ExitStack, peer: Peer) -> Server:
        server = stack.enter_context(serve(peer))
        # As many at a time as are measured: what is left of more would be the next run's garbage.
        for _ in range(0, WARM_CONNECTS, p.connections):
            bench.load([server], peer, *run)
        return server

    for number, up in bench.side_by_side(start):
        for name in in_turn(list(up), number):
            with bench.guarded(number, name, out_of=up):
                report = bench.load([up[name]], PEERS[name], *run)
                bench.add(number, name, f"{p.connections} clients", report)


def _idle(bench: Bench) -> None:
    p = bench.parameters
    for number, peer in bench.rounds():
        with bench.guarded(number, peer.name), serve(peer) as server:
            # Everything is imported and every pool is filled before the memory is read.
            bench.load([server], peer, "--mode", "connect", "--connections", 50)
            before = memory_kb(server.pids)
            command = arguments([server], peer.dialect, bench.tokens)
            command += ["--mode", "idle", "--connections", str(p.connections)]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as generator:
                assert generator.stdin is not None and generator.stdout is not None
                line = generator.stdout.readline()
                if '"ready"' not in line:
                    generator.wait(10)
                    read_report(line)
                time.sleep(p.warmup)
                cpu, start = cpu_seconds(server.pids), time.monotonic()
                time.sleep(p.seconds)
                used = cpu_seconds(server.pids) - cpu
                elapsed = time.monotonic() - start
                resident = memory_kb(server.pids)
                generator.stdin.close()
                rest = generator.stdout.read()
            report = read_report(rest)
            report["disturbed"] = False  # it slept between heartbeats
            report["kb_per_connection"] = (resident - before) / p.connections
            report["cpu_percent"] = used / elapsed * 100
            report["watched_seconds"] = elapsed
            bench.add(number, peer.name, f"{p.connections} clients", report)


BACKLOG = 100


def _storm(bench: Bench) -> None:
    p = bench.parameters
    for number, peer in bench.rounds():
        environment = {"BENCH_HISTORY": str(BACKLOG)}
        with bench.guarded(number, peer.name), serve(peer, environment=environment) as server:
            report = bench.load(
                [server],
                peer,
                # One more, who publishes and stays.
                *("--mode", "storm", "--connections", p.connections + 1, "--backlog", BACKLOG),
                # All at once, but below what a listening socket may queue (net.core.somaxconn):
                # beyond it the kernel drops the handshake and a client waits a second to repeat it.
                *("--concurrency", 1500),
            )
            bench.add(number, peer.name, f"{p.connections} clients", report)


ROOMS = ((0, 0), (100, 100), (1000, 100))
PROBES = 200


def _growth(bench: Bench) -> None:
    p = bench.parameters
    for number, peer in bench.rounds():
        fill = peer.dialect.fill
        if fill is None:
            bench.failures.append(f"{peer.name} has one room only")
            continue
        for fillers, each in ROOMS:
            variant = f"{fillers * each or 1} rooms"
            with bench.guarded(number, peer.name, variant), serve(peer) as server:
                report = bench.load(
                    [server],
                    peer,
                    *("--mode", "fanout", "--connections", 20, "--in-flight", 1),
                    *("--fillers", fillers, "--fill-repeat", each, "--timeout", 300),
                    *("--fill-send", fill[0], "--fill-expect", fill[1]),
                    *("--fill-steps", peer.dialect.fill_steps),
                    *bench.window(),
                )
                bench.add(number, peer.name, variant, report)
        with bench.guarded(number, peer.name, "join"), serve(peer) as server:
            report = bench.load(
                [server],
                peer,
                *("--mode", "connect", "--connections", p.connections, "--probes", PROBES),
            )
            bench.add(number, peer.name, f"room of {p.connections}", report)


def _redis(bench: Bench) -> None:
    p = bench.parameters
    pair = ("--mode", "fanout", "--connections", 2)
    for number, peer in bench.rounds():
        with bench.guarded(number, peer.name):
            with serve(peer) as server:
                alone = bench.load([server], peer, *pair, "--in-flight", 1, *bench.window())
                bench.add(number, peer.name, "memory, 1 in flight", alone)
            with ExitStack() as stack:
                environment = {"BENCH_REDIS": stack.enter_context(redis())}
                workers = [
                    stack.enter_context(serve(peer, environment=environment)) for _ in range(2)
                ]
                one = bench.load(
                    workers, peer, *pair, "--in-flight", 1, *bench.window(), shared=True
                )
                one["added_latency_us"] = one["latency_p50_us"] - alone["latency_p50_us"]
                bench.add(number, peer.name, "1 in flight", one)
                many = bench.load(
                    workers, peer, *pair, "--in-flight", 64, *bench.window(), shared=True
                )
                bench.add(number, peer.name, "publish", many)
                crowd = bench.load(
                    workers,
                    peer,
                    *("--mode", "fanout", "--connections", 64, "--in-flight", 64),
                    *bench.window(),
                    *("--publishers", 64),
                    shared=True,
                )
                bench.add(number, peer.name, "64 publishers", crowd)
                for k in p.in_flight:
                    report = bench.load(
                        workers,
                        peer,
                        *("--mode", "fanout", "--connections", p.connections, "--in-flight", k),
                        *bench.window(),
                        shared=True,
                    )
                    bench.add(number, peer.name, f"deliver, {k} in flight", report)


def _compression(bench: Bench) -> None:
    p = bench.parameters
    for number, peer in bench.rounds():
        if peer.deflate is None:
            bench.failures.append(f"{peer.name} does not compress")
            continue
        with bench.guarded(number, peer.name), serve(peer, deflate=True) as server:
            bench.load([server], peer, "--mode", "connect", "--connections", 50)
            before = memory_kb(server.pids)
            for k in p.in_flight:
                report = bench.load(
                    [server],
                    peer,
                    *("--mode", "fanout", "--connections", p.connections, "--in-flight", k),
                    *("--deflate", *bench.window()),
                )
                peak = memory_kb(server.pids, "VmHWM")
                report["kb_per_connection"] = (peak - before) / p.connections
                bench.add(number, peer.name, f"{k} in flight", report)


def _generator(bench: Bench) -> None:
    p = bench.parameters
    for number in range(p.repeat):
        with bench.guarded(number, "blast"), blast() as server:
            for k in p.in_flight:
                command = arguments([server], PLAIN_TO_BLAST, bench.tokens)
                report = generate(
                    [
                        *command,
                        *(str(x) for x in ("--connections", p.connections, "--in-flight", k)),
                        *(str(x) for x in bench.window()),
                    ]
                )
                # What it would reach if it were never kept waiting.
                report["capacity_per_s"] = report["deliveries_per_s"] / report["generator_cpu"]
                bench.add(number, "blast", f"{k} in flight", report)


PLAIN_TO_BLAST = type(PLAIN)(steps=())

DELIVERIES = Metric("deliveries_per_s", "Deliveries a second")
CPU_EACH = Metric(
    "server_us_per_delivery", "Server CPU, µs per delivery", 2, higher_is_better=False
)
P50 = Metric("latency_p50_us", "Publish to last delivery, median, µs", higher_is_better=False)
P99 = Metric("latency_p99_us", "Publish to last delivery, 99 %, µs", higher_is_better=False)
MEMORY = Metric(
    "kb_per_connection", "Resident memory per connection, KB", 1, higher_is_better=False
)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "fanout",
            "one publisher, 500 receivers, 64 bytes; 1, 4 and 16 broadcasts in flight",
            Parameters(
                peers=(
                    *("realtime", "realtime-v1", "realtime-uvloop", "bun", "ws", "socketio"),
                    *("sansio-loop", "litestar", "python-socketio", "channels"),
                ),
                repeat=15,
                close=60,
                warmup=LEAD_IN,
                seconds=0.4,
            ),
            _fanout,
            (DELIVERIES, CPU_EACH, P50, P99),
            chart="deliveries_per_s",
        ),
        Case(
            "fanout-plain",
            "the same on plain ASGI servers, without the package's protocol class",
            Parameters(
                peers=(
                    *("realtime-unmodified", "realtime-uvicorn"),
                    *("realtime-hypercorn", "realtime-granian", "loop-hypercorn"),
                    *("python-socketio", "python-socketio-hypercorn", "python-socketio-granian"),
                ),
                repeat=15,
                warmup=LEAD_IN,
                seconds=0.4,
            ),
            _fanout,
            (DELIVERIES, CPU_EACH, P50),
            chart="deliveries_per_s",
        ),
        Case(
            "connect",
            "clients that connect, show a token and join a room",
            Parameters(
                peers=("realtime", "python-socketio", "socketio", "litestar", "sansio-loop"),
                connections=500,
                repeat=48,
            ),
            _connect,
            (
                Metric("connects_per_s", "Clients a second"),
                Metric("server_us_per_connect", "Server CPU, µs each", 0, higher_is_better=False),
                Metric(
                    "dialogue_p99_us", "TCP connect to joined, 99 %, µs", higher_is_better=False
                ),
            ),
            chart="connects_per_s",
            timed=False,
        ),
        Case(
            "idle",
            "5000 clients that only answer heartbeats: memory and CPU",
            Parameters(
                peers=("realtime", "sansio-loop", "python-socketio", "socketio"),
                connections=5000,
                repeat=1,
                seconds=60,
                warmup=5,
            ),
            _idle,
            (
                MEMORY,
                Metric("cpu_percent", "CPU, % of a core", 2, higher_is_better=False),
            ),
            chart="kb_per_connection",
        ),
        Case(
            "storm",
            "5000 clients reconnect at once, each recovers 100 messages",
            Parameters(peers=("realtime", "litestar"), connections=5000),
            _storm,
            (
                Metric("seconds", "Until all had everything, s", 2, higher_is_better=False),
                Metric("recovered_per_s", "Messages recovered a second"),
                Metric("server_us_per_recovery", "Server CPU, µs each", higher_is_better=False),
            ),
            timed=False,
        ),
        Case(
            "growth",
            "cost of a publish with 1, 10 000 and 100 000 rooms; joining a room of 10 000",
            Parameters(peers=("realtime", "python-socketio"), connections=10_000, repeat=1),
            _growth,
            (
                Metric(
                    "server_us_per_broadcast",
                    "Server CPU, µs per publish to 20 members",
                    1,
                    higher_is_better=False,
                ),
                Metric("first_join_p50_us", "Join of a small room, µs", higher_is_better=False),
                Metric("last_join_p50_us", "Join of the full room, µs", higher_is_better=False),
            ),
        ),
        Case(
            "redis",
            "two workers and Redis: publish rate, delivery rate, added latency",
            Parameters(peers=("realtime", "python-socketio", "socketio"), in_flight=(1, 16)),
            _redis,
            (
                Metric("broadcasts_per_s", "Publications a second"),
                DELIVERIES,
                Metric("added_latency_us", "Added latency, µs", higher_is_better=False),
            ),
            chart="deliveries_per_s",
        ),
        Case(
            "compression",
            "8 KB of text to 500 receivers that negotiated permessage-deflate",
            Parameters(
                peers=("realtime", "realtime-uvicorn", "sansio-loop", "socketio", "ws", "bun"),
                in_flight=(4,),
                payload=8192,
            ),
            _compression,
            (
                DELIVERIES,
                CPU_EACH,
                Metric("wire_bytes_per_delivery", "Bytes on the wire", higher_is_better=False),
                MEMORY,
            ),
            chart="deliveries_per_s",
        ),
        Case(
            "generator",
            "the load generator against a server in C: it must not be the narrow place",
            Parameters(peers=(), in_flight=(1, 4, 16, 64, 256, 1024)),
            _generator,
            (
                DELIVERIES,
                Metric("generator_cpu", "Generator busy, of 1", 2, higher_is_better=False),
                Metric("capacity_per_s", "Deliveries a second it could take"),
            ),
        ),
    )
}


def run(case: Case, parameters: Parameters) -> tuple[Results, list[str]]:
    """Run a case; return its results and what failed.

    Raises:
        Unsuitable: the machine has too few cores, or something needed cannot be installed.
        KeyError: there is no such peer.
    """
    cores()
    chosen = [PEERS[name] for name in parameters.peers]
    install.load_generator()
    python = install.python_peers()
    if any(peer.node for peer in chosen):
        install.node_peers()
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        write_tokens(tokens, parameters.connections + 1100)
        bench = Bench(parameters, tokens)
        machine = describe()
        case.run(bench)
    results = Results(
        case=case.name,
        parameters={**vars(parameters), "peers": list(parameters.peers)},
        machine=machine,
        versions={**package_versions(python, PYTHON_PACKAGES), **_node_versions()},
        measurements=bench.measurements,
    )
    results["versions"]["starlette-realtime"] = own_version()
    return results, bench.failures


PYTHON_PACKAGES = [
    *("starlette", "uvicorn", "websockets", "hypercorn", "granian", "python-socketio"),
    *("litestar", "channels", "redis"),
]


def _node_versions() -> dict[str, str]:
    import json

    found: dict[str, str] = {}
    for name in ("socket.io", "ws", "bun", "@socket.io/redis-adapter"):
        manifest = install.NODE_MODULES / name / "package.json"
        if manifest.is_file():
            content: dict[str, Any] = json.loads(manifest.read_text())
            found[name] = str(content["version"])
    return found


__all__ = ["CASES", "NATIVE", "Bench", "Case", "Metric", "Parameters", "run"]
