"""The command `starlette-realtime`: serve · publish · token · doctor · demo.

Exit status: 0, or 1 when it failed, or 2 when it was called wrongly. An error is one line. No
secret is taken from the command line, where every user of the machine can read it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final, NoReturn

import anyio
import msgspec

from . import __version__
from .auth.signed import SignedTokenAuth
from .brokers.base import Broker
from .errors import ConfigurationError, RealtimeError
from .events import NOTHING_KEPT, Draft, Lane, Publication
from .publisher import Publisher
from .settings import BROADCASTER_SCHEMES, REDIS_SCHEMES, stores_from_url

PROTOCOL: Final = "starlette_realtime.servers.uvicorn:RealtimeProtocol"
MAX_INPUT: Final = 16_000_000
"""Bytes that are read from standard input, or from a file with a secret."""
PATIENCE: Final = 3.0
"""How long `doctor` goes on trying to reach a server, in seconds."""

_HIDDEN = "A URL is given as it is, or as env:NAME: what the environment variable NAME says."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, those of the process by default; return the exit
    status. Wrong arguments raise `SystemExit`, as `argparse` does."""
    given = list(sys.argv[1:] if argv is None else argv)
    passed_on: list[str] = []
    if given[:1] in (["serve"], ["demo"]) and not {"-h", "--help"} & set(given):
        # All of it is for uvicorn, in whatever order.
        given, passed_on = given[:1], given[1:]
    arguments = _parser().parse_args(given)
    try:
        if arguments.run in (_serve, _demo):
            return _serve(passed_on) if arguments.run is _serve else _demo(passed_on)
        status: int = arguments.run(arguments)
    except RealtimeError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="starlette-realtime",
        description="Real-time channels for ASGI apps.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Any, text: str, **options: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, allow_abbrev=False, **options
        )
        command.set_defaults(run=run, parser=command)
        return command

    add(
        "serve",
        _serve,
        "Run an app with uvicorn, the fast way.",
        usage="starlette-realtime serve APP [uvicorn's options …]",
        epilog=f"Adds --ws {PROTOCOL} and --loop asyncio, unless given. "
        "For the other options see uvicorn --help.",
    )

    publish = add(
        "publish",
        _publish,
        "Publish an event into a room, or to a user, of a running app.",
        usage="starlette-realtime publish URL ROOM EVENT [JSON|-] [--namespace /x] [--id KEY]\n"
        "       starlette-realtime publish URL EVENT [JSON|-] --user ID [--namespace /x]",
        epilog=_HIDDEN + " JSON is the event's data; - reads it from standard input.",
    )
    publish.add_argument("url", metavar="URL", help="the app's backend, redis://…")
    publish.add_argument("words", metavar="ROOM EVENT [JSON|-]", nargs="+")
    publish.add_argument("--user", metavar="ID", help="to all connections of this user")
    publish.add_argument("--namespace", metavar="/x", default="/")
    publish.add_argument("--id", metavar="KEY", default="", help="makes a second call harmless")

    token = add("token", _token, "Print a token for SignedTokenAuth.")
    secret = token.add_mutually_exclusive_group(required=True)
    secret.add_argument("--secret-env", metavar="VAR", help="environment variable with the secret")
    secret.add_argument("--secret-file", metavar="PATH", help="file with the secret")
    token.add_argument("user_id", metavar="USER_ID")
    token.add_argument("--info", metavar="JSON", help="what others may see of the user")
    token.add_argument(
        "--expires-in",
        metavar="S",
        type=float,
        default=3600.0,
        help="seconds until it ends, 3600 by default; the app's max_age ends it too",
    )

    doctor = add("doctor", _doctor, "See whether a backend works.", epilog=_HIDDEN)
    doctor.add_argument("url", metavar="URL", help="redis://…, postgres://…")

    add(
        "demo",
        _demo,
        "Serve the chat example, in memory or on REALTIME_BACKEND.",
        usage="starlette-realtime demo [uvicorn's options …]",
    )
    return parser


def _fail(text: str) -> int:
    print(f"starlette-realtime: {' '.join(text.split())}", file=sys.stderr)
    return 1


def _usage(arguments: argparse.Namespace, text: str) -> NoReturn:
    parser: argparse.ArgumentParser = arguments.parser
    parser.error(text)


