"""Names that are the servers' own stay so."""

from __future__ import annotations

import pytest

from starlette_realtime import AnonymousAuth, ConfigurationError, Realtime

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


@pytest.mark.parametrize("event", ["joined", "connected", "ack", "error", ""])
async def test_the_app_cannot_send_what_clients_take_for_the_protocols_own(event: str) -> None:
    realtime = Realtime("memory://", auth=AnonymousAuth())
    realtime.room("{name}")
    async with realtime.run():
        room = realtime.get_room("lobby")
        for attempt in (
            room.publish(event, {}),
            room.gather(event, {}),
            realtime.broadcast(event, {}),
            realtime.send_to_user("ann", event, {}),
            realtime.send_to_session("s", event, {}),
        ):
            with pytest.raises(ValueError, match="protocol's own"):
                await attempt
        # A plain broadcast may come from the server, too.
        await room.publish("broadcast", {})


async def test_a_namespace_that_is_not_there() -> None:
    realtime = Realtime("memory://", auth=AnonymousAuth())
    realtime.namespace("/admin")
    async with realtime.run():
        with pytest.raises(ConfigurationError, match=r"'/other'; there are: '/', '/admin'"):
            await realtime.broadcast("x", namespace="/other")
        with pytest.raises(ConfigurationError, match="'/other'"):
            realtime.get_room("x", namespace="/other")
