"""One connection with many commands under way: answers come in the order of the questions.

A connection is redis-py's: it connects, secures, authenticates and parses. What is not used are its
pools, its retries and its Pub/Sub, so that a command whose waiter has gone away costs nobody a
connection, and nothing reconnects behind anybody's back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from ..errors import BrokerUnavailable
from .keys import Argument
from .url import Address, RedisURL, host_and_port

Command = tuple[Argument, ...]


class Redirected(Exception):
    """A Cluster's node says which one to ask: `address`, without a host when it is the same one.
    With `asking` for this once, while a slot is being moved."""

    def __init__(self, text: str, address: Address, asking: bool) -> None:
        super().__init__(text)
        self.address = address
        self.asking = asking


def redirection(error: ResponseError) -> Redirected | None:
    """Return what an error says of another node, if it does. Not every redis-py tells such errors
    from others on a plain connection."""
    if isinstance(error, AskError):
        moved = isinstance(error, MovedError)
        return Redirected(str(error), (error.host, error.port), not moved)
    kind, _, rest = str(error).partition(" ")
    host, separator, port = rest.rpartition(":")
    if kind not in ("MOVED", "ASK") or not separator or not port.isdigit():
        return None
    return Redirected(str(error), (host.partition(" ")[2], int(port)), kind == "ASK")


class Lost(BrokerUnavailable):
    """The connection went away under a command: it may have been carried out, or not."""


def pack(command: Iterable[Argument]) -> bytes:
    """Return a command as bytes on the wire (RESP2, array of bulk strings)."""
    parts = []
    for argument in command:
        if isinstance(argument, str):
            argument = argument.encode("utf-8", "surrogatepass")
        elif isinstance(argument, int):
            argument = b"%d" % argument
        parts.append(b"$%d\r\n%b\r\n" % (len(argument), argument))
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


async def connect(url: RedisURL, address: Address, *, sentinel: bool = False) -> AbstractConnection:
    """Return an open, authenticated connection.

    Raises:
        RedisError: the server refused, or its answer made no sense.
        OSError: it cannot be reached; `TimeoutError` after `url.timeout` seconds.
    """
    host, port = address
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "username": url.sentinel_username if sentinel else url.username,
        "password": url.sentinel_password if sentinel else url.password,
        "db": 0 if sentinel else url.db,
        # Every wait has its own limit here; and in RESP3 announcements would come between answers.
        "socket_timeout": None,
        "socket_connect_timeout": url.timeout,
        "socket_keepalive": True,
        "protocol": 2,
    }
    kind: type[Connection] = Connection
    if url.tls:
        kind = SSLConnection
        options |= url.tls_options
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = options["ssl_check_hostname"] == "true"
        else:
            options["ssl_check_hostname"] = options.get("ssl_cert_reqs", "required") == "required"
    connection = kind(**options)
    try:
        async with asyncio.timeout(url.timeout):
            await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await close(connection)
        raise
    return connection


async def close(connection: AbstractConnection) -> None:
    """Close without waiting for the other side."""
    try:
        await connection.disconnect(nowait=True)
    except (RedisError, OSError):
        pass


async def ask_once(connection: AbstractConnection, *command: Argument) -> Any:
    """Send one command on a connection that nobody else uses; return its answer.

    Raises:
        RedisError, OSError: see `connect`.
    """
    await connection.send_packed_command([pack(command)], check_health=False)
    return await connection.read_response(disable_decoding=True)


async def until_first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all until the first ends; end the others; raise what the first raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


class _Asked:
    """A command under way: its answer, and when it was sent off (seconds of the loop's clock)."""

    __slots__ = ("answer", "since")

    def __init__(self, answer: asyncio.Future[Any], since: float) -> None:
        self.answer = answer
        self.since = since


class Pipe:
    """Commands over one connection, as long as it lives.

    Args:
        connection: open; the pipe closes it.
        timeout: seconds; a connection that leaves a command unanswered for longer is given up.
    """

    def __init__(self, connection: AbstractConnection, address: Address, timeout: float) -> None:
        self._connection = connection
        self._address = address
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._outgoing: list[bytes] = []
        self._asked: deque[_Asked] = deque()
        self._wake = asyncio.Event()
        self._open = True

    @property
    def load(self) -> int:
        """How many commands are under way."""
        return len(self._asked)

    def ask(self, *commands: Command) -> list[asyncio.Future[Any]]:
        """Send commands off, nothing between them; return their answers to come. These raise
        redis-py's `ResponseError` for what the server refuses, `Lost` when the connection dies."""
        if not self._open:
            raise Lost(f"the connection to {host_and_port(self._address)} has closed")
        now = self._loop.time()
        answers = []
        for command in commands:
            answer: asyncio.Future[Any] = self._loop.create_future()
            self._outgoing.append(pack(command))
            self._asked.append(_Asked(answer, now))
            answers.append(answer)
        self._wake.set()
        return answers

    async def run(self) -> None:
        """Send and receive until the connection dies.

        Raises:
            RedisError, OSError, Lost: why it died.
        """
        why: BaseException | None = None
        try:
            await until_first(self._receive(), self._send(), self._watch())
        except BaseException as error:
            why = error
            raise
        finally:
            self._open = False
            await close(self._connection)
            text = f"the connection to {host_and_port(self._address)} was lost: {why}"
            while self._asked:
                answer = self._asked.popleft().answer
                if not answer.done():
                    answer.set_exception(Lost(text))
                    # Nobody may be waiting any more, which is no reason to complain.
                    answer.exception()

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            outgoing, self._outgoing = self._outgoing, []
            if not self._connection.is_connected:
                # redis-py would connect anew, and the answers would get out of step.
                raise Lost("the connection has closed")
            await self._connection.send_packed_command(outgoing, check_health=False)

    async def _receive(self) -> None:
        read = self._connection.read_response
        asked = self._asked
        while True:
            error: ResponseError | None = None
            value: Any = None
            try:
                value = await read(disable_decoding=True)
            except ResponseError as refused:
                error = refused
            if not asked:
                raise Lost("an answer that nobody asked for")
            answer = asked.popleft().answer
            if answer.done():
                continue
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(value)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._timeout / 4)
            if self._asked and self._loop.time() - self._asked[0].since > self._timeout:
                raise Lost(f"no answer for {self._timeout:g} s")
