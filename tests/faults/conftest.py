"""The suite's length and seed, and its account of what it did, at the end of pytest's output."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.faults.party import Account

SHORT = 4.0
"""Seconds during which each case does harm, unless `--faults-seconds` or FAULTS_SECONDS says."""

_accounts: list[Account] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    # A run of all tests reads this file too late for an option: there, it is the variable.
    parser.addoption(
        "--faults-seconds", type=float, default=None, help="how long each fault case does harm"
    )


def _seconds(config: pytest.Config) -> float:
    asked = config.getoption("faults_seconds", None)
    return float(asked if asked is not None else os.environ.get("FAULTS_SECONDS", SHORT))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    longer = _seconds(config) - SHORT
    for item in items:
        if longer > 0 and "tests/faults/" in item.nodeid:
            # Before and after the harm a case takes as long as ever.
            item.add_marker(pytest.mark.timeout(120 + 2 * longer))


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long the case does harm."""
    return _seconds(request.config)


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    """The case's account, with the source of all its chances; shown when all is over."""
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(2**32)))
    made = Account(request.node.name, seed)
    _accounts.append(made)
    yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _accounts:
        terminalreporter.section("faults")
        for account in _accounts:
            terminalreporter.line(str(account))
