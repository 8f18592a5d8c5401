"""Which web pages may connect.

A browser sends the host's cookies with a WebSocket handshake whichever site the page is from, and
lets that page read what comes back. The Origin header (RFC 6454), which a page cannot forge, is
what tells them apart (RFC 6455, section 10.2).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ..errors import ConfigurationError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_AS_HTTP: Final = {"ws": "http", "wss": "https"}
_HOST: Final = r"(?P<host>\[[0-9a-f:.]+\]|[^\s/?#@\[\]:,\\]+)"
_AUTHORITY = re.compile(_HOST + r"(?::(?P<port>[0-9]{1,5}))?\Z", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://" + _HOST + r"(?::(?P<port>[0-9]{1,5}|\*))?\Z",
    re.ASCII | re.IGNORECASE,
)
_ANY_PORT: Final = -1

_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"Authorization, Content-Type, Last-Event-ID"),
    (b"access-control-max-age", b"600"),
)


class _Origin(msgspec.Struct, frozen=True):
    """Scheme, host and port as they compare: lower case, the port named (0: none known)."""

    scheme: str
    host: str
    port: int

    def matches(self, pattern: _Origin) -> bool:
        if self.scheme != pattern.scheme or pattern.port not in (self.port, _ANY_PORT):
            return False
        if pattern.host.startswith("*."):
            # The rest must be a subdomain: `evil-example.com` is none of `*.example.com`.
            return self.host.endswith(pattern.host[1:])
        return self.host == pattern.host


def _host(text: str) -> str | None:
    """Return a host in the form in which equal ones are equal; None when it is none."""
    if text.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(text[1:-1])}]"
        except ValueError:
            return None
    # One dot at the end names the same host (RFC 1034, section 3.1).
    host = text.lower().removesuffix(".")
    return host if host.isascii() and all(host.split(".")) else None


def _parts(match: re.Match[str] | None, scheme: str) -> _Origin | None:
    host = _host(match["host"]) if match else None
    if match is None or host is None:
        return None
    text = match["port"]
    if text == "*":
        port = _ANY_PORT
    else:
        port = int(text) if text else _DEFAULT_PORTS.get(scheme, 0)
        if port > 65535:
            return None
    return _Origin(scheme, host, port)


def _parse(origin: str) -> _Origin | None:
    match = _ORIGIN.match(origin)
    # A pattern's signs have no meaning in what a browser sends.
    if match is None or "*" in origin:
        return None
    return _parts(match, match["scheme"].lower())


def _parse_pattern(pattern: str) -> _Origin:
    match = _ORIGIN.match(pattern)
    if match is not None:
        prefix = "*." if match["host"].startswith("*.") else ""
        try:
            # Browsers send names of other scripts in their ASCII form (RFC 6454, section 4).
            host = match["host"].removeprefix("*.").encode("idna").decode("ascii")
        except UnicodeError:
            host = ""
        port = f":{match['port']}" if match["port"] else ""
        plain = _ORIGIN.match(f"{match['scheme']}://{host}{port}")
        found = _parts(plain, match["scheme"].lower())
        if found is not None and "*" not in host:
            return msgspec.structs.replace(found, host=prefix + found.host)
    raise ConfigurationError(
        f"OriginPolicy: {pattern!r} is not an origin. Write scheme, host and, where it is not the"
        ' usual one, port, with nothing behind: "https://example.com", "https://*.example.com",'
        ' "http://localhost:*"; or "null"'
    )


def _header(scope: Mapping[str, Any], name: bytes) -> list[bytes]:
    return [value for key, value in scope.get("headers") or () if key.lower() == name]


def _own(scope: Mapping[str, Any]) -> _Origin | None:
    """Return the origin that the request itself was made to."""
    hosts = _header(scope, b"host")
    if len(hosts) != 1:
        return None
    scheme = str(scope.get("scheme") or "http").lower()
    scheme = _AS_HTTP.get(scheme, scheme)
    return _parts(_AUTHORITY.match(hosts[0].decode("latin-1")), scheme)


class OriginPolicy:
    """Tells whether the page behind a request may connect.

    Args:
        allowed: the pages that may connect beside those of the same origin, that is of the
            scheme, host and port that the request was made to: `"https://example.com"`,
            `"https://*.example.com"` (its subdomains, at any depth, not itself),
            `"http://localhost:*"` (any port), and `"null"` for pages without an origin, such as
            files and sandboxed frames. Or `"*"` for every page, which is safe only where nothing a
            browser sends by itself tells who the user is.
        same_origin: whether pages of the same origin may connect though they are not listed.

    A request without an Origin header is allowed: it does not come from a page of another site.

    Scheme and host are those of the ASGI scope and the `Host` header. Behind a proxy that ends TLS,
    the server has to believe its `X-Forwarded-Proto` (uvicorn: `--proxy-headers`), or the page's
    origin has to be listed.

    Raises:
        ConfigurationError: an entry is none of these.
    """

    def __init__(
        self, allowed: Iterable[str] | str | None = None, *, same_origin: bool = True
    ) -> None:
        entries = [allowed] if isinstance(allowed, str) else list(allowed or ())
        self.everyone = "*" in entries
        """Whether every page may connect."""
        self._own = same_origin
        self._null = "null" in entries
        self._patterns = tuple(
            _parse_pattern(entry) for entry in entries if entry not in ("*", "null")
        )

    def check(self, scope: Mapping[str, Any]) -> bool:
        """Whether the page behind this request may connect."""
        return self.refusal(scope) is None

    def refusal(self, scope: Mapping[str, Any]) -> str | None:
        """Return why the page may not connect, as a sentence for the log; None if it may."""
        sent = _header(scope, b"origin")
        if self.everyone or not sent:
            return None
        if len(sent) > 1:
            return "there are several Origin headers"
        text = sent[0].decode("latin-1")
        if text == "null":
            return None if self._null else "pages without an origin (null) are not allowed"
        origin = _parse(text)
        if origin is None:
            return f"the Origin header {text[:200]!r} cannot be understood"
        if any(map(origin.matches, self._patterns)):
            return None
        if self._own:
            own = _own(scope)
            if origin == own:
                return None
            if own is not None and origin.host == own.host:
                return (
                    f"the page is from {text[:200]!r}, the request came to {own.scheme} port"
                    f" {own.port}; behind a proxy the server must believe its X-Forwarded-Proto"
                )
        return f"pages from {text[:200]!r} are not allowed"

    def cors_headers(self, scope: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
        """Return the CORS headers (Fetch standard, section 3.2) to send in answer to this request.

        For an `OPTIONS` preflight these are the whole answer, with status 204. Where the page is
        not allowed nothing is granted, and the browser keeps the answer from it; the request itself
        still has to be refused by `check`. Cookies are allowed where an origin is, but neither
        under `"*"` nor for `null`.
        """
        sent = _header(scope, b"origin")
        vary = [] if self.everyone else [(b"vary", b"Origin")]
        if not sent or not self.check(scope):
            return vary
        if self.everyone:
            headers = [(b"access-control-allow-origin", b"*")]
        else:
            headers = [*vary, (b"access-control-allow-origin", sent[0])]
            if sent[0] != b"null":
                headers.append((b"access-control-allow-credentials", b"true"))
        if scope.get("method") == "OPTIONS" and _header(scope, b"access-control-request-method"):
            headers.extend(_PREFLIGHT)
        return headers
