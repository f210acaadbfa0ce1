"""The guard of mlmeta's routes: what it refuses never reaches them; MLflow's own routes pass untouched.

It is plain ASGI, so that a body can be refused while it arrives. In order:

    host       that of MLflow's own rule, also where MLflow's middleware is switched off      403
    origin     a writing request must come from a page of this very host, or an allowed one   403
    type       what carries a body to a writing route must say application/json               415
    size       by Content-Length and, whatever that says, by what has arrived                 413
    depth      of lists and objects in each other, counted in the bytes before they are read  400

MLflow takes any origin on this machine (``http://localhost:…``) as its own. Here the port counts too: another program's
page must not queue trainings.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlmeta.server.responses import RefusedError, answer_error
from mlmeta.server.settings import ServerSettings

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# plotly sets styles on the elements that it makes.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# A string with its escapes, or one bracket. A string that is never closed goes to the end.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)
_ADDRESSES = re.compile(r"\d+\.[\d.]*\*")
# A larger body is looked through in a thread, so that the other requests go on.
_SMALL_BYTES = 65_536


class RequestGuard:
    """ASGI middleware for mlmeta's routes alone.

    Args:
        app: What the requests go on to.
        settings: With the limits.
        prefix: MLflow's static prefix, such as ``/ml``; empty for none.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, *, prefix: str = "") -> None:
        self.app = app
        self.settings = settings
        prefix = "/" + prefix.strip("/") if prefix.strip("/") else ""
        self._ours = (f"{prefix}/ajax-api/mlmeta", f"{prefix}/mlmeta")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer why not."""
        if scope["type"] not in ("http", "websocket") or not self._is_ours(scope):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            # None of our routes is one.
            return await send({"type": "websocket.close", "code": 1008})
        try:
            check_host(scope)
            check_origin(scope)
            body = await self._read_body(scope, receive)
        except RefusedError as refused:
            # What is left of the body is not read.
            refused.headers["connection"] = "close"
            return await answer_error(refused)(scope, receive, _with_headers(send))
        except ClientDisconnect:
            return None
        return await self.app(scope, _replay(body, receive), _with_headers(send))

    def _is_ours(self, scope: Scope) -> bool:
        # Routes are matched below the root path that uvicorn or a mount was given.
        path = scope["path"]
        paths = (path, path.removeprefix(scope.get("root_path", "").rstrip("/")))
        return any(path == ours or path.startswith(f"{ours}/") for ours in self._ours for path in paths)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body, never more than is allowed."""
        limit = self.settings.max_body_bytes
        check_length(scope, limit)
        is_json = check_type(scope)
        pieces = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece = message.get("body", b"")
            if piece and not is_json:
                raise _not_json()
            if len(pieces) + len(piece) > limit:
                raise _too_large(limit)
            pieces += piece
            more = message.get("more_body", False)
        body = bytes(pieces)
        if len(body) > _SMALL_BYTES:
            await asyncio.to_thread(check_json, body, self.settings.max_depth)
        else:
            check_json(body, self.settings.max_depth)
        return body


def _find(scope: Scope, name: bytes) -> str | None:
    """Return a header's value, or None.

    Raises:
        RefusedError: If it stands more than once, so that each reader could take another.
    """
    values = [value for key, value in scope["headers"] if key.lower() == name]
    if len(values) > 1:
        raise RefusedError(400, f"the header {name.decode()} stands {len(values)} times")
    return values[0].decode("latin-1").strip() if values else None


def check_host(scope: Scope) -> None:
    """Check that a request asks for a host that MLflow's own rule allows; its patterns of addresses allow no names.

    Raises:
        RefusedError: If it does not: a foreign name that leads to this machine (DNS rebinding).
    """
    from mlflow.server.fastapi_security import get_allowed_hosts
    from mlflow.server.security_utils import INVALID_HOST_MSG, is_allowed_host_header

    host, allowed = _find(scope, b"host") or "", get_allowed_hosts()
    if not _is_address(host):
        # ``10.*`` would allow 10.evil.example, too.
        allowed = [pattern for pattern in allowed if not _ADDRESSES.match(pattern)]
    if not is_allowed_host_header(allowed, host):
        raise RefusedError(403, INVALID_HOST_MSG)


def _is_address(host: str) -> bool:
    parts = _split_host(f"http://{host}")
    try:
        return parts is not None and bool(ipaddress.ip_address(parts[1]))
    except ValueError:
        return False


