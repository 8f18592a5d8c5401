"""What each worker of tests/sessions/test_frozen_worker.py serves. `TEST_BACKEND` is the Redis's
URL. Leases are renewed so seldom that one which was shortened ends before that."""

from __future__ import annotations

import os

from starlette_realtime import Options, Realtime
from tests.sessions.helpers import Names

app = Realtime(
    os.environ["TEST_BACKEND"],
    auth=Names(),
    options=Options(presence_grace=0.3, presence_ttl=60.0, shutdown_timeout=1.0),
)
app.room("chat/{id}")
