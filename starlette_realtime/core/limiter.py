"""Limits on the hot path: a bucket is two floats, and the store is asked only now and then."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

import msgspec

from ..limits.base import LimitStore


class Bucket(msgspec.Struct, gc=False):
    """Tokens of one connection: at most `burst`, `rate` more a second. A rate of 0: no limit.
    There were `level` of them at `then` (seconds, monotonic)."""

    rate: float
    burst: float
    level: float
    then: float

    def take(self, now: float) -> bool:
        """Take one token at `now` (seconds, monotonic); return whether there was one."""
        if self.level < 1.0:
            if not self.rate:
                return True
            self._fill(now)
            if self.level < 1.0:
                return False
        self.level -= 1.0
        return True

    def _fill(self, now: float) -> None:
        # Filled only when empty: for most messages this is a comparison and a subtraction.
        self.level = min(self.burst, self.level + (now - self.then) * self.rate)
        self.then = now


class SharedBucket(msgspec.Struct, eq=False, gc=False):
    """This process's share of a bucket that holds over all processes.

    Tokens are fetched from the store some at a time, so that most messages ask nobody. What is
    fetched and not used is lost to the others until the bucket fills: never more than the limit
    passes, sometimes a little less.
    """

    store: LimitStore
    key: str
    rate: float
    burst: float
    level: float = 0.0
    users: int = 0
    refused_until: float = 0.0

    def take_now(self) -> bool:
        """Take one token if there is one here."""
        if self.level >= 1.0:
            self.level -= 1.0
            return True
        return False

    async def take(self, now: float) -> bool:
        """Take one token; ask the store if there is none here."""
        if self.take_now():
            return True
        if now < self.refused_until:
            return False
        portion = max(1.0, min(self.burst / 10, 64.0))
        self.level += await self.store.take(self.key, portion, rate=self.rate, burst=self.burst)
        if self.take_now():
            return True
        # Asking again before a token can be there would only load the store.
        self.refused_until = now + min(1.0, 1.0 / self.rate)
        return False


def networks(names: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(name) for name in names)


def client_ip(
    scope: Mapping[str, Any], trusted: tuple[IPv4Network | IPv6Network, ...]
) -> str | None:
    """Return the address a connection comes from: the peer's, or, as long as that is a trusted
    proxy's, the one that proxy names last in X-Forwarded-For. Of an IPv6 address it is the network
    (/64): one household has as many addresses as it likes."""
    client = scope.get("client")
    if not client:
        return None
    host = str(client[0])
    return _behind_proxies(host, scope, trusted) if trusted else _counted_as(host)


def _behind_proxies(
    host: str, scope: Mapping[str, Any], trusted: tuple[IPv4Network | IPv6Network, ...]
) -> str:
    address = _parse(host)
    if address is None:
        return _counted_as(host)
    forwarded = [
        part.strip()
        for name, value in scope.get("headers", ())
        if name == b"x-forwarded-for"
        for part in value.decode("latin-1").split(",")
    ]
    while forwarded and any(address in network for network in trusted):
        named = _parse(forwarded.pop())
        if named is None:
            break
        address = named
    return _household(address)


@lru_cache(1024)
def _counted_as(host: str) -> str:
    address = _parse(host)
    # A Unix socket's peer, or a test's, has no address.
    return host[:255] if address is None else _household(address)


def _household(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv6Address):
        return str(ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


@lru_cache(1024)
def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address as proxies and sockets write it: with a port, in brackets, or IPv4 dressed
    as IPv6 (RFC 4291, section 2.5.5.2)."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