def check_origin(scope: Scope) -> None:
    """Check that a writing request comes from a page of this host, an allowed one, or no page at all.

    A program names no origin. A browser names it in Origin, older ones in Referer, and says in Sec-Fetch-Site what it
    knows itself.

    Raises:
        RefusedError: If it comes from elsewhere.
    """
    if scope["method"] in _READING:
        return
    origin = _find(scope, b"origin")
    if origin is None:
        origin = _origin_of(_find(scope, b"referer"))
    if origin is not None and _is_allowed_by_name(origin):
        return
    if origin is not None and not _is_same(origin, scope):
        raise RefusedError(403, "a request from a page of another origin is refused")
    if (_find(scope, b"sec-fetch-site") or "none") not in ("same-origin", "none"):
        raise RefusedError(403, "a request from another site is refused")


def _origin_of(referer: str | None) -> str | None:
    """Return a page's origin: scheme, host and port."""
    if not referer:
        return None
    try:
        parts = urlsplit(referer)
    except ValueError:
        return "null"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "null"


def _is_allowed_by_name(origin: str) -> bool:
    """Return whether MLFLOW_SERVER_CORS_ALLOWED_ORIGINS names an origin, as MLflow reads it: with wildcards."""
    from mlflow.server.fastapi_security import get_allowed_origins

    return any(
        allowed == "*" or (fnmatch.fnmatchcase(origin, allowed) if "*" in allowed else origin == allowed)
        for allowed in get_allowed_origins()
    )


def _is_same(origin: str, scope: Scope) -> bool:
    """Return whether an origin is that of the request's Host; the scheme may differ behind a proxy that ends TLS."""
    ours, theirs = _split_host(f"http://{_find(scope, b'host') or ''}"), _split_host(origin)
    if ours is None or theirs is None or ours[1] != theirs[1]:
        return False
    # A Host without a port has that of the scheme, which only the browser knows.
    default = _DEFAULT_PORTS[theirs[0]]
    return (ours[2] or default) == (theirs[2] or default)


def _split_host(origin: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port (None where it is left out) of an origin; None for what is none."""
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    has_more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in _DEFAULT_PORTS or not host or has_more:
        return None
    return parts.scheme, host.rstrip("."), port


def check_type(scope: Scope) -> bool:
    """Return whether the body, if there is one, is said to be JSON.

    Raises:
        RefusedError: If a writing request says that it is something else, even of an empty body: what a form of
            any page can send is none of ours.
    """
    given = _find(scope, b"content-type")
    is_json = (given or "").partition(";")[0].strip().lower() == "application/json"
    if given is not None and not is_json and scope["method"] not in _READING:
        raise _not_json()
    return is_json


def _not_json() -> RefusedError:
    return RefusedError(415, "the body must be JSON, with the content type application/json")


def check_length(scope: Scope, limit: int) -> None:
    """Check what a request says about the size of its body.

    Raises:
        RefusedError: If that is no number, or more than `limit` bytes.
    """
    text = _find(scope, b"content-length")
    if text is None:
        return
    if not text.isascii() or not text.isdigit():
        raise RefusedError(400, "the header content-length is not a number")
    # Python reads no longer number; so long a body is too large in any case.
    if len(text) > 15 or int(text) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the body is too large: at most {limit:,} bytes are read")


def check_json(body: bytes, limit: int) -> None:
    """Check how deep lists and objects lie in each other, in one pass over the bytes and without recursion.

    Raises:
        RefusedError: If deeper than `limit`; or if the body is not UTF-8, as JSON on a network is (RFC 8259): in
            UTF-16, which Python's reader would guess, half a letter can look like a quote and hide brackets.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise RefusedError(400, "the body must be JSON in UTF-8")
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    depth = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        depth += (first in b"[{") - (first in b"]}")
        if depth > limit:
            raise RefusedError(400, f"lists and objects lie in each other too deep: at most {limit} levels are read")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    """Return a `send` that gives every answer our headers; JSON is not to be kept by anyone on the way."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=[(key.lower(), value) for key, value in message.get("headers", ())])
            headers["content-security-policy"] = PAGE_POLICY
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "same-origin"
            if headers.get("content-type", "").startswith("application/json"):
                headers["cache-control"] = "no-store"
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_with_headers
