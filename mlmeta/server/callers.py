"""Who asks: what they may read, and what MLflow does in their name.

Whoever asks mlmeta for something may do what MLflow lets them do: what changes a run goes through MLflow's own routes
with the login of the request, and their answer is passed on. Requests to MLflow's own app stay in this process. So
permissions are decided in one place, not ours.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from starlette.types import ASGIApp, Message, Scope

from mlmeta.errors import NotFoundError
from mlmeta.server.responses import RefusedError
from mlmeta.server.state import Server

_API = "/api/2.0/mlflow"
_PAGE = 1000
# What tells MLflow who asks, and from where; an Origin was checked when the request came in.
_PASSED_ON = (b"authorization", b"cookie", b"host", b"x-mlflow-workspace", b"x-forwarded-for", b"x-forwarded-proto")


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        server: Whom they asked.
        experiments: Names by id of the experiments that they may read; None for all, where no login is needed.
    """

    server: Server
    scope: Scope
    experiments: Mapping[str, str] | None

    @property
    def login(self) -> str:
        """The name that they logged in with; empty where nobody has to."""
        headers = dict(self.scope["headers"])
        scheme, _, encoded = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if self.experiments is None or scheme.lower() != "basic":
            return ""
        try:
            return base64.b64decode(encoded).decode("utf-8", "replace").partition(":")[0]
        except (ValueError, binascii.Error):
            return ""

    async def change(self, what: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Have MLflow change or search something in their name.

        Args:
            what: Such as ``runs/create``.
            document: What MLflow's REST API takes.

        Raises:
            NotFoundError: If there is no such run or experiment.
            RefusedError: If MLflow refuses it; with MLflow's status and words.
        """
        body = json.dumps(document).encode()
        return _check(await _ask(self.server, self.scope, "POST", f"{_API}/{what}", body=body)).read()

    async def get(self, what: str, **parameters: str) -> dict[str, Any]:
        """Have MLflow read something in their name, such as ``runs/get``; raises as `change`."""
        query = urlencode(parameters)
        return _check(await _ask(self.server, self.scope, "GET", f"{_API}/{what}", query=query)).read()

    async def get_artifact(self, run_id: str, path: str) -> bytes:
        """Return an artifact that they may read; raises as `change`."""
        query = urlencode({"run_uuid": run_id, "path": path})
        return _check(await _ask(self.server, self.scope, "GET", "/get-artifact", query=query)).body

    async def put_artifact(self, path: str, content: bytes) -> None:
        """Store an artifact in their name; `path` is as in an ``mlflow-artifacts:`` address; raises as `change`."""
        place = f"/api/2.0/mlflow-artifacts/artifacts/{path}"
        _check(await _ask(self.server, self.scope, "PUT", place, body=content))


async def identify(request: Request) -> Caller:
    """Return who sent a request; every route of ours depends on it.

    Where a login is needed MLflow is asked which experiments they may read, so it is MLflow that checks the login.

    Raises:
        RefusedError: If they have no login that MLflow takes.
    """
    server: Server = request.app.state.mlmeta
    if not server.needs_login:
        return Caller(server, request.scope, None)
    return Caller(server, request.scope, await list_experiments(server, request.scope))


async def list_experiments(server: Server, scope: Scope) -> dict[str, str]:
    """Return the names by id of all experiments that the sender of a request may read.

    Raises:
        RefusedError: If MLflow asks for another login.
    """
    found: dict[str, str] = {}
    token = ""
    while True:
        body = json.dumps({"max_results": _PAGE, "page_token": token}).encode()
        page = _check(await _ask(server, scope, "POST", f"{_API}/experiments/search", body=body)).read()
        experiments: Sequence[Mapping[str, str]] = page.get("experiments", [])
        found |= {one["experiment_id"]: one["name"] for one in experiments}
        token = page.get("next_page_token", "")
        if not token:
            return found


async def _ask(server: Server, scope: Scope, method: str, path: str, *, body: bytes = b"", query: str = "") -> Answer:
    return await ask_mlflow(server.mlflow, scope, method, f"{server.prefix}{path}", body=body, query=query)


def _check(answer: Answer) -> Answer:
    if answer.status == 404:
        raise NotFoundError(answer.message)
    if answer.status >= 300:
        passed_on = {key: value for key, value in answer.headers.items() if key == "www-authenticate"}
        raise RefusedError(answer.status, answer.message, passed_on)
    return answer


@dataclass(frozen=True)
class Answer:
    """What MLflow answered.

    Attributes:
        headers: Names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def read(self) -> dict[str, Any]:
        """Return the JSON object of the body; empty where it is none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    @property
    def message(self) -> str:
        """What MLflow says of a fault."""
        said = self.read().get("message")
        return str(said) if said else self.body[:300].decode("utf-8", "replace")


@dataclass
class _Reply:
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in message["headers"]}
        elif message["type"] == "http.response.body":
            self.parts.append(message.get("body", b""))


async def ask_mlflow(
    app: ASGIApp, caller: Scope, method: str, path: str, *, body: bytes = b"", query: str = ""
) -> Answer:
    """Ask MLflow's app as if the caller had asked it.

    Args:
        app: MLflow's app; it may be the one that answers the caller.
        caller: The scope of the request that is being answered.
        method: Such as POST.
        path: With the static prefix.
        body: A JSON document, or a file for an artifact.
        query: Without the question mark.
    """
    headers = [(key, value) for key, value in caller["headers"] if key.lower() in _PASSED_ON]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: Scope = {
        **{key: caller.get(key) for key in ("asgi", "http_version", "scheme", "client", "server", "state")},
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": headers,
        "extensions": {},
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    reply = _Reply()
    await app(scope, receive, reply.take)
    return Answer(reply.status, reply.headers, b"".join(reply.parts))
