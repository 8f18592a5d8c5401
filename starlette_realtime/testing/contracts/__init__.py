"""Contract suites: what every store must do, as pytest classes to inherit from (docs/stores.md).

A suite makes its stores through one method, `pair`, which the subclass writes. The suites need
pytest, AnyIO's pytest plugin (it comes with AnyIO) and Hypothesis.
"""

import pytest

# The suites' asserts are to show both sides also where a plain import would not have it so.
pytest.register_assert_rewrite(
    f"{__name__}.broker", f"{__name__}.inbox", f"{__name__}.presence", f"{__name__}.recorder"
)

from .broker import BrokerContract, HistoryBrokerContract  # noqa: E402
from .inbox import InboxContract  # noqa: E402
from .presence import PresenceContract  # noqa: E402
from .recorder import FakeClock, Recorder, Running, RunningPresence, StoreContract  # noqa: E402

__all__ = [
    "BrokerContract",
    "FakeClock",
    "HistoryBrokerContract",
    "InboxContract",
    "PresenceContract",
    "Recorder",
    "Running",
    "RunningPresence",
    "StoreContract",
]
