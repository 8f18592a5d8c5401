"""``python -m benchmarks list | run CASE | chart | table``."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace

from .cases import CASES, Case, Parameters, run
from .chart import write_chart
from .machine import Unsuitable
from .peers import PEERS
from .results import load, save
from .table import PAGE, fill, metric_table


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="cases and peers")
    runs = commands.add_parser("run", help="measure a case")
    runs.add_argument("case", choices=[*CASES, "all"])
    runs.add_argument("--peers", help="names from `list`, separated by commas; ours first")
    runs.add_argument("--repeat", type=int, help="rounds")
    runs.add_argument("--close", type=int, help="further rounds, for those who come close to ours")
    runs.add_argument("--seconds", type=float, help="measured time of each run")
    runs.add_argument("--warmup", type=float, help="time before it")
    runs.add_argument("--connections", type=int)
    runs.add_argument("--in-flight", type=_numbers, help="broadcasts in flight: 1,4,16")
    runs.add_argument("--payload", type=int, help="bytes")
    runs.add_argument("--publishers", type=int, help="connections that publish in turn")
    runs.add_argument("--dry", action="store_true", help="do not write benchmarks/results")
    commands.add_parser("chart", help="draw docs/images from the results")
    commands.add_parser("table", help="fill docs/performance.md from the results")
    return parser


def _parameters(case: Case, arguments: argparse.Namespace) -> Parameters:
    given = {
        name: getattr(arguments, name)
        for name in (
            *("repeat", "close", "seconds", "warmup"),
            *("connections", "in_flight", "payload", "publishers"),
        )
        if getattr(arguments, name) is not None
    }
    if arguments.peers:
        given["peers"] = tuple(arguments.peers.split(","))
    parameters = replace(case.defaults, **given)
    unknown = [name for name in parameters.peers if name not in PEERS]
    if unknown:
        raise Unsuitable(f"no peer is called {', '.join(unknown)}: see `list`")
    return parameters


def _run(arguments: argparse.Namespace) -> int:
    failed = 0
    for name in CASES if arguments.case == "all" else [arguments.case]:
        case = CASES[name]
        print(f"{name}: {case.summary}", file=sys.stderr)
        results, failures = run(case, _parameters(case, arguments))
        for table in (metric_table(results, metric) for metric in case.metrics):
            print(table, end="\n" if table else "")
        if results["measurements"] and not arguments.dry:
            print(f"  written to {save(results).name}", file=sys.stderr)
        failed += len(failures)
    return 1 if failed else 0


def main() -> int:
    """Run the command line; return the exit code."""
    arguments = _parser().parse_args()
    # Servers are stopped on the way out, also when it is this process that is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.command == "list":
            for case in CASES.values():
                print(f"{case.name:14} {case.summary}")
            print()
            for peer in PEERS.values():
                print(f"{peer.name:18} {peer.label}")
        elif arguments.command == "run":
            return _run(arguments)
        elif arguments.command == "chart":
            for name in CASES:
                results = load(name)
                path = write_chart(results) if results is not None else None
                if path is not None:
                    print(path.name)
        else:
            PAGE.write_text(fill(PAGE.read_text()))
    except Unsuitable as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
