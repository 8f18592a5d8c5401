"""docs/protocol.md says what the code does: its tables against the names the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from starlette_realtime import AnonymousAuth, Namespace, events
from starlette_realtime import errors as tree
from starlette_realtime.core.channels import RESERVED
from starlette_realtime.core.options import Options
from starlette_realtime.core.outbox import Hello
from starlette_realtime.errors import ClientError, CloseCode
from starlette_realtime.events import Command
from starlette_realtime.protocols import native
from tests.core.helpers import house

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "protocol.md").read_text()


def rows(heading: str) -> Iterator[list[str]]:
    """The rows of the first table under a heading."""
    _, _, section = DOCUMENT.partition(f"# {heading}\n")
    table = re.search(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n?)+)", section, re.MULTILINE)
    assert table is not None, heading
    for line in table[1].splitlines():
        yield [cell.strip() for cell in line.strip("|").split("|")]


def kinds(of: type[ClientError] = ClientError) -> Iterator[type[ClientError]]:
    for kind in of.__subclasses__():
        if not kind.__name__.startswith("_"):
            yield kind
        yield from kinds(kind)


def test_errors() -> None:
    described = {code.strip("`"): (text, retry) for code, text, retry in rows("Error codes")}
    of_the_tree = {kind for kind in kinds() if kind.__module__ == tree.__name__}
    for kind in of_the_tree:
        text, retry = described[kind.code]
        assert retry == ("yes" if kind.retry else "no"), kind.code
        if kind is not tree.LimitExceeded:
            assert text.removesuffix(": …") == kind.sentence, kind.code
    assert described.keys() == {kind.code for kind in of_the_tree} | {"not_found"}


def test_close_codes() -> None:
    described = {
        int(code): back.startswith("yes")
        for codes, _, back in rows("Close codes")
        for code in codes.split(", ")
    }
    ours = {code for name, code in vars(CloseCode).items() if name.isupper()}
    assert ours - {CloseCode.NORMAL} <= described.keys()
    for code, back in described.items():
        if code >= 4000:
            assert back == (code >= 4500), code
            assert code in ours


def test_commands() -> None:
    members = {row[0].strip("`") for row in rows("Client to server")}
    fields = {field.encode_name for field in msgspec.structs.fields(Command)}
    # `since` is a member of `join` alone.
    assert members == fields - {"since"}
    commands = set(re.findall(r'^\| `\{"type":"([a-z-]+)"', DOCUMENT, re.MULTILINE))
    assert commands < RESERVED
    # What only the server sends.
    answers = set(re.findall(r"^\| `([a-z]+)(?: \{.*\})?` \|", DOCUMENT, re.MULTILINE))
    assert commands | (answers & RESERVED) | {"connect"} == RESERVED


@pytest.mark.anyio
async def test_every_command_is_known() -> None:
    commands = set(re.findall(r'^\| `\{"type":"([a-z-]+)"', DOCUMENT, re.MULTILINE))
    async with house() as running:
        # The door answers these itself.
        assert running.engine._commands.keys() == commands - {"pong", "ack"}
        ann = await running.enter("ann")
        for command in running.engine._commands:
            await ann.send(command, id=1)
        assert "unknown_event" not in {message.get("code") for message in ann.received}


def test_the_first_message_of_the_server() -> None:
    example = re.search(r'\{"type": "connected".*?\}', DOCUMENT, re.DOTALL)
    assert example is not None
    shown = re.findall(r'"(\w+)":', example[0])
    assert shown == ["type", *(field.encode_name for field in msgspec.structs.fields(Hello))]


def test_limits() -> None:
    (said,) = re.findall(r"^Limits \(defaults\): .*?\n\n", DOCUMENT, re.MULTILINE | re.DOTALL)
    said = " ".join(said.split())
    options = Options()
    assert options.max_payload == 1_000_000 and "a frame 1 MB (then close 1009)" in said
    assert f"nesting {native.MAX_DEPTH} levels" in said
    assert f"{native.MAX_OBJECTS} objects in a frame" in said
    assert f"{events.MAX_NAME} characters each without control characters" in said
    assert f"a string (at most {events.MAX_MESSAGE_ID} characters) that makes a resend" in DOCUMENT
    assert f"a string of at most {events.MAX_ID} characters, of the client's choice" in DOCUMENT
    assert f"`auth_timeout` ({options.auth_timeout:g} s)" in DOCUMENT
    assert f"within the grace period ({options.presence_grace:g} s)" in DOCUMENT
    for name in ("ping_interval", "ping_timeout"):
        wire = re.sub("_(.)", lambda found: found[1].upper(), name)
        assert f'"{wire}": {getattr(options, name) * 1000:.0f}' in DOCUMENT


def test_reserved_names_are_no_events() -> None:
    namespace = Namespace("/", AnonymousAuth())
    for name in RESERVED:
        with pytest.raises(tree.ConfigurationError, match="protocol's own"):
            namespace.event(name)
