"""What a Redis URL says.

    redis://[user[:password]@]host[:port][/db][?options]
    redis+sentinel://[user[:password]@]host[:port],host[:port]…/service[/db][?options]
    redis+cluster://[user[:password]@]host[:port],host[:port]…[?options]

`rediss`, `rediss+sentinel` and `rediss+cluster` are the same over TLS. What stands in user and
password is percent-encoded. For the options see `RedisURL`; a wrong one is an error, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

from ..errors import ConfigurationError

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
SCHEMES: Final = tuple(
    scheme + kind for scheme in ("redis", "rediss") for kind in ("", "+sentinel", "+cluster")
)

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = (*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname")

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisURL:
    """A parsed URL. Durations are in seconds. `str()` shows it without its secrets."""

    kind: Literal["single", "sentinel", "cluster"]
    hosts: tuple[Address, ...]
    """The server; the Sentinels; or some of the cluster's nodes."""
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    service: str = ""
    """Name under which the Sentinels know the master."""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    prefix: str = "rt"
    """First part of all keys and channels: apps that share a server have different ones."""
    pool: int = 2
    """Connections for commands to each server; one more listens."""
    timeout: float = 2.0
    """A connection that leaves a command unanswered for so long is given up."""
    patience: float = 3.0
    """How long a call goes on trying during an outage before it raises `BrokerUnavailable`."""
    startup: float = 10.0
    """How long starting goes on trying to reach the server."""
    probe: float = 2.0
    """Time between two probes of the way that announcements take."""
    durability: Literal["fast", "replicated"] = "fast"
    """With "replicated" a publication counts as published once a replica has it."""
    tls_options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        if self.kind != "single":
            scheme += f"+{self.kind}"
        hosts = ",".join(host_and_port(address) for address in self.hosts)
        path = f"/{self.service}" if self.service else ""
        return f"{scheme}://{hosts}{path}{f'/{self.db}' if self.db else ''}"

    @classmethod
    def parse(cls, url: str) -> RedisURL:
        """Return what `url` says.

        Raises:
            ConfigurationError: it does not say it rightly. The text never has the password in it.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in SCHEMES:
            raise ConfigurationError(f"no Redis URL: it starts with one of {', '.join(SCHEMES)}")
        security, _, kind = scheme.partition("+")
        if "#" in rest:
            raise ConfigurationError(f"{scheme}: '#' in the URL; in a password it is written %23")
        rest, _, query = rest.partition("?")
        # What comes before the last @ may be a password with slashes in it.
        credentials, _, place = rest.rpartition("@")
        netloc, _, path = place.partition("/")
        username, _, password = credentials.partition(":")
        segments = [unquote(segment) for segment in path.split("/") if segment]
        service = ""
        if kind == "sentinel":
            if not segments:
                raise ConfigurationError(f"{scheme}: the name of the service is missing: …/name")
            service = segments.pop(0)
        db = 0
        if segments:
            if kind == "cluster":
                raise ConfigurationError(f"{scheme}: a cluster has no databases, so no path")
            db = _database(scheme, segments)
        hosts = _hosts(scheme, netloc, SENTINEL_PORT if kind == "sentinel" else PORT)
        if not kind and len(hosts) > 1:
            raise ConfigurationError(
                f"{scheme}: several hosts: use {scheme}+sentinel or {scheme}+cluster"
            )
        return _with_options(
            scheme,
            query,
            cls(
                kind=kind or "single",  # type: ignore[arg-type]
                hosts=hosts,
                tls=security == "rediss",
                username=unquote(username) or None,
                password=unquote(password) or None,
                db=db,
                service=service,
            ),
        )


def host_and_port(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _database(scheme: str, segments: list[str]) -> int:
    if len(segments) > 1 or not (segments[0].isascii() and segments[0].isdigit()):
        raise ConfigurationError(f"{scheme}: the database is a number: …/0")
    return int(segments[0])


def _hosts(scheme: str, netloc: str, default_port: int) -> tuple[Address, ...]:
    found = []
    for part in netloc.split(",") if netloc else ["localhost"]:
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/\s]+))(?::([0-9]{1,5}))?", part)
        port = int(match[3] or default_port) if match else 0
        if match is None or not 0 < port < 65536:
            raise ConfigurationError(f"{scheme}: {part!r} is not a host with a port")
        found.append((match[1] or match[2], port))
    return tuple(found)


def _with_options(scheme: str, query: str, url: RedisURL) -> RedisURL:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigurationError(f"{scheme}: the options are written ?name=value&…") from None
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ConfigurationError(f"{scheme}: an option stands there twice")
    known: dict[str, object] = {}
    tls: dict[str, str] = {}
    for name, value in options.items():
        match name:
            case "prefix":
                if not re.fullmatch(r"[A-Za-z0-9_.:/-]{1,64}", value):
                    raise ConfigurationError(
                        f"{scheme}: prefix is up to 64 letters, digits and characters of '_.:/-'"
                    )
                known[name] = value
            case "pool":
                known[name] = int(_number(scheme, name, value, 1, 64))
            case "timeout" | "patience" | "startup" | "probe":
                known[name] = _number(scheme, name, value, 0.05, 3600)
            case "durability":
                if value not in ("fast", "replicated"):
                    raise ConfigurationError(f"{scheme}: durability is 'fast' or 'replicated'")
                known[name] = value
            case "sentinel_username" | "sentinel_password" if url.kind == "sentinel":
                known[name] = value
            case _ if name in _TLS_OPTIONS and url.tls:
                tls[name] = value
            case _:
                raise ConfigurationError(f"{scheme}: unknown option {name!r}: {_known(url)}")
    if tls.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise ConfigurationError(f"{scheme}: ssl_cert_reqs is 'required', 'optional' or 'none'")
    if tls.get("ssl_check_hostname", "true") not in ("true", "false"):
        raise ConfigurationError(f"{scheme}: ssl_check_hostname is 'true' or 'false'")
    kept = {name: getattr(url, name) for name in RedisURL.__slots__}
    return RedisURL(**{**kept, **known, "tls_options": tls})


def _number(scheme: str, name: str, value: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise ConfigurationError(f"{scheme}: {name} is a number from {low:g} to {high:g}")
    return number


def _known(url: RedisURL) -> str:
    names = ["prefix", "pool", "timeout", "patience", "startup", "probe", "durability"]
    if url.kind == "sentinel":
        names += ["sentinel_username", "sentinel_password"]
    if url.tls:
        names += _TLS_OPTIONS
    return f"there are {', '.join(names)}"
