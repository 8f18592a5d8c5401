"""Starting on a Redis, and what is said when it will not do."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import redis

from starlette_realtime._redis import RedisServer, load
from starlette_realtime._redis.pipe import Lost, Pipe, connect, pack
from starlette_realtime._redis.scripts import Script
from starlette_realtime.brokers.redis import RedisBroker
from starlette_realtime.errors import BrokerUnavailable, ConfigurationError
from starlette_realtime.events import Draft, Lane, Retention
from starlette_realtime.presence import Counts
from starlette_realtime.presence.redis import RedisPresence
from starlette_realtime.testing.contracts import Recorder
from tests.support.ports import Certificate, free_port
from tests.support.redis_server import CLUSTER_BUS, documented_rights
from tests.support.redis_server import RedisServer as Process

pytestmark = pytest.mark.anyio

Own = Callable[..., Process]


async def fails(url: str, said: str) -> None:
    broker = RedisBroker(url)
    with pytest.raises(ConfigurationError, match=said) as caught:
        async with broker.run(Recorder()):
            pass
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def works(url: str) -> None:
    recorder = Recorder()
    broker = RedisBroker(url)
    async with broker.run(recorder):
        await broker.subscribe(["room"])
        await broker.publish("room", Draft(event="said", data=b"1"), Retention())
        await recorder.wait("room", 1)


@asynccontextmanager
async def pretending(answers: dict[bytes, bytes]) -> AsyncIterator[int]:
    """Run something on a free port that answers commands, by their first word, like a Redis."""

    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                length = int((await reader.readline())[1:])
                words.append((await reader.readexactly(length + 2))[:-2])
            writer.write(answers.get(words[0].upper(), b"+OK\r\n"))
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for writer in writers:
            writer.close()
            await writer.wait_closed()


def info(text: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text.encode())


async def test_nobody_there() -> None:
    port = free_port()
    await fails(f"redis://:secret@127.0.0.1:{port}/0?startup=0.1", f"cannot be reached: .*{port}")


async def test_a_server_that_comes_a_little_later(own_redis: Own) -> None:
    server = own_redis()
    server.stop()
    async with anyio.create_task_group() as group:
        group.start_soon(works, f"{server.url}?startup=20")
        await anyio.to_thread.run_sync(server.start)


async def test_something_that_never_answers(own_redis: Own) -> None:
    server = own_redis()
    server.pause()
    await fails(f"{server.url}?startup=0.1&timeout=0.2", "cannot be reached")


async def test_a_wrong_password(own_redis: Own) -> None:
    server = own_redis(options={"requirepass": "right"})
    await works(f"redis://:right@127.0.0.1:{server.port}/0")
    for credentials in (":secret@", "ann:secret@", ""):
        url = f"redis://{credentials}127.0.0.1:{server.port}/0"
        await fails(url, "refused the user or password")


async def test_a_database_that_is_not_there(own_redis: Own) -> None:
    server = own_redis(options={"databases": "2"})
    await fails(f"redis://127.0.0.1:{server.port}/7", "out of range")


async def test_a_user_with_rights_for_the_prefix_alone(own_redis: Own) -> None:
    server = own_redis()
    with redis.Redis(port=server.port, protocol=2) as client:
        deployment = Path(__file__).parents[2] / "docs" / "deployment.md"
        rules = re.search(r"ACL SETUSER realtime (.*)", deployment.read_text())
        assert rules is not None
        users = {
            "ann": rules[1].replace(">password", ">pw").replace("rt:", "app:"),
            "bob": "on >pw ~app:* &other:* +@all",
            "cyd": "on >pw ~x:* &app:* +@all",
            "dan": "on >pw ~* &* +@connection",
        }
        for name, allowed in users.items():
            client.execute_command("ACL", "SETUSER", name, *allowed.split())
    address = f"pw@127.0.0.1:{server.port}/0?prefix=app&startup=3"
    await works(f"redis://ann:{address}")
    shared = RedisServer(f"redis://ann:{address}")
    presence = RedisPresence(shared)
    async with presence.run():
        assert await presence.expire() == 0
    await fails(f"redis://bob:{address}", "the user may not")
    await fails(f"redis://cyd:{address}", "the user may not")
    await fails(f"redis://dan:{address}", "the user may not")


async def test_too_old_a_server() -> None:
    answers = {b"INFO": info("# Server\r\nredis_version:6.2.14\r\nredis_mode:standalone\r\n")}
    async with pretending(answers) as port:
        await fails(f"redis://127.0.0.1:{port}", "is Redis 6.2.14: it must be 7.0 or newer")


async def test_another_kind_of_server_than_the_url_says(own_redis: Own) -> None:
    single = own_redis()
    await fails(f"redis+cluster://127.0.0.1:{single.port}", "is no Redis Cluster: use redis://")
    node = own_redis(options={"cluster-enabled": "yes"})
    await fails(f"redis://127.0.0.1:{node.port}", r"is a Redis Cluster: use redis\+cluster://")
    sentinel = own_redis(sentinel=True)
    await fails(f"redis://127.0.0.1:{sentinel.port}", r"is a Sentinel: use redis\+sentinel://")
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/nobody?startup=0.1"
    await fails(url, "knows no 'nobody'")


async def test_a_cluster_without_all_its_slots(own_redis: Own) -> None:
    node = own_redis(options={"cluster-enabled": "yes"})
    await fails(f"redis+cluster://127.0.0.1:{node.port}?startup=0.1", "slots without a node")


def with_tls(certificate: Certificate, port: int) -> dict[str, str]:
    return {
        "tls-port": str(port),
        "tls-cert-file": str(certificate.certfile),
        "tls-key-file": str(certificate.keyfile),
        "tls-ca-cert-file": str(certificate.certfile),
        "tls-auth-clients": "no",
    }


async def test_over_tls(own_redis: Own, certificate: Certificate) -> None:
    port = free_port()
    server = own_redis(options=with_tls(certificate, port))
    assert server.running
    await works(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate.certfile}")
    await works(f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none")
    await fails(f"rediss://localhost:{port}/0?startup=600", f"localhost:{port} shows a certificate")


async def test_a_user_over_tls(own_redis: Own, certificate: Certificate) -> None:
    port = free_port()
    server = own_redis(options=with_tls(certificate, port))
    with redis.Redis(port=server.port, protocol=2) as client:
        client.execute_command("ACL", "SETUSER", "realtime", *documented_rights())
    options = f"ssl_ca_certs={certificate.certfile}"
    await works(f"rediss://realtime:password@localhost:{port}/0?{options}")
    await fails(f"rediss://realtime:secret@localhost:{port}/0?{options}", "refused the user")


async def test_sentinel_over_tls(own_redis: Own, certificate: Certificate) -> None:
    port, sentinel_port = free_port(), free_port()
    own_redis(options=with_tls(certificate, port))
    own_redis(
        sentinel=True,
        options={
            **with_tls(certificate, sentinel_port),
            "tls-replication": "yes",
            "sentinel monitor rooms 127.0.0.1": f"{port} 1",
        },
    )
    url = f"rediss+sentinel://localhost:{sentinel_port}/rooms"
    await works(f"{url}?ssl_ca_certs={certificate.certfile}")
    # At once: no waiting mends it.
    await fails(f"{url}?startup=600", f"the Sentinel localhost:{sentinel_port} shows a certificate")
    nobody = f"rediss+sentinel://localhost:{sentinel_port},localhost:{free_port()}/rooms"
    await fails(f"{nobody}?startup=600", f"the Sentinel localhost:{sentinel_port} shows")


async def test_a_cluster_over_tls(own_redis: Own, certificate: Certificate) -> None:
    ports = [free_port(below=65536 - CLUSTER_BUS) for _ in range(2)]
    clustered = {"cluster-enabled": "yes", "tls-cluster": "yes"}
    nodes = [own_redis(options={**clustered, **with_tls(certificate, port)}) for port in ports]
    one, two = nodes
    one.command_line("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
    two.command_line("CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
    one.command_line("CLUSTER", "MEET", "127.0.0.1", str(ports[1]))
    with anyio.fail_after(20):
        for node in nodes:
            while b"cluster_state:ok" not in node.command_line("CLUSTER", "INFO"):
                await anyio.sleep(0.02)
    # The second node is found through the first, at its port for TLS.
    url = f"rediss+cluster://localhost:{ports[0]}"
    options = f"ssl_ca_certs={certificate.certfile}"
    broker = RedisBroker(f"{url}?{options}")
    said = Draft(event="said", data=b"1", lane=Lane.HISTORY)
    async with broker.run(Recorder()):
        for n in range(16):
            await broker.publish(f"room-{n}", said, Retention())
    assert b":0\r\n" not in [node.command_line("DBSIZE") for node in nodes]
    await works(f"{url}?{options}")
    await fails(f"{url}?startup=600", f"localhost:{ports[0]} shows a certificate")
    await fails(f"{url},localhost:{free_port()}?startup=600", f"localhost:{ports[0]} shows")


async def test_a_node_of_a_cluster_whose_certificate_is_for_another_name(
    own_redis: Own, tmp_path: Path
) -> None:
    certificate = Certificate.make(tmp_path, address=False)
    port = free_port(below=65536 - CLUSTER_BUS)
    clustered = {
        "cluster-enabled": "yes",
        "tls-cluster": "yes",
        "cluster-announce-ip": "127.0.0.1",
    }
    node = own_redis(options={**clustered, **with_tls(certificate, port)})
    node.command_line("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    with anyio.fail_after(20):
        while b"cluster_state:ok" not in node.command_line("CLUSTER", "INFO"):
            await anyio.sleep(0.02)
    # It is found under the name it was asked by, and calls itself by its address.
    url = f"rediss+cluster://localhost:{port}?ssl_ca_certs={certificate.certfile}&startup=600"
    await fails(url, f"127.0.0.1:{port} shows a certificate")
    await works(f"{url}&ssl_check_hostname=false")


async def test_a_replica_takes_no_publications_and_says_so(own_redis: Own) -> None:
    master, replica = own_redis(), own_redis()
    broker = RedisBroker(f"{replica.url}?patience=0.3")
    said = Draft(event="said", data=b"1", lane=Lane.HISTORY)
    async with broker.run(Recorder()):
        await broker.publish("room", said, Retention())
        with redis.Redis(port=replica.port, protocol=2) as client:
            client.replicaof("127.0.0.1", master.port)
            with pytest.raises(BrokerUnavailable, match=r"read only replica|MASTERDOWN"):
                await broker.publish("room", said, Retention())
            client.replicaof("NO", "ONE")
        await broker.publish("room", said, Retention())


async def test_eviction_is_warned_of(own_redis: Own, caplog: pytest.LogCaptureFixture) -> None:
    server = own_redis(options={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    with caplog.at_level(logging.WARNING, logger="starlette_realtime"):
        await works(server.url)
    assert "allkeys-lru" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio() -> None:
    await fails("redis://localhost", "Redis needs asyncio")


async def test_stores_share_one_server_and_the_last_closes_it(redis_url: str) -> None:
    server = RedisServer(f"{redis_url}?pool=3")
    broker, presence = RedisBroker(server), RedisPresence(server)
    with redis.Redis.from_url(redis_url, protocol=2) as client:

        def connections() -> int:
            return len([c for c in client.client_list() if c["name"] == ""]) - 1

        before = connections()
        async with presence.run():
            async with broker.run(Recorder()):
                await presence.counts("room")
                # One listens, three carry commands.
                assert connections() - before == 4
            assert await presence.counts("room") == Counts(0, 0)
        assert connections() == before
        with pytest.raises(BrokerUnavailable):
            await presence.counts("room")
        # And again.
        async with presence.run():
            assert await presence.counts("room") == Counts(0, 0)


async def test_a_script_that_fails_is_no_outage(redis_url: str) -> None:
    # Far longer than the test has: it is not tried again.
    server = RedisServer(f"{redis_url}?patience=600")
    wrong = Script.of("return redis.call('NOSUCH')")
    async with server.open():
        with pytest.raises(BrokerUnavailable, match="Unknown Redis command"):
            await server.run(0, wrong, ["x"])


async def test_no_memory_left_is_an_outage_and_changes_nothing(own_redis: Own) -> None:
    server = own_redis(options={"maxmemory-policy": "noeviction"})
    broker = RedisBroker(f"{server.url}?patience=0.3")
    said = Draft(event="said", data=b"1", lane=Lane.HISTORY)
    few = Retention(size=2)
    async with broker.run(Recorder()):
        for _ in range(2):
            await broker.publish("room", said, few)
        end = (await broker.publish("room", said, few)).position
        with redis.Redis(port=server.port, protocol=2) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(BrokerUnavailable, match="memory"):
                await broker.publish("new room", said, few)
            client.config_set("maxmemory", "0")
        page = await broker.page("room", limit=10)
        assert (page.position, len(page.publications)) == (end, 2)
        assert (await broker.publish("new room", said, few)).position.offset == 1


async def test_answers_stay_in_step_when_those_who_asked_go_away(redis_url: str) -> None:
    server = RedisServer(redis_url)
    async with server.open():
        for number in range(100):
            with anyio.move_on_after(0 if number % 3 else 1):
                await server.call(0, "SET", f"key{number}", number)
        answers = await asyncio.gather(
            *(server.call(0, "ECHO", str(number)) for number in range(200))
        )
        assert answers == [b"%d" % number for number in range(200)]


async def test_a_connection_that_leaves_a_command_unanswered_is_given_up(own_redis: Own) -> None:
    server = own_redis()
    url = RedisServer(f"{server.url}?timeout=0.2").url
    pipe = Pipe(await connect(url, url.hosts[0]), url.hosts[0], url.timeout)
    running = asyncio.ensure_future(pipe.run())
    (answer,) = pipe.ask(("PING",))
    assert await answer == b"PONG"
    server.pause()
    (answer,) = pipe.ask(("PING",))
    with pytest.raises(Lost, match=r"no answer for 0\.2 s"):
        await answer
    with pytest.raises(Lost):
        await running
    with pytest.raises(Lost, match="has closed"):
        pipe.ask(("PING",))


def test_commands_on_the_wire() -> None:
    packed = pack(("SET", b"\r\n", 12, "ß"))
    assert packed == b"*4\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$2\r\n12\r\n$2\r\n\xc3\x9f\r\n"


def test_scripts_are_known_by_their_digest() -> None:
    script = load("starlette_realtime.brokers", "find.lua")
    assert b"kept_under" in script.text
    assert Script.of("return 1").digest == b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
