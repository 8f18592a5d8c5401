"""What each worker of tests/inbox/test_two_workers.py serves. `TEST_BACKEND` is the Redis's URL."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.middleware import Middleware

from starlette_realtime import Options, Realtime, RealtimeMiddleware
from starlette_realtime.features.direct import DirectMessages
from tests.features.helpers import Names

realtime = Realtime(
    os.environ["TEST_BACKEND"], auth=Names(), options=Options(presence_grace=0.3, page_limit=12)
)
realtime.add(DirectMessages(size=60, per_peer=20))

app = Starlette(middleware=[Middleware(RealtimeMiddleware, realtime=realtime)])
