"""One way to run a program: in a group of its own, its output kept for when it fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class Block:
    """What `start` begins and `stop` ends, as a `with` block. What does not start is stopped."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait for a condition of several servers; fail when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not after {seconds} s: {what}"
        time.sleep(0.05)


class Process:
    """A child process with its descendants, and one file for all that it prints.

    The methods block; in async code with clients connected, call them with
    `anyio.to_thread.run_sync`, so that those clients can answer meanwhile. Leaving the `with` block
    ends the whole group.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.command = list(command)
        self._output = output
        self._env = dict(env or {})
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._group_ended = False
        self._written = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def output(self) -> str:
        """What it has printed since it was last started."""
        if not self._output.exists():
            return ""
        with self._output.open("rb") as file:
            file.seek(self._written)
            return file.read().decode(errors="replace")

    def start(self) -> None:
        assert not self.running, "already running"
        self._written = self._output.stat().st_size if self._output.exists() else 0
        with self._output.open("ab") as file:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        self._group_ended = False

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
        """Waits for a condition; fails with the output when it does not come, or the end does."""
        end = time.monotonic() + seconds
        while not condition():
            if not self.running:
                raise AssertionError(self._describe(f"ended before {what}"))
            if time.monotonic() > end:
                raise AssertionError(self._describe(f"not {what} after {seconds} s"))
            time.sleep(0.02)

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to the process and all its descendants."""
        # Once the group has ended its number may be somebody else's.
        if self._process is not None and not self._group_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends the whole group with SIGKILL, as a machine that goes away would."""
        self.signal_group(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)
            self._group_ended = True

    def terminate(self, seconds: float = 20) -> int:
        """Sends SIGTERM to the process alone; returns its exit status, or fails if it goes on."""
        assert self._process is not None, "not started"
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._describe(f"still ran {seconds} s after SIGTERM")) from None
        finally:
            # A master that ended in order leaves nobody behind; one that did not is cleaned up
            # after.
            self.kill()

    def _describe(self, what: str) -> str:
        status = "running" if self.running else f"exit status {self.returncode}"
        return f"{' '.join(self.command)}: {what} ({status})\n{self.output or '(no output)'}"

    def __enter__(self) -> Self:
        if not self.running:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        if error is not None and self._process is not None:
            error.add_note(self._describe("what it printed"))
