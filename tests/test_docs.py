"""The examples in the documentation run as they stand there. README.md's are in tests/browser."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Annotated, Any

import anyio
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import Depends, FastAPI
from jwt.algorithms import RSAAlgorithm
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse

import starlette_realtime
from starlette_realtime import (
    Chat,
    Member,
    Realtime,
    RealtimeMiddleware,
    Room,
    RoomType,
    Session,
    SignedTokenAuth,
    brokers,
    events,
    tickets,
)
from starlette_realtime import auth as auths
from starlette_realtime.testing import contracts
from tests.clients.visitors import NodeVisitor
from tests.support.server import ROOT, LiveServer

pytestmark = pytest.mark.anyio

CLIENT = "starlette_realtime/static/README.md"
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "docs").glob("*.md")
    if "```python" in page.read_text()
)
AUTH = SignedTokenAuth("known to all, because it guards nothing")
STAFF = SignedTokenAuth("known to all, because it guards nothing", salt="staff")


@dataclass
class Account:
    """A user of the app into which the examples are put."""

    id: str = "ann"
    key: str = "ann"
    name: str = "Ann"
    nick: str = "ann"
    picture: str = ""
    disabled: bool = False


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert found, f"{page} has no example in {language}"
    return found


def compiled(code: str, page: str) -> CodeType:
    found: CodeType = compile(code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return found


def waits(code: CodeType) -> bool:
    """Whether it is for a coroutine of an app that runs."""
    return bool(code.co_flags & inspect.CO_COROUTINE)


async def run(code: str, names: dict[str, Any]) -> None:
    found = compiled(code, "docs")
    if waits(found):
        await eval(found, names)
    else:
        exec(found, names)


def names() -> dict[str, Any]:
    """What an example may take for granted: the public names, and what the app has already."""
    app = FastAPI()
    accounts = SimpleNamespace(find=found_account, by_key_hash=found_account)
    public = [starlette_realtime, auths, tickets, brokers, events, contracts]
    modules = {"anyio": anyio, "hashlib": hashlib, "pytest": pytest, "time": time, "httpx": httpx}
    others: list[Any] = [
        *(AsyncIterator, Path, PlainTextResponse, SessionMiddleware),
        asynccontextmanager,
    ]
    return {
        "__name__": "docs",
        **{name: getattr(module, name) for module in public for name in exported(module)},
        **{each.__name__: each for each in others},
        **modules,
        "accounts": accounts,
        "app": app,
        "auth": AUTH,
        "CurrentUser": Annotated[Account, Depends(Account)],
        "friends": are_friends,
        "is_sunday": lambda: False,
        "log": logging.getLogger("docs"),
        "realtime": Realtime("memory://", auth=AUTH),
        "secret": "as secret as an example can be",
        "new_secret": "as secret as an example can be",
        "old_secret": "not as secret as an example should be",
        "staff_auth": STAFF,
    }


def exported(module: Any) -> list[str]:
    names: list[str] = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if inspect.isclass(value)
    ]
    return names


async def found_account(*_: object) -> Account:
    return Account()


async def are_friends(*_: object) -> bool:
    return True


@pytest.mark.parametrize("page", PAGES)
def test_what_is_defined_can_be_defined(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**RSAAlgorithm.to_jwk(key, as_dict=True), "kid": "1"}]}))
    monkeypatch.setenv("REALTIME_SECRET", "known to all, because it guards nothing")
    had = names()
    given: dict[str, Any] = {}
    for code in blocks(page, "python"):
        # An example knows those above it, and another app's `auth`.
        given |= had
        found = compiled(code.replace("/etc/app/jwks.json", str(jwks)), page)
        # The others are for an app that runs: the tests below.
        if not waits(found):
            exec(found, given)


class Live:
    """An app that was made of examples, served, and JavaScript that talks to it."""

    def __init__(self, serve: Callable[..., LiveServer]) -> None:
        self._serve = serve
        self.names = names()

    @property
    def realtime(self) -> Realtime:
        found: Realtime = self.names["realtime"]
        return found

    def define(self, page: str) -> None:
        for code in blocks(page, "python"):
            found = compiled(code, page)
            if not waits(found):
                exec(found, self.names)

    async def js(self, code: str) -> Any:
        """Runs it in Node: `as(user)` connects, `until(fn)` waits, `page.…` is what a page has."""
        app = self.names["app"]
        app.add_middleware(RealtimeMiddleware, realtime=self.realtime, path="/realtime")
        server = self._serve(app)
        users = ("ann", "bob", "cy")
        tokens = {user: AUTH.create_token(user, {"name": user}) for user in users}
        prelude = f"""
            const {{ connect, createClient }} = visitor.realtime;
            globalThis.location = {{ href: `${{visitor.origin}}/` }};
            const tokens = {json.dumps(tokens)};
            const staffToken = {json.dumps(STAFF.create_token("ann"))};
            const clients = [];
            const as = async (user) => {{
                clients.push(await connect("/realtime", {{ auth: tokens[user] }}));
                return clients.at(-1);
            }};
            const until = async (fn) => {{
                while (!fn()) await new Promise((resolve) => setTimeout(resolve, 5));
            }};
        """
        async with NodeVisitor.open(server.http()) as visitor:
            with anyio.fail_after(20):
                closing = "clients.forEach((one) => one.close())"
                return await visitor.run(f"{prelude} try {{ {code} }} finally {{ {closing} }}")


@pytest.fixture
def live(serve: Callable[..., LiveServer]) -> Live:
    return Live(serve)


async def test_acks(live: Live) -> None:
    games = live.realtime.room("game/{id}")
    printed: list[tuple[object, ...]] = []

    @games.on("start")
    async def start(room: Room, member: Member) -> None:
        session = member.session
        there = {"session": session, "room": room, "print": lambda *words: printed.append(words)}
        given = {**live.names, **there}
        await run(blocks("docs/acks.md", "python")[0], given)

    asked = await live.js(
        f"""const client = await as("ann");
        const room = await client.join("game/1");
        const asked = [];
        const ask = async (question) => asked.push(question);
        {blocks("docs/acks.md", "js")[0]}
        await room.send("start");
        return asked;"""
    )
    assert asked == ["Really e4?"]
    assert printed == [("ann", True), ("0 of 1 did not answer",)]


async def test_authentication(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_SECRET", "known to all, because it guards nothing")
    exec(compiled(blocks("docs/authentication.md", "python")[0], "docs"), live.names)
    user = await live.js(
        f"""const real = globalThis.fetch;
        const fetch = (path) => real(new URL(path, visitor.origin));
        {blocks("docs/authentication.md", "js")[0]}
        clients.push(client);
        return client.userId;"""
    )
    assert user == "ann"


async def test_namespaces(live: Live) -> None:
    live.define("docs/namespaces.md")
    state = await live.js(
        f"""const auth = tokens.ann;
        {blocks("docs/namespaces.md", "js")[0]}
        clients.push(client);
        await admin.send("restart");
        await admin.join("reports/today");
        return admin.state;"""
    )
    assert state == "connected"


async def test_presence(live: Live) -> None:
    live.define("docs/presence.md")
    seen = await live.js(
        f"""await as("bob");
        const client = await as("cy");
        const dots = {{}};
        const dot = (userId, status) => (dots[userId] = status);
        {blocks("docs/presence.md", "js")[0]}
        await until(() => dots.ann && dots.bob === "online");
        await (await as("ann")).send("update-status", {{ status: "busy" }});
        await until(() => dots.ann === "busy");
        const {{ users }} = await client.send("get-presence", {{ userIds: ["cy"] }});
        return users[0].status;"""
    )
    assert seen == "away"


async def test_private_messages(live: Live) -> None:
    live.define("docs/private-messages.md")
    shown = await live.js(
        f"""const shown = [];
        const show = ({{ content }}) => void shown.push(content);
        const bob = await as("bob");
        await bob.send("private-message", {{ targetUserId: "ann", content: "are you there?" }});
        bob.inbox(show);
        const client = await as("ann");
        {blocks("docs/private-messages.md", "js")[0]}
        await until(() => shown.length === 2);
        return shown.sort();"""
    )
    assert shown == ["are you there?", "hello"]


async def test_sessions(live: Live) -> None:
    live.define("docs/sessions.md")

    @live.realtime.event("ban")
    async def ban(session: Session, data: str) -> None:
        await run(blocks("docs/sessions.md", "python")[1], {**live.names, "session_id": data})

    closed = await live.js(
        """const ann = await as("ann");
        const bob = await as("bob");
        const cy = await as("cy");
        await cy.send("ban", bob.sessionId);
        await until(() => ann.closeReason && bob.closeReason);
        return [ann.closeReason, bob.closeReason];"""
    )
    assert [(one["code"], one["willReconnect"]) for one in closed] == [(4403, False), (4410, False)]


async def test_slow_receivers(live: Live) -> None:
    live.define("docs/slow-receivers.md")

    prices: RoomType = live.names["prices"]

    @prices.on("tick")
    async def tick(room: Room) -> None:
        await run(blocks("docs/slow-receivers.md", "python")[1], {**live.names, "room": room})

    seen = await live.js(
        """const client = await as("ann");
        const room = await client.join("prices/gold");
        const seen = [];
        for (const type of ["cursor", "price"]) room.on(type, (data) => seen.push(data));
        await room.send("tick");
        await until(() => seen.length === 2);
        return seen;"""
    )
    assert seen == [{"x": 3, "y": 4}, {"value": 17.2}]


async def test_typing(live: Live) -> None:
    live.define("docs/typing.md")
    seen = await live.js(
        f"""const seen = [];
        const page = async (user) => {{
            const client = await as(user);
            const room = await client.join("chat/7");
            const input = new EventTarget();
            const show = (userId) => seen.push(`${{user}} sees ${{userId}}`);
            const hide = (userId) => seen.push(`${{user}} does not see ${{userId}}`);
            {blocks("docs/typing.md", "js")[0]}
            return {{ room, input }};
        }};
        const ann = await page("ann");
        await page("bob");
        ann.input.dispatchEvent(new Event("input"));
        await until(() => seen.length === 1);
        await ann.room.send("stop-typing");
        await until(() => seen.length === 2);
        return seen;"""
    )
    assert seen == ["bob sees ann", "bob does not see ann"]


async def test_publishing_from_elsewhere(redis_url: str) -> None:
    code = blocks("docs/deployment.md", "python")[0]
    assert '"redis://…"' in code
    await run(code.replace('"redis://…"', repr(redis_url)), names())


async def test_the_clients_own_page(live: Live) -> None:
    live.realtime.add(starlette_realtime.Presence())
    live.realtime.add(starlette_realtime.DirectMessages())
    live.realtime.room("chat/{room_id}", features=[Chat()])
    in_a_page, attached_first, people = blocks(CLIENT, "js")
    imported = 'import { connect } from "/realtime/client.js";\n'
    assert imported in in_a_page
    assert await live.js(
        f"""const calls = [];
        const [fetchToken, auth] = [async () => tokens.ann, tokens.ann];
        const show = ({{ content }}) => calls.push(content);
        const store = async ({{ content }}) => void calls.push(content);
        const showDot = (userId, status) => userId === "ann" && calls.push(status);
        const showWaiting = (attempt, delay) => calls.push([attempt, delay]);
        {{ {in_a_page.replace(imported, "")} clients.push(client);
           await until(() => calls.length === 1); }}
        {{ {attached_first} client.close(); }}
        {{ {people} clients.push(client);
           const bob = await as("bob");
           await bob.send("private-message", {{ targetUserId: "ann", content: "psst" }});
           await until(() => calls.length === 3); }}
        return calls;"""
    ) == ["hello", "online", "psst"]
