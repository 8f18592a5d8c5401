"""A Redis Cluster of three masters, each with a replica, on free ports.

with RedisCluster(tmp_path) as cluster:
    cluster.url                        # "redis+cluster://127.0.0.1:…,127.0.0.1:…"
    cluster.owner(slot)                # the `RedisServer` that is in charge of a slot
    cluster.move(slot, server)         # hand an empty slot over
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.processes import Block, wait_for
from tests.support.redis_server import RedisServer, redis_binary

NODE_TIMEOUT = 1500
"""Milliseconds after which a node that does not answer counts as failed."""

CREATE_OPTIONS = ["--cluster-replicas", "1", "--cluster-yes"]


class RedisCluster(Block):
    """The methods block (see `Process`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.servers: list[RedisServer] = []

    def _choose_servers(self) -> None:
        options = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(NODE_TIMEOUT),
            "cluster-config-file": "nodes.conf",
            "cluster-allow-replica-migration": "no",
            # A replica is not named before it has had something, be it this.
            "repl-ping-replica-period": "1",
        }
        folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=self._folder))
        self.servers = []
        for number in range(6):
            own = folder / f"node-{number}"
            own.mkdir()
            self.servers.append(RedisServer(own, options=options))

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3])
        return f"redis+cluster://{hosts}"

    def client(self, server: RedisServer) -> redis.Redis:
        return redis.Redis(port=server.port, socket_timeout=5, protocol=2)

    def start(self) -> None:
        # It is there after three seconds; once in some hundred times it did not come at all.
        try:
            self._start(seconds=20)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            warnings.warn(f"a second Redis Cluster is made: {error}", stacklevel=2)
            self.stop()
            self._start(seconds=40)

    def _start(self, seconds: float) -> None:
        self._choose_servers()
        for server in self.servers:
            server.start()
        addresses = [f"127.0.0.1:{server.port}" for server in self.servers]
        made = subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, *CREATE_OPTIONS],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        self.wait_until_whole(seconds)

    def stop(self) -> None:
        for server in self.servers:
            server.kill()

    def mend(self) -> None:
        """Start again what a test has killed, and wait until all is as it was."""
        killed = [server for server in self.servers if not server.running]
        for server in killed:
            server.start()
        if killed:
            self.wait_until_whole()

    def wait_until_whole(self, seconds: float = 40) -> None:
        """Wait until all nodes see all slots served and each master with its replica."""

        def whole() -> bool:
            for server in self.servers:
                try:
                    with self.client(server) as client:
                        info = client.execute_command("CLUSTER INFO")
                        slots = self._slots(client)
                        link = client.info("replication")
                except redis.RedisError:
                    return False
                if (
                    _value(info, "cluster_state") != "ok"
                    or len({entry[2][1] for entry in slots}) != 3
                ):
                    return False
                if link["role"] == "slave" and link["master_link_status"] != "up":
                    return False
                if any(len(entry) < 4 for entry in slots):
                    return False
            return True

        try:
            wait_for(whole, "the cluster is whole", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._describe()}") from None

    def _describe(self) -> str:
        """What each node says of the others, for when that is not what it should be."""
        words = [("CLUSTER", "INFO"), ("CLUSTER", "NODES"), ("INFO", "replication")]
        lines = []
        for server in self.servers:
            lines.append(f"node {server.port}:")
            for command in words:
                try:
                    lines.append(server.command_line(*command).decode(errors="replace"))
                except OSError as error:
                    lines.append(repr(error))
        return "\n".join(lines)

    def _slots(self, client: redis.Redis) -> list[Any]:
        # First slot, last slot, then master and replicas: address, port, id.
        found: list[Any] = client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        return found

    def owner(self, slot: int) -> RedisServer:
        """The server in charge of a slot, as those that live see it."""
        for server in self.servers:
            if not server.running:
                continue
            with self.client(server) as client:
                for first, last, master, *_ in self._slots(client):
                    if first <= slot <= last:
                        return next(s for s in self.servers if s.port == master[1])
        raise AssertionError(f"nobody is in charge of slot {slot}")

    def replica_of(self, master: RedisServer) -> RedisServer:
        with self.client(master) as client:
            port = int(client.info("replication")["slave0"]["port"])
        return next(server for server in self.servers if server.port == port)

    def move(self, slot: int, target: RedisServer) -> None:
        """Hand over a slot with all its keys, as `redis-cli --cluster reshard` does."""
        finish = self.begin_move(slot, target)
        with self.client(self.owner(slot)) as here:
            while keys := here.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                self.migrate(here, target, *keys)
        finish()

    def begin_move(self, slot: int, target: RedisServer) -> Callable[[], None]:
        """Begin to hand over a slot; the keys are to be migrated. Returns what ends it."""
        source = self.owner(slot)
        with self.client(source) as here, self.client(target) as there:
            ours = here.execute_command("CLUSTER MYID").decode()
            theirs = there.execute_command("CLUSTER MYID").decode()
            there.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ours)
            here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", theirs)

        def finish() -> None:
            for server in (target, source):
                with self.client(server) as client:
                    client.execute_command("CLUSTER SETSLOT", slot, "NODE", theirs)

        return finish

    @staticmethod
    def migrate(source: Any, target: RedisServer, *keys: str) -> None:
        """Hand over some keys of a slot that is on its way."""
        source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)


def _value(info: Any, name: str) -> str:
    if isinstance(info, dict):
        return str(info[name])
    lines = str(info, "utf-8").splitlines()
    return next(line.split(":", 1)[1] for line in lines if line.startswith(f"{name}:"))


_shared: list[RedisCluster] = []


def shared_cluster(request: pytest.FixtureRequest) -> RedisCluster:
    """The session's cluster, whole. For fixtures, in whatever module they are."""
    if redis_binary() is None:
        pytest.skip("redis-server is not installed")
    if not _shared:
        factory = request.getfixturevalue("tmp_path_factory")
        cluster = RedisCluster(factory.mktemp("cluster")).__enter__()
        _shared.append(cluster)
        request.config.add_cleanup(cluster.stop)
    _shared[0].mend()
    return _shared[0]
