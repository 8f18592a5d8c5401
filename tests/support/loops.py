"""The event loops a test runs on."""

from __future__ import annotations

import pytest

both_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
"""For what must hold on asyncio and on trio: core, and the memory stores."""
