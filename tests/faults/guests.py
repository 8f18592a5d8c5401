"""A client under load that does what the protocol asks of one, and keeps a record to be judged by.

It numbers what it says, comes back wherever a worker lets it in, joins with the position it has
reached, and says again under the same `messageId` what was not acknowledged. What it showed its
user is in `Room.shown`: it begins anew whenever the server says `recovered: false`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from tests.faults.app import users

TICK = 0.02
"""Seconds between two looks at what is to be said."""
ASKED = 0.5
"""Seconds between two questions that it wants to be asked."""
ANSWER = 15.0
"""Seconds after which a client takes a silent connection for dead."""

Addresses = Callable[[], Sequence[str]]


@dataclass
class Room:
    """What a guest knows of a room it is in."""

    name: str
    joined: bool = False
    position: dict[str, Any] | None = None
    shown: list[str] = field(default_factory=list)
    before: list[list[str]] = field(default_factory=list)
    """What was shown until each `recovered: false`."""
    resets: list[float] = field(default_factory=list)
    """When the server said `recovered: false`."""
    members: set[str] = field(default_factory=set)
    arrivals: list[str] = field(default_factory=list)
    departures: list[str] = field(default_factory=list)
    recoveries: int = 0
    duplicates: int = 0


@dataclass
class Said:
    """A message that is to be acknowledged."""

    id: str
    room: str
    content: str
    connection: int = 0
    """On which connection it was last sent."""
    due: float = 0.0
    at: float = 0.0
    sent: int = 0
    acknowledged: float = 0.0


class Guest:
    """One user with one connection at a time.

    Args:
        addresses: the WebSocket addresses of those workers that may be tried now.
        pace: messages a second, over all its rooms.
        window: how many may be unacknowledged; with 1 their order is kept whatever happens.
        returns: whether it comes back when its connection is lost.
    """

    def __init__(
        self,
        name: str,
        rooms: Sequence[str],
        addresses: Addresses,
        chance: random.Random,
        *,
        pace: float = 25.0,
        window: int = 1,
        returns: bool = True,
    ) -> None:
        self.name = name
        self.rooms = {room: Room(room) for room in rooms}
        self.said: list[Said] = []
        self.window = window
        self.connections = 0
        self.resumed = 0
        self.refused = 0
        self.slowest = 0.0
        """Seconds that the slowest answer took, on a connection that lasted."""
        self.complaints: list[str] = []
        """What no client should ever be told or given."""
        self.silent = False
        """While it is set, nothing new is said."""
        self.lost = asyncio.Event()
        """Its connection is gone and it stays away."""
        self._addresses = addresses
        self._chance = chance
        self._pace = pace
        self._returns = returns
        self._resume: str | None = None
        self.asked: dict[int, int] = {}
        """The questions it was asked, by their ids."""
        self.asked_again = 0
        self._answers: dict[int, float] = {}
        self._unacknowledged: dict[str, Said] = {}
        self._numbers = itertools.count(1)
        self._socket: ClientConnection | None = None
        self._joins: dict[str, str] = {}
        self._rejoin: dict[str, float] = {}
        self._leaving = False
        self._heard = 0.0

    @property
    def settled(self) -> bool:
        """Connected, in all its rooms, with nothing unacknowledged."""
        return self.present and not self._unacknowledged

    @property
    def present(self) -> bool:
        return self._socket is not None and all(room.joined for room in self.rooms.values())

    @property
    def acknowledged(self) -> list[Said]:
        return [said for said in self.said if said.acknowledged]

    def say(self, room: str, content: str | None = None) -> Said:
        """Say something as soon as it can be said."""
        number = len(self.said)
        said = Said(f"{self.name}-{number}", room, content or f"{self.name}:{number}")
        self.said.append(said)
        self._unacknowledged[said.id] = said
        return said

    def leave(self) -> None:
        """Close the connection, and do not come back."""
        self._leaving = True
        self._returns = False

    async def live(self) -> None:
        """Be a guest until told to leave."""
        while self._returns or not self.connections:
            addresses = self._addresses()
            if addresses:
                with suppress(OSError, WebSocketException, TimeoutError):
                    async with connect(
                        self._chance.choice(addresses) + "?hello=1",
                        subprotocols=[Subprotocol("realtime.v1")],
                        compression=None,
                        open_timeout=ANSWER,
                        close_timeout=5,
                        ping_interval=None,
                        max_size=None,
                    ) as socket:
                        await self._visit(socket)
            self._socket = None
            if self._leaving:
                return
            await asyncio.sleep(self._chance.uniform(0.02, 0.3))
        self.lost.set()

    async def _visit(self, socket: ClientConnection) -> None:
        """One connection, from the first message to the last."""
        for room in self.rooms.values():
            room.joined = False
        self._joins.clear()
        # What it has not answered, it will be asked again.
        self._answers.clear()
        data: dict[str, Any] = {"token": users.create_token(self.name, {"name": self.name})}
        if self._resume is not None:
            data["resume"] = self._resume
        await socket.send(json.dumps({"type": "connect", "data": data}))
        async with asyncio.timeout(ANSWER):
            first = str(await socket.recv())
        for line in first.split("\n"):
            self._take(json.loads(line))
        self.connections += 1
        self._rejoin = dict.fromkeys(self.rooms, 0.0)
        self._heard = time.monotonic()
        self._socket = socket
        talking = asyncio.create_task(self._talk(socket))
        try:
            async for frame in socket:
                self._heard = time.monotonic()
                for line in str(frame).split("\n"):
                    message = json.loads(line)
                    if message["type"] == "ping":
                        await socket.send('{"type":"pong"}')
                    else:
                        self._take(message)
        finally:
            self._socket = None
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
            code = socket.close_code
            if code is not None and (code == 1008 or 4400 <= code < 4500):
                self.complaints.append(f"closed with {code} {socket.close_reason}")

    # What it says

    async def _talk(self, socket: ClientConnection) -> None:
        following = asking = time.monotonic()
        while not self._leaving:
            now = time.monotonic()
            for room, due in list(self._rejoin.items()):
                if due <= now:
                    await self._join(socket, room)
            for said in list(self._unacknowledged.values()):
                new = said.connection != self.connections
                if (new or 0 < said.due <= now) and self.rooms[said.room].joined:
                    await self._send(socket, said)
            if now >= following:
                following = max(following + 1 / self._pace, now - 1)
                if not self.silent and self.present and len(self._unacknowledged) < self.window:
                    await self._send(socket, self.say(self._chance.choice(list(self.rooms))))
            for id, due in list(self._answers.items()):
                if due <= now:
                    del self._answers[id]
                    ack = {"type": "ack", "id": id, "data": self.asked[id]}
                    await socket.send(json.dumps(ack))
            if not self.silent and self.present and now >= asking:
                asking = now + self._chance.uniform(0.5, 1.5) * ASKED
                room, number = self._chance.choice(list(self.rooms)), next(self._numbers)
                await socket.send(json.dumps({"type": "ask-me", "room": room, "data": number}))
            if self._unacknowledged and now - self._heard > ANSWER:
                self.complaints.append("a connection that never answered")
                break
            await asyncio.sleep(TICK)
        await socket.close(1000)

    async def _join(self, socket: ClientConnection, room: str) -> None:
        del self._rejoin[room]
        id = f"j{next(self._numbers)}"
        self._joins[id] = room
        message: dict[str, Any] = {"type": "join", "id": id, "room": room}
        if self.rooms[room].position is not None:
            message["since"] = self.rooms[room].position
        await socket.send(json.dumps(message))

    async def _send(self, socket: ClientConnection, said: Said) -> None:
        said.connection = self.connections
        said.due = 0.0
        said.at = time.monotonic()
        said.sent += 1
        message = {
            "type": "message",
            "id": said.id,
            "messageId": said.id,
            "room": said.room,
            "data": {"content": said.content},
        }
        await socket.send(json.dumps(message))

    # What it hears

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "connected":
            self._resume = message["resume"] or None
            self.resumed += message["resumed"]
        elif kind == "ack":
            said = self._unacknowledged.pop(message["id"], None)
            if said is not None:
                said.acknowledged = time.monotonic()
                self.slowest = max(self.slowest, said.acknowledged - said.at)
        elif kind == "joined":
            self._joins.pop(message.get("id", ""), None)
            self._joined(self.rooms[message["roomId"]], message)
        elif kind == "error":
            self._refused(message)
        elif kind == "question":
            self.asked_again += message["id"] in self.asked
            if self.asked.setdefault(message["id"], message["data"]) != message["data"]:
                self.complaints.append(f"one id, two questions: {message}")
            self._answers[message["id"]] = time.monotonic() + self._chance.uniform(0, 1)
        elif "offset" in message:
            self._event(self.rooms[message["room"]], message)
        elif kind not in {"user-joined", "user-left"}:
            self.complaints.append(f"unexpected: {message}")

    def _joined(self, room: Room, message: dict[str, Any]) -> None:
        room.members = {member["userId"] for member in message["members"]}
        room.joined = True
        if message.get("recovered") is True:
            # What was missed follows, and each of it moves the position.
            room.recoveries += 1
            return
        if "recovered" in message:
            room.resets.append(time.monotonic())
            room.before.append(room.shown)
        elif room.position is not None:
            self.complaints.append(f"joined anew without a word of what was missed: {room.name}")
        room.position = message["position"]
        room.shown = [item["content"] for item in message["recentMessages"]]

    def _refused(self, message: dict[str, Any]) -> None:
        self.refused += 1
        id = message.get("id")
        if not message["retry"]:
            self.complaints.append(f"refused: {message}")
        elif id in self._joins:
            self._rejoin[self._joins.pop(id)] = time.monotonic() + 0.2
        elif id in self._unacknowledged:
            now = time.monotonic()
            self.slowest = max(self.slowest, now - self._unacknowledged[id].at)
            self._unacknowledged[id].due = now + 0.1

    def _event(self, room: Room, message: dict[str, Any]) -> None:
        assert room.position is not None
        if self._leaving:
            # In the end all leave, and who still hears of whom is chance.
            return
        if message["offset"] <= room.position["offset"]:
            room.duplicates += 1
            return
        room.position = {**room.position, "offset": message["offset"]}
        if "nonce" in message:
            room.position["nonce"] = message["nonce"]
        data = message["data"]
        if message["type"] == "new-message":
            room.shown.append(data["content"])
        elif message["type"] == "user-joined":
            room.arrivals.append(data["userId"])
            room.members.add(data["userId"])
        elif message["type"] == "user-left":
            room.departures.append(data["userId"])
            room.members.discard(data["userId"])