def _url(arguments: argparse.Namespace) -> str:
    given: str = arguments.url
    if not given.startswith("env:"):
        return given
    name = given.removeprefix("env:")
    url = os.environ.get(name)
    if not url:
        raise ConfigurationError(f"the environment variable {name} is not set")
    return url


def _json(arguments: argparse.Namespace, text: str | bytes, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        _usage(arguments, f"{what} is not JSON: {error}")


# serve and demo


def _serve(options: Sequence[str]) -> int:
    try:
        from uvicorn import main as uvicorn

        from .servers import uvicorn as _protocol  # noqa: F401 - whether it can be imported
    except ImportError:
        return _fail("this needs uvicorn: pip install 'starlette-realtime[server]'")
    command = list(options)
    for name, value in (("--ws", PROTOCOL), ("--loop", "asyncio")):
        if not any(word == name or word.startswith(f"{name}=") for word in command):
            command += [name, value]
    try:
        uvicorn.main(args=command, prog_name="starlette-realtime serve")
    except SystemExit as stop:
        # uvicorn has said why; 2 is its word for wrong options too.
        return 2 if stop.code == 2 else int(bool(stop.code))


def _demo(options: Sequence[str]) -> int:
    root = Path(__file__).resolve().parents[1]
    if not (root / "examples" / "chat" / "app.py").is_file():
        return _fail(
            "the chat example is not part of the installed package: clone the project's repository"
            " and run scripts/demo there"
        )
    # Every worker believes the same tokens.
    os.environ.setdefault("CHAT_SECRET", secrets.token_urlsafe(32))
    return _serve(["examples.chat.app:app", "--app-dir", str(root), *options])


# publish


def _publish(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.words
    if not arguments.namespace.startswith("/"):
        _usage(arguments, "a namespace begins with /")
    if arguments.user is not None:
        if arguments.id:
            _usage(arguments, "--id is for rooms: what goes to a user is not remembered")
        words = ["", *words]
    if not 2 <= len(words) <= 3 or not words[1]:
        _usage(
            arguments, "what is wanted is EVENT [JSON]" if arguments.user else "ROOM EVENT [JSON]"
        )
    room, event = words[:2]
    text: str | bytes = words[2] if len(words) > 2 else "null"
    if text == "-":
        text = sys.stdin.buffer.read(MAX_INPUT)
    data = _json(arguments, text, "the event's data")
    publisher = Publisher(_url(arguments))

    async def publish() -> dict[str, Any]:
        async with publisher:
            if arguments.user is not None:
                await publisher.send_to_user(
                    arguments.user, event, data, namespace=arguments.namespace
                )
                return {"sent": True}
            published = await publisher.publish(
                room, event, data, id=arguments.id, namespace=arguments.namespace
            )
            position = published.position
            return {
                "offset": position.offset,
                "epoch": position.epoch,
                "duplicate": published.duplicate,
            }

    print(msgspec.json.encode(anyio.run(publish)).decode())
    return 0


# token


def _token(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.expires_in < 1e10:
        _usage(arguments, "--expires-in is a positive number of seconds")
    info = None if arguments.info is None else _json(arguments, arguments.info, "--info")
    auth = SignedTokenAuth(_secret(arguments), max_age=max(3600.0, arguments.expires_in))
    try:
        token = auth.create_token(arguments.user_id, info, expires_in=arguments.expires_in)
    except ValueError as error:
        _usage(arguments, str(error))
    print(token)
    return 0


def _secret(arguments: argparse.Namespace) -> str | bytes:
    if arguments.secret_env is not None:
        secret = os.environ.get(arguments.secret_env)
        if not secret:
            raise ConfigurationError(f"the environment variable {arguments.secret_env} is not set")
        return secret
    try:
        with Path(arguments.secret_file).open("rb") as file:
            # An editor ends the last line; it is no part of the secret.
            return file.read(MAX_INPUT).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigurationError(
            f"the secret cannot be read: {arguments.secret_file}: {error.strerror}"
        ) from None


# doctor


class _Ear:
    """A listener that waits for one announcement at a time."""

    def __init__(self) -> None:
        self.heard = anyio.Event()

    def received(self, channel: str, publication: Publication) -> None:
        self.heard.set()

    def interrupted(self, channels: Iterable[str]) -> None:
        """What was lost meanwhile is missed by who waits for it."""


def _doctor(arguments: argparse.Namespace) -> int:
    url = _url(arguments)
    scheme = url.partition("://")[0]
    if scheme in REDIS_SCHEMES:
        return anyio.run(_examine_redis, url)
    if scheme in BROADCASTER_SCHEMES:
        return anyio.run(_examine_broadcaster, url)
    stores_from_url(url)
    _say("ok", "memory:// is each process's own: there is nothing to connect to")
    _say("note", "with more than one worker use redis://, or rooms are not shared")
    return 0


def _say(kind: str, text: str) -> None:
    print(f"{kind:<5} {text}", flush=True)


async def _examine_redis(url: str) -> int:
    # The rest of the command works without redis-py; the URL's stores say what is missing.
    stores_from_url(url)
    from ._redis import RedisServer, RedisURL
    from ._redis.server import parse_info
    from .brokers.redis import RedisBroker

    parsed = RedisURL.parse(url)
    server = RedisServer(replace(parsed, startup=min(parsed.startup, PATIENCE)))
    broker = RedisBroker(server)
    async with _running(broker) as ear:
        info = parse_info(await server.call(0, "INFO"))
        mode = info.get("redis_mode", "standalone")
        _say("ok", f"{parsed} is Redis {info.get('redis_version', '?')}, {mode}")
        status = await _round_trips(broker, ear)
        for warning in _redis_warnings(info, replicated=parsed.durability == "replicated"):
            _say("warn", warning)
    return status


def _redis_warnings(info: dict[str, str], *, replicated: bool) -> list[str]:
    """Return what is wrong with a server's settings, as INFO shows them."""
    found = []
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") == "0":
        found.append("maxmemory is not set: Redis grows until the machine has no memory left")
    elif policy.startswith("allkeys"):
        found.append(
            f"maxmemory-policy {policy} lets Redis forget who is present and what was said when"
            " memory runs out: use noeviction or volatile-ttl"
        )
    if info.get("aof_enabled", "0") == "0":
        found.append("appendonly is off: what was said since the last snapshot goes with a crash")
    if replicated and info.get("connected_slaves", "0") == "0":
        found.append("durability=replicated, and no replica is connected: publishing will fail")
    if info.get("loading", "0") != "0":
        found.append("it is still loading its data")
    return found


async def _examine_broadcaster(url: str) -> int:
    from .brokers.broadcaster import POSTGRES, BroadcasterBroker

    broker = BroadcasterBroker(url, startup=PATIENCE)
    async with _running(broker) as ear:
        version = ""
        if url.partition("://")[0] in POSTGRES:
            version = f" is PostgreSQL {await _postgres_version(url)}"
        _say("ok", f"{broker.name}{version or ' answers'}")
        status = await _round_trips(broker, ear)
        _say("note", "at most once, no history: presence, sessions and limits are per process")
    return status


async def _postgres_version(url: str) -> str:
    import asyncpg

    from .brokers.broadcaster import parse_url

    try:
        connection = await asyncpg.connect(parse_url(url)[1], timeout=PATIENCE)
        try:
            return str(connection.get_settings().server_version)
        finally:
            await connection.close(timeout=PATIENCE)
    except (OSError, asyncpg.PostgresError) as error:
        raise ConfigurationError(f"it takes no second connection: {error}") from None


@asynccontextmanager
async def _running(broker: Broker) -> AsyncIterator[_Ear]:
    ear = _Ear()
    async with broker.run(ear):
        yield ear


async def _round_trips(broker: Broker, ear: _Ear) -> int:
    """Publish a few times what nobody keeps, and hear it."""
    channel = f"doctor:{secrets.token_hex(8)}"
    await broker.subscribe([channel])
    times = []
    for _ in range(5):
        ear.heard = anyio.Event()
        begun = time.perf_counter()
        with anyio.move_on_after(PATIENCE):
            await broker.publish(
                channel, Draft(event="ping", data=b"1", lane=Lane.NONE), NOTHING_KEPT
            )
            await ear.heard.wait()
        if not ear.heard.is_set():
            _say("fail", f"what was published was not heard within {PATIENCE:g} s")
            return 1
        times.append(time.perf_counter() - begun)
    _say("ok", f"published and heard in {median(times) * 1000:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
