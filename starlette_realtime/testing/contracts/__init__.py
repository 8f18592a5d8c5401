"""Contract suites: what every store must do, as pytest classes to inherit from (docs/stores.md).

A suite makes its stores through one method, `pair`, which the subclass writes. The suites need
pytest, AnyIO's pytest plugin (it comes with AnyIO) and Hypothesis.
"""

import pytest

# The suites' asserts are to show both sides also where a plain import would not have it so.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{suite}"
        for suite in ("broker", "inbox", "limits", "presence", "recorder", "sessions", "tickets")
    )
)

from .broker import BrokerContract, HistoryBrokerContract  # noqa: E402
from .inbox import InboxContract  # noqa: E402
from .limits import LimitStoreContract  # noqa: E402
from .presence import PresenceContract  # noqa: E402
from .recorder import FakeClock, Recorder, Running, RunningPresence, StoreContract  # noqa: E402
from .sessions import SessionStoreContract  # noqa: E402
from .tickets import TicketStoreContract  # noqa: E402

__all__ = [
    "BrokerContract",
    "FakeClock",
    "HistoryBrokerContract",
    "InboxContract",
    "LimitStoreContract",
    "PresenceContract",
    "Recorder",
    "Running",
    "RunningPresence",
    "SessionStoreContract",
    "StoreContract",
    "TicketStoreContract",
]
