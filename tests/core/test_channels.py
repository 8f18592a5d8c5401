"""Names that are the servers' own stay so."""

from __future__ import annotations

import pytest

from starlette_realtime import AnonymousAuth, Realtime

pytestmark = pytest.mark.anyio


async def test_the_app_cannot_send_what_servers_send_to_servers() -> None:
    realtime = Realtime("memory://", auth=AnonymousAuth())
    realtime.room("{name}")
    async with realtime.run():
        room = realtime.get_room("lobby")
        for attempt in (
            room.publish("$disconnect", {}),
            realtime.broadcast("$disconnect", {}),
            realtime.send_to_user("ann", "$disconnect", {}),
            realtime.send_to_session("s", "$disconnect", {}),
        ):
            with pytest.raises(ValueError, match="servers' own"):
                await attempt
