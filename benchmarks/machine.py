"""What is read from the machine: cores, processes, memory, versions."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import time
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Unsuitable(Exception):
    """This machine, or what is installed on it, cannot run the benchmark."""


def cores() -> tuple[int, int]:
    """Return the core for servers and the one for the load generator.

    Raises:
        Unsuitable: fewer than two cores: server and generator would measure each other.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise Unsuitable("benchmarks need Linux: they pin processes and read /proc")
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise Unsuitable("benchmarks need two cores: one for the server, one for the generator")
    return usable[0], usable[1]


def describe() -> dict[str, str]:
    """Return what a reader of the figures must know of the machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    gigabytes = f"{int(memory[1]) / 1024**2:.0f} GB" if memory else "unknown"
    return {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "memory": gigabytes,
        "kernel": platform.release().partition("-")[0],
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def package_versions(python: Path, names: list[str]) -> dict[str, str]:
    """Return the installed versions of distributions, as the interpreter `python` sees them."""
    code = (
        "import importlib.metadata as m, sys\n"
        "print('python', sys.version.split()[0])\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    done = subprocess.run(
        [python, "-c", code, *names], capture_output=True, text=True, check=True, timeout=60
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def own_version() -> str:
    """Return the version of starlette-realtime."""
    from starlette_realtime import __version__

    return __version__


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def process_tree(root: int) -> list[int]:
    """Return `root` and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    return tree


def memory_kb(pids: list[int], field: str = "VmRSS") -> int:
    """Return the sum of a field of /proc/<pid>/status: `VmRSS`, resident, or `VmHWM`, its peak."""
    total = 0
    for pid in pids:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total


def cpu_seconds(pids: list[int]) -> float:
    """Return the processes' CPU time, user and system, with their threads.

    It is read from their CPU clocks (clock_getcpuclockid(3); Linux makes the clock's id like this):
    /proc counts in steps of 10 ms, which is much of a short run.
    """
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def core_seconds(core: int) -> float:
    """Return how long one core has been busy, in seconds; interrupts too, which a process's own
    clock does not leave out either."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq = (int(one) for one in ticks[:7])
            return (user + nice + system + irq + softirq) / CLOCK_TICKS
    return 0.0
