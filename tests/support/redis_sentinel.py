"""A Redis master with a replica and a Sentinel that lets one take the other's place.

with RedisSentinel(tmp_path) as redis:
    redis.url                          # "redis+sentinel://127.0.0.1:…/rooms"
    redis.master.kill()                # the replica is promoted after a second or two
"""

from __future__ import annotations

from pathlib import Path

import redis

from tests.support.processes import Block, wait_for
from tests.support.redis_server import RedisServer

SERVICE = "rooms"
DOWN_AFTER = 800
"""Milliseconds after which a master that does not answer counts as down."""


class RedisSentinel(Block):
    """The methods block (see `Process`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.servers = [self._server(f"server-{number}") for number in range(2)]
        self.sentinel: RedisServer | None = None

    def _server(self, name: str, options: dict[str, str] | None = None) -> RedisServer:
        own = self._folder / name
        own.mkdir()
        return RedisServer(own, options=options, sentinel=name == "sentinel")

    @property
    def url(self) -> str:
        assert self.sentinel is not None
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{SERVICE}"

    def client(self, server: RedisServer) -> redis.Redis:
        return redis.Redis(port=server.port, socket_timeout=5, protocol=2)

    @property
    def master(self) -> RedisServer:
        """The server that the Sentinel calls the master."""
        assert self.sentinel is not None
        with self.client(self.sentinel) as client:
            address = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        assert isinstance(address, list | tuple)
        return next(server for server in self.servers if server.port == int(address[1]))

    @property
    def replica(self) -> RedisServer:
        master = self.master
        return next(server for server in self.servers if server is not master)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        first, second = self.servers
        with self.client(second) as client:
            client.replicaof("127.0.0.1", first.port)
        self.sentinel = self._server(
            "sentinel",
            {
                f"sentinel monitor {SERVICE} 127.0.0.1": f"{first.port} 1",
                f"sentinel down-after-milliseconds {SERVICE}": str(DOWN_AFTER),
                f"sentinel failover-timeout {SERVICE}": "3000",
            },
        )
        self.sentinel.start()
        sentinel = self.sentinel

        def replicates() -> bool:
            with self.client(second) as client:
                return bool(client.info("replication")["master_link_status"] == "up")

        def knows() -> bool:
            with self.client(sentinel) as client:
                return bool(client.execute_command("SENTINEL", "REPLICAS", SERVICE))

        wait_for(replicates, "the replica follows its master")
        wait_for(knows, "the Sentinel knows the replica")

    def stop(self) -> None:
        for server in [*self.servers, self.sentinel]:
            if server is not None:
                server.kill()

    def add_user(self, user: str, password: str) -> str:
        """Return the URL for a user of both servers whom `split_off` spares."""
        for server in self.servers:
            with self.client(server) as client:
                rights = ("on", f">{password}", "~*", "&*", "+@all")
                client.execute_command("ACL SETUSER", user, *rights)
        return self.url.replace("//", f"//{user}:{password}@")

    def split_off(self) -> None:
        """Let the master be gone for its replica, the Sentinel and all without a user's name. For
        the others it goes on being the master."""
        with self.client(self.master) as client:
            client.execute_command("ACL SETUSER default -@all +client|kill")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def wait_for_promotion(self, of: RedisServer) -> None:
        """Wait until the Sentinel calls `of` the master, and it is one."""

        def promoted() -> bool:
            if self.master is not of:
                return False
            with self.client(of) as client:
                return bool(client.info("replication")["role"] == "master")

        wait_for(promoted, "the replica was promoted")
