"""What a client is given on joining is bounded in bytes, however large the messages are."""

from __future__ import annotations

import pytest

from starlette_realtime import AnonymousAuth, Options, Realtime

pytestmark = pytest.mark.anyio


async def test_a_page_of_history_is_bounded_in_bytes() -> None:
    options = Options(recent_bytes=10_000)
    realtime = Realtime("memory://", auth=AnonymousAuth(), options=options)
    realtime.room("{name}")
    async with realtime.run():
        room = realtime.get_room("lobby")
        for number in range(8):
            await room.publish("blob", "x" * 3000 + str(number))
        newest = await room.history(limit=8)
        assert [one.offset for one in newest.publications] == [6, 7, 8]
        assert newest.more
        older = await room.history(before=6, limit=8)
        assert [one.offset for one in older.publications] == [3, 4, 5]
        oldest = await room.history(after=0, limit=8)
        assert [one.offset for one in oldest.publications] == [1, 2, 3]
        assert oldest.more
        await room.publish("blob", "x" * 20_000)
        assert [one.offset for one in (await room.history(limit=8)).publications] == [9]
