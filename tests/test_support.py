"""The tools of the tests do what they say: a tool that waits for nothing makes every test pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from tests.support import echo
from tests.support.browser import PageFactory
from tests.support.loops import both_loops
from tests.support.ports import Certificate, accepts
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, redis_binary
from tests.support.server import LiveServer, ServerProcess, is_closing
from tests.support.wsclient import NativeClient, NativeClosed, NativeError, matches
from tests.transports.helpers import until

pytestmark = pytest.mark.anyio


@both_loops
async def test_both_loops_means_both(anyio_backend_name: str) -> None:
    import sniffio

    assert sniffio.current_async_library() == anyio_backend_name


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto", "websockets"])
async def test_live_server_serves_and_stops(ws: str) -> None:
    async with LiveServer(echo.app, ws=ws) as server:
        async with NativeClient.open(server.ws("/")) as client:
            assert client.connected == echo.GREETING
        async with httpx.AsyncClient() as http:
            assert (await http.get(server.http("/pid"))).status_code == 200
    assert not accepts(server.port)


async def test_live_server_with_tls(
    serve: Callable[..., LiveServer], certificate: Certificate
) -> None:
    server = serve(echo.app, certificate=certificate)
    tls = certificate.client_context()
    async with NativeClient.open(server.ws("/"), tls=tls) as client:
        assert await client.request("x") == "done"


async def test_live_server_stops_while_a_clientis_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.support.server.CLOSING", 0.2)
    async with (
        LiveServer(echo.app) as server,
        NativeClient.open(server.ws("/"), close_timeout=0.1) as client,
    ):
        await client.send({"type": "flood"})
        # Full of what nobody reads, the socket stays open after the client's close frame.
        client.websocket.transport.pause_reading()
        client.websocket.protocol.send_close(1000)
        client.websocket.transport.write(b"".join(client.websocket.protocol.data_to_send()))
        connections = server._server.server_state.connections
        await until(lambda: any(map(is_closing, list(connections))))
        await to_thread.run_sync(server.stop)


async def test_live_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_REFUSES", "1")
    with pytest.raises(AssertionError, match="did not start"):
        async with LiveServer(echo.app):
            pass


def test_live_server_that_does_not_stop_says_where_it_hangs() -> None:
    release = anyio.Event()
    entered = []

    async def hangs_in_the_end(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        entered.append(asyncio.get_running_loop())
        await release.wait()
        await send({"type": "lifespan.shutdown.complete"})

    server = LiveServer(hangs_in_the_end, stop_timeout=0.5)
    server.start()
    with pytest.raises(AssertionError, match="hangs_in_the_end"):
        server.stop()
    # Let the thread end, so that it harms no other test.
    entered[0].call_soon_threadsafe(release.set)
    server._thread.join(10)
    assert not server._thread.is_alive()


async def test_server_process_lives_dies_and_comes_back(
    serve_process: Callable[..., ServerProcess],
) -> None:
    server = serve_process("tests.support.echo:app", ws="wsproto")
    first = httpx.get(server.http("/pid")).text
    assert [int(first)] == server.worker_pids
    await to_thread.run_sync(server.restart)
    assert httpx.get(server.http("/pid")).text != first
    server.kill()
    assert not accepts(server.port)
    assert server.returncode == -9
    server.start()
    assert httpx.get(server.http("/pid")).status_code == 200
    assert server.terminate() in {0, -15}


async def test_server_process_with_workers(serve_process: Callable[..., ServerProcess]) -> None:
    server = serve_process("tests.support.echo:app", workers=2)
    assert len(server.worker_pids) == 2
    killed = server.kill_worker()
    server.wait_until(lambda: killed not in server.worker_pids, "rid of the killed worker")
    # The master makes a new one, so again two serve.
    server.wait_until(lambda: len(server.worker_pids) == 2, "whole again")


def test_server_process_shows_why_it_did_not_start(tmp_path: Path) -> None:
    server = ServerProcess("tests.support.nowhere:app", output=tmp_path / "log")
    with pytest.raises(AssertionError, match=r"nowhere") as caught, server:
        pass
    assert "No module named" in str(caught.value) or "Could not import" in str(caught.value)


async def test_client_keeps_what_it_is_not_asked_for(serve: Callable[..., LiveServer]) -> None:
    server = serve(echo.app)
    async with NativeClient.open(server.ws("/"), token="t", hello={"token": "t"}) as client:
        # The echo takes `connect` for an event.
        assert (await client.expect("ack"))["data"] == "done"
        assert await client.request("anything", "room", {"x": 1}) == "done"
        noise = await client.expect("noise", data={"a": 1})
        assert noise["data"]["b"] == [1, 2]
        assert [message["type"] for message in await client.settle()] == ["noise"]
        with pytest.raises(AssertionError, match="did not come in time"):
            await client.expect("noise", timeout=0.05)
        with pytest.raises(NativeError) as refused:
            await client.request("fail")
        assert (refused.value.code, refused.value.retry) == ("no", False)


async def test_client_answers_pings_while_it_reads(serve: Callable[..., LiveServer]) -> None:
    server = serve(echo.app)
    async with NativeClient.open(server.ws("/")) as client:
        await client.send({"type": "ask"})
        await client.expect("heard")
        assert client.pings == 1
    async with NativeClient.open(server.ws("/"), answer_pings=False) as client:
        await client.send({"type": "ask"})
        await client.expect("ping")


async def test_client_tells_how_it_was_closed(serve: Callable[..., LiveServer]) -> None:
    server = serve(echo.app)
    async with NativeClient.open(server.ws("/")) as client:
        await client.send_together({"type": "x", "id": 1}, {"type": "close"})
        assert await client.closed() == (4410, "told to")
        assert (await client.expect("ack", id=1))["data"] == "done"
        with pytest.raises(NativeClosed) as closed:
            await client.expect("more")
        assert closed.value.code == 4410


def test_matching_is_equality_with_room_for_more() -> None:
    assert matches({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}})
    assert not matches({"a": {"c": 2}}, {"a": {"b": 1}})
    assert not matches({"a": 1}, {"a": True})
    assert not matches({"a": [1, 2]}, {"a": [1]})


def test_redis_is_emptied_before_each_test(redis_url: str, redis_server: RedisServer) -> None:
    assert redis_url == redis_server.url
    redis_server.command_line("SET", "left", "behind")
    redis_server.flush()
    assert redis_server.command_line("DBSIZE") == b":0\r\n"


def test_own_redis_pauses_crashes_and_comes_back(own_redis: Callable[..., RedisServer]) -> None:
    redis = own_redis()
    redis.command_line("SET", "a", "1")
    redis.pause()
    with pytest.raises(TimeoutError):
        redis.command_line("PING", timeout=0.2)
    redis.resume()
    assert redis.command_line("GET", "a") == b"$1\r\n1\r\n"
    redis.kill()
    assert not accepts(redis.port)
    redis.start()
    assert redis.command_line("GET", "a") == b"$-1\r\n"


def test_own_redis_may_keep_what_it_has(own_redis: Callable[..., RedisServer]) -> None:
    redis = own_redis(appendonly=True)
    redis.command_line("SET", "a", "1")
    redis.kill()
    redis.start()
    assert redis.command_line("GET", "a") == b"$1\r\n1\r\n"
    redis.restart()
    assert redis.command_line("GET", "a") == b"$1\r\n1\r\n"


def test_a_port_that_another_redis_took_is_left_to_it(
    own_redis: Callable[..., RedisServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = own_redis()
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.redis_server.free_port", lambda below: other.port)
        server = RedisServer(tmp_path)
    assert server.port == other.port
    with server:
        assert server.port != other.port
        assert b"+PONG" in server.command_line("PING")


def test_a_cluster_that_does_not_come_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if redis_binary() is None:
        pytest.skip("redis-server is not installed")
    cluster = RedisCluster(tmp_path)
    wait, folders = cluster.wait_until_whole, []

    def never_at_first(seconds: float) -> None:
        folders.append(cluster.servers[0].folder)
        wait(0 if len(folders) == 1 else seconds)

    monkeypatch.setattr(cluster, "wait_until_whole", never_at_first)
    with pytest.warns(UserWarning, match="(?s)a second Redis Cluster.*cluster_state"), cluster:
        assert folders[0] != folders[1] == cluster.servers[0].folder
        assert cluster.owner(0).running
    assert not any(server.running for server in cluster.servers)


def test_replica_and_sentinel(own_redis: Callable[..., RedisServer]) -> None:
    master = own_redis()
    replica = own_redis(options={"replicaof": f"127.0.0.1 {master.port}"})
    sentinel = own_redis(
        sentinel=True, options={"sentinel monitor": f"main 127.0.0.1 {master.port} 1"}
    )
    replica.wait_until(
        lambda: b"master_link_status:up" in replica.command_line("INFO", "replication"),
        "linked to its master",
    )
    found = sentinel.command_line("SENTINEL", "get-master-addr-by-name", "main")
    assert str(master.port).encode() in found


async def test_page_opens(page: PageFactory, serve: Callable[..., LiveServer]) -> None:
    server = serve(echo.app)
    ann = await page(server.http("/"))
    bob = await page(server.http("/"))
    assert await ann.title() == await bob.title() == "ready"
    await ann.evaluate("localStorage.setItem('who', 'ann')")
    assert await bob.evaluate("localStorage.getItem('who')") is None


@pytest.mark.parametrize(("mark", "text"), [("log", "console: logged"), ("throw", "thrown")])
async def test_page_notices_errors(
    page: PageFactory, serve: Callable[..., LiveServer], mark: str, text: str
) -> None:
    server = serve(echo.app)
    await page(server.http(f"/#{mark}"))
    end = time.monotonic() + 5
    while not page.errors and time.monotonic() < end:
        await anyio.sleep(0.01)
    assert len(page.errors) == 1
    assert text in page.errors[0]
    page.expect_error(text)
    assert page.errors == []
