from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.clients.fixtures import network, visit_in_chromium
from tests.support.server import FAST, ROOT, LiveServer

__all__ = ["network", "visit_in_chromium"]

NAME = "chat_demo_of_one_test"


@pytest.fixture
def demo(serve: Callable[..., LiveServer]) -> Iterator[LiveServer]:
    """The demo as `scripts/demo` serves it, with rooms that nobody has written in yet. In a thread:
    to start a process takes longer than most tests."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "examples/chat/app.py")
    assert spec is not None and spec.loader is not None
    # Made anew each time, since all that was ever said is in the module.
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield serve(module.app, ws=FAST)
    finally:
        del sys.modules[NAME]
