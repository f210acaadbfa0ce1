"""Requests to MLflow's own app, in process and in the caller's name.

Whoever asks mlmeta for something may do what MLflow lets them do: what changes a run goes through MLflow's own routes
with the login of the request, and their answer is passed on. So permissions are decided in one place, not ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Scope

# What tells MLflow who asks, and from where; an Origin was checked when the request came in.
_PASSED_ON = (b"authorization", b"cookie", b"host", b"x-mlflow-workspace", b"x-forwarded-for", b"x-forwarded-proto")


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
