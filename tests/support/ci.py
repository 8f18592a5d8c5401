"""A pytest plugin with the last word: in CI a test that did not run counts as failed.

With the environment's `CI` set (to anything but an empty word, `0` or `false`), a session that
skipped a test or expected one to fail ends with exit status 1 and says which and why.
`scripts/test`, which runs the JavaScript tests before, sets `JS_TESTS=failed` if they did, and
`JS_LEFT_OUT` to a line for each of them that was skipped or expected to fail: these count as well.
"""

from __future__ import annotations

import os

import pytest
from _pytest.terminal import TerminalReporter


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    xfail: str | None = getattr(report, "wasxfail", None)
    if xfail is not None:
        return xfail or "expected to fail"
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return str(report.longrepr)


def _complaints(config: pytest.Config) -> list[str]:
    complaints = []
    if os.environ.get("JS_TESTS") == "failed":
        complaints.append("the JavaScript tests failed: see the output before this session's")
    if in_ci():
        left_out = os.environ.get("JS_LEFT_OUT", "").splitlines()
        complaints += [f"a JavaScript test: {line}" for line in left_out]
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if in_ci() and isinstance(reporter, TerminalReporter):
        complaints += [
            f"{report.nodeid}: {_why(report)}"
            for outcome in ("skipped", "xfailed", "xpassed")
            for report in reporter.stats.get(outcome, [])
        ]
    return complaints


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and _complaints(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    if complaints := _complaints(config):
        terminalreporter.section("counted as failures", red=True, bold=True)
        for complaint in complaints:
            terminalreporter.line(complaint)
