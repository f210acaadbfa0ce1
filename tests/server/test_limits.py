"""The guard of the server's routes: what it refuses, what it lets pass untouched, and which headers it adds."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlmeta.server.limits import RequestGuard, check_json
from mlmeta.server.responses import RefusedError
from mlmeta.server.settings import ServerSettings

SETTINGS = ServerSettings(max_body_bytes=1000, max_depth=10)
TRAIN = "/ajax-api/mlmeta/train"
JSON = {"content-type": "application/json"}
HOST = "localhost:5000"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALLOWED_HOSTS", "CORS_ALLOWED_ORIGINS", "DISABLE_SECURITY_MIDDLEWARE"):
        monkeypatch.delenv(f"MLFLOW_SERVER_{name}", raising=False)


@dataclass
class Echo:
    """An app that answers with what it got, and remembers it."""

    content_type: bytes = b"application/json"
    bodies: list[bytes] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = b""
        more = scope["type"] == "http"
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        headers = [(b"content-type", self.content_type), (b"X-Own", b"1"), (b"Referrer-Policy", b"unsafe-url")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Answer:
    """What came back."""

    messages: list[Message]
    n_read: int

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {key.decode().lower(): value.decode() for key, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def detail(self) -> str:
        assert self.headers["content-type"] == "application/json"
        return str(json.loads(self.body)["detail"])


def make_scope(method: str, path: str, headers: Any, *, root_path: str = "") -> Scope:
    pairs = headers.items() if isinstance(headers, dict) else headers
    names = {name for name, _ in pairs}
    given = [] if "host" in names else [("host", HOST)]
    return {
        "type": "http", "method": method, "path": path, "root_path": root_path, "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (*given, *pairs) if value is not None],
    }  # fmt: skip


def call(
    app: ASGIApp, method: str, path: str, *, headers: Any = (), body: bytes | Iterable[bytes] = b"", **more: Any
) -> Answer:
    """Call an app as a server does; a body may come in pieces."""
    pieces = iter([body] if isinstance(body, bytes) else body)
    sent: list[Message] = []
    n_read = 0

    async def receive() -> Message:
        nonlocal n_read
        n_read += 1
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None and piece != body}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(make_scope(method, path, headers, **more), receive, send))
    return Answer(sent, n_read)


def guard(app: ASGIApp | None = None, settings: ServerSettings = SETTINGS, **more: Any) -> RequestGuard:
    return RequestGuard(app or Echo(), settings, **more)


def post(headers: Any = (), body: bytes | Iterable[bytes] = b"{}", **more: Any) -> Answer:
    pairs = list(headers.items() if isinstance(headers, dict) else headers)
    if "content-type" not in {name for name, _ in pairs}:
        pairs.append(("content-type", "application/json"))
    return call(guard(**more), "POST", TRAIN, headers=pairs, body=body)


def test_a_plain_request_reaches_the_routes_unchanged() -> None:
    app = Echo()
    answer = call(guard(app), "POST", TRAIN, headers=JSON, body=b'{"a": [1]}')
    assert answer.status == 200
    assert app.bodies == [b'{"a": [1]}'] == [answer.body]


def test_a_body_in_pieces_reaches_the_routes_whole() -> None:
    app = Echo()
    assert call(guard(app), "POST", TRAIN, headers=JSON, body=[b'{"a"', b"", b": 1", b"}"]).status == 200
    assert app.bodies == [b'{"a": 1}']


@pytest.mark.parametrize(
    "path",
    ["/", "/api/2.0/mlflow/runs/create", "/ajax-api/2.0/mlflow/runs/search", "/health", "/static-files/x.js",
     "/mlmeta-other/x", "/ajax-api/mlmetadata", "/api/mlmeta/x", "/x/mlmeta/"],
)  # fmt: skip
def test_all_other_paths_pass_untouched_byte_for_byte(path: str) -> None:
    hostile = {"host": "evil.example", "origin": "null", "content-type": "text/plain", "content-length": "9" * 30}
    for body in (b"[" * 5000, [b"x" * 3000, b"y" * 3000]):
        plain, guarded = Echo(), Echo()
        bare = call(plain, "POST", path, headers=hostile, body=body)
        through = call(guard(guarded), "POST", path, headers=hostile, body=body)
        assert (bare.messages, bare.n_read) == (through.messages, through.n_read)
        assert (plain.scopes, plain.bodies) == (guarded.scopes, guarded.bodies)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_kinds_of_connections_pass_elsewhere(kind: str) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        pytest.fail("nothing is sent or received")

    asyncio.run(guard(app)({"type": kind, "path": "/other", "headers": []}, nothing, nothing))
    assert seen == [kind]


def test_a_websocket_of_ours_is_refused() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def nothing() -> Message:
        pytest.fail("nothing is read")

    asyncio.run(guard()({"type": "websocket", "path": TRAIN, "headers": []}, nothing, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("prefix", ["/ml", "/ml/", "ml"])
def test_the_static_prefix_is_honoured(prefix: str) -> None:
    app = guard(prefix=prefix)
    foreign = {**JSON, "host": "evil.example"}
    for path in ("/ml/ajax-api/mlmeta/train", "/ml/mlmeta/", "/ml/mlmeta", "/ml/ajax-api/mlmeta"):
        assert call(app, "POST", path, headers=foreign).status == 403
    assert call(app, "POST", TRAIN, headers=foreign).status == 200


def test_the_root_path_of_a_proxy_hides_nothing() -> None:
    foreign = {**JSON, "host": "evil.example"}
    assert call(guard(), "POST", f"/proxy{TRAIN}", headers=foreign, root_path="/proxy").status == 403
    assert call(guard(), "POST", f"/proxy{TRAIN}", headers=foreign, root_path="/proxy/").status == 403


# Host


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:8080", "[::1]:5000", "192.168.1.7:5000"])
def test_the_hosts_that_mlflow_allows_are_allowed(host: str) -> None:
    assert call(guard(), "GET", "/mlmeta/", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:5000",
        "localhost.evil.example",
        "",
        None,
        "localhost@evil",
        "127.0.0.1.nip.io",
        "10.evil.example",
        "192.168.evil.example:5000",
        "10.0.0.1.nip.io",
    ],
)
@pytest.mark.parametrize("disabled", ["true", "false"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/mlmeta/"), ("GET", "/ajax-api/mlmeta/jobs"), ("POST", TRAIN)])
def test_a_foreign_host_is_refused_even_where_mlflow_does_not_look(
    monkeypatch: pytest.MonkeyPatch, host: str | None, disabled: str, method: str, path: str
) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", disabled)
    app = Echo()
    answer = call(guard(app), method, path, headers={"host": host, **JSON})
    assert answer.status == 403
    assert "Host" in answer.detail
    assert app.scopes == []


def test_mlflows_list_of_hosts_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "ml.example,*.lab.example:5000")
    for host, status in {"ml.example": 200, "a.lab.example:5000": 200, "localhost": 403, "ml.example:1": 403}.items():
        assert call(guard(), "GET", "/mlmeta/", headers={"host": host}).status == status
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "*")
    assert call(guard(), "GET", "/mlmeta/", headers={"host": "any.example"}).status == 200


@pytest.mark.parametrize("name", ["host", "origin", "content-type", "content-length", "sec-fetch-site", "referer"])
def test_a_header_that_stands_twice_is_refused(name: str) -> None:
    good = {"host": HOST, "origin": f"http://{HOST}", "content-length": "2", "sec-fetch-site": "same-origin"}
    value = {**good, **JSON}.get(name, f"http://{HOST}/x")
    answer = post([(name, value), (name, value)])
    assert answer.status == 400
    assert answer.detail == f"the header {name} stands 2 times"


# Origin


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost:5000"},
        {"origin": "https://localhost:5000"},
        {"origin": "http://LOCALHOST:5000"},
        {"referer": "http://localhost:5000/mlmeta/?task=x"},
        {"referer": ""},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:5000"},
        {"sec-fetch-site": "none"},
        {"host": "localhost", "origin": "http://localhost"},
        {"host": "localhost", "origin": "https://localhost:443"},
        {"host": "[::1]:5000", "origin": "http://[::1]:5000"},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_pages_of_this_host_and_programs_may_write(method: str, headers: dict[str, str]) -> None:
    assert call(guard(), method, TRAIN, headers={**headers, **JSON}, body=b"{}").status == 200


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "http://localhost:5001"},
    {"origin": "http://localhost"},
    {"origin": "http://127.0.0.1:5000"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://localhost:5000.evil.example"},
    {"origin": "http://localhost:5000@evil.example"},
    {"origin": "http://evil.example#localhost:5000"},
    {"origin": "http://evil.example/localhost:5000"},
    {"origin": "http://localhost:5000/"},
    {"origin": "http://localhost:5000 http://evil.example"},
    {"origin": "file://"},
    {"origin": "localhost:5000"},
    {"origin": "ftp://localhost:5000"},
    {"origin": "chrome-extension://localhost:5000"},
    {"origin": "http://[localhost:5000"},
    {"origin": "http://localhost:99999999"},
    {"origin": "http://evil.example", "referer": "http://localhost:5000/"},
    {"referer": "http://evil.example/http://localhost:5000/"},
    {"referer": "http://localhost:5000@evil.example/"},
    {"referer": "http://localhost:5001/"},
    {"referer": "about:blank"},
    {"referer": "http://[x/"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "anything"},
    {"sec-fetch-site": "cross-site", "origin": "http://localhost:5000"},
    {"host": "localhost", "origin": "http://localhost:443"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "ANYTHING"])
def test_what_comes_from_another_page_may_not_write(method: str, headers: dict[str, str]) -> None:
    app = Echo()
    answer = call(guard(app), method, TRAIN, headers={**headers, **JSON}, body=b"{}")
    assert answer.status == 403
    assert "another" in answer.detail
    assert app.scopes == []


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_links_from_elsewhere_may_be_followed(method: str, headers: dict[str, str]) -> None:
    assert call(guard(), method, "/mlmeta/", headers=headers).status == 200


def test_the_origins_that_mlflow_is_told_to_allow_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "https://app.example, https://*.lab.example")
    for origin in ("https://app.example", "https://a.lab.example"):
        assert post({"origin": origin, "sec-fetch-site": "cross-site"}).status == 200
    for origin in ("https://app.example:444", "http://app.example", "https://lab.example.evil", "null"):
        assert post({"origin": origin}).status == 403
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*")
    assert post({"origin": "https://any.example"}).status == 200


# Content type


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y"])
def test_json_is_taken(kind: str) -> None:
    assert post({"content-type": kind}).status == 200


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "", "*/*",
     "application/jsonp", "text/plain; application/json", "application/json, text/plain"],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"{}", b""])
def test_what_a_form_can_send_is_refused(kind: str, body: bytes) -> None:
    answer = post({"content-type": kind}, body)
    assert answer.status == 415
    assert "application/json" in answer.detail


def test_a_body_of_no_type_is_refused_and_no_body_needs_none() -> None:
    for method in ("POST", "GET", "DELETE"):
        assert call(guard(), method, TRAIN, body=b"{}").status == 415
        assert call(guard(), method, TRAIN).status == 200


# Size


@pytest.mark.parametrize("length", ["1001", "2000000", "9" * 14, "9" * 5000])
def test_a_large_body_is_refused_before_it_is_read(length: str) -> None:
    answer = post({"content-length": length}, b"")
    assert (answer.status, answer.n_read) == (413, 0)
    assert "at most 1,000 bytes" in answer.detail


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "", "1 2", "٣".encode().decode("latin-1"), "²"])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    assert post({"content-length": length}).status == 400


def test_the_limit_itself_is_allowed() -> None:
    body = b'"' + b"x" * 998 + b'"'
    assert post({"content-length": "1000"}, body).status == 200
    assert post({}, body + b" ").status == 413


@pytest.mark.parametrize("headers", [{}, {"content-length": "10"}, {"transfer-encoding": "chunked"}])
def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(headers: dict[str, str]) -> None:
    answer = post(headers, (b"[" if index == 0 else b" " * 100 for index in range(10**6)))
    assert answer.status == 413
    assert answer.n_read == 11


def test_an_endless_body_takes_no_more_memory_than_the_limit() -> None:
    settings = ServerSettings(max_body_bytes=2_000_000)
    piece = b" " * 64_000
    tracemalloc.start()
    try:
        answer = post({}, (bytes(piece) for _ in range(10**6)), settings=settings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status == 413
    # What is read grows by an eighth at a time, and moves then.
    assert peak < 3 * settings.max_body_bytes


def test_a_client_that_goes_away_reaches_nothing() -> None:
    app = Echo()
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        pytest.fail("nobody listens")

    asyncio.run(guard(app)(make_scope("POST", TRAIN, JSON), receive, send))
    assert app.scopes == []


# Depth


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_hundred_thousand_levels_are_refused(opening: bytes) -> None:
    settings = ServerSettings(max_body_bytes=2_000_000, max_depth=60)
    answer = post({}, opening * 100_000, settings=settings)
    assert answer.status == 400
    assert answer.detail == "lists and objects lie in each other too deep: at most 60 levels are read"


@pytest.mark.parametrize(
    ("body", "is_deep"),
    [
        (b"[" * 10 + b"]" * 10, False),
        (b"[" * 11 + b"]" * 11, True),
        (b"[" + b"[],{}," * 100 + b"1]", False),
        (b'"' + b"[" * 900 + b'"', False),
        (b'["' + b'\\"[' * 200 + b'"]', False),
        (b'["\\\\",' + b"[" * 10 + b"]" * 11, True),
        (b'["\\\\\\"' + b"[" * 100 + b'"]', False),
        (b'"open' + b"[" * 100, False),
        (b'{"a":' * 11 + b"1" + b"}" * 11, True),
        (b"]" * 100 + b"[" * 11, False),
        (b"\xff\xfe" + b"[" * 11, True),
    ],
)
def test_only_brackets_outside_of_strings_count(body: bytes, is_deep: bool) -> None:
    if is_deep or b"\xff" in body:
        with pytest.raises(RefusedError):
            check_json(body, 10)
    else:
        check_json(body, 10)
    # Only what JSON's own reader refuses anyway may be counted wrongly.
    try:
        depth = measure(json.loads(body))
    except ValueError:
        return
    assert (depth > 10) == is_deep


def measure(value: Any) -> int:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return 1 + max(map(measure, items), default=0)
    return 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-8-sig"])
@pytest.mark.parametrize("letter", ["", "\u0122", "\u2201", "\u2222", "\u5c5c"])
def test_other_encodings_of_json_hide_no_depth(encoding: str, letter: str) -> None:
    body = (f'["{letter}",' + "[" * 10 + "]" * 11).encode(encoding)
    # Python's reader guesses all of them.
    assert measure(json.loads(body)) == 11
    assert post({}, body).status == 400


@pytest.mark.parametrize("body", [b"\xc0\xae", b'"\xed\xa0\x80"', b"\xff\xfe[\0]\0", b"[\0]\0", b"1\0"])
def test_a_body_that_is_not_utf_8_is_refused(body: bytes) -> None:
    assert post({}, body).detail == "the body must be JSON in UTF-8"


# Headers


@pytest.mark.parametrize("path", ["/mlmeta/", "/ajax-api/mlmeta/jobs"])
def test_every_answer_has_the_headers(path: str) -> None:
    headers = call(guard(Echo(b"text/html; charset=utf-8")), "GET", path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["script-src"] == policy["frame-ancestors"] == "'self'"
    assert policy["style-src"] == "'self' 'unsafe-inline'"
    assert policy["img-src"] == "'self' data:"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["x-own"] == "1"
    assert "cache-control" not in headers


def test_json_is_kept_nowhere_and_refusals_neither() -> None:
    assert call(guard(), "GET", "/ajax-api/mlmeta/jobs").headers["cache-control"] == "no-store"
    refused = post({"origin": "null"})
    assert refused.headers["cache-control"] == "no-store"
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert int(refused.headers["content-length"]) == len(refused.body)
