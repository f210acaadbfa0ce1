"""Who asks: what they may read, and what MLflow does in their name.

Whoever asks mlmeta for something may do what MLflow lets them do: what changes a run goes through MLflow's own routes
with the login of the request, and their answer is passed on. Requests to MLflow's own app stay in this process. So
permissions are decided in one place, not ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request
from starlette.types import Message, Scope

from mlmeta.errors import NotFoundError
from mlmeta.server.responses import RefusedError
from mlmeta.server.state import Server

_API = "/api/2.0/mlflow"
_PAGE = 1000
# What tells MLflow who asks, and from where; an Origin was checked when the request came in.
_PASSED_ON = (b"authorization", b"cookie", b"host", b"x-mlflow-workspace", b"x-forwarded-for", b"x-forwarded-proto")


@dataclass(frozen=True)
class Caller:
    """Who sent a request; every method raises `NotFoundError` and `RefusedError` with MLflow's status and words.

    Attributes:
        server: Whom they asked.
        experiments: Names by id of the experiments that they may read; None for all, where no login is needed.
    """

    server: Server
    scope: Scope
    experiments: Mapping[str, str] | None = None

    @property
    def login(self) -> str:
        """The name that they logged in with; empty where nobody has to."""
        headers = dict(self.scope["headers"])
        scheme, _, encoded = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if self.experiments is None or scheme.lower() != "basic":
            return ""
        try:
            return base64.b64decode(encoded).decode("utf-8", "replace").partition(":")[0]
        except ValueError:
            return ""

    @property
    def experiment_names(self) -> list[str] | None:
        """The names of the experiments that they may read, sorted; None for all."""
        return None if self.experiments is None else sorted(self.experiments.values())

    async def change(self, what: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Have MLflow change or search something in their name, such as ``runs/create``."""
        return (await self._ask("POST", f"{_API}/{what}", json.dumps(document).encode())).read()

    async def get(self, what: str, **parameters: str) -> dict[str, Any]:
        """Have MLflow read something in their name, such as ``runs/get``."""
        return (await self._ask("GET", f"{_API}/{what}", query=parameters)).read()

    async def get_artifact(self, run_id: str, path: str) -> bytes:
        """Return an artifact that they may read."""
        return bytes((await self._ask("GET", "/get-artifact", query={"run_uuid": run_id, "path": path})).body)

    async def put_artifact(self, path: str, content: bytes) -> None:
        """Store an artifact in their name; `path` is as in an ``mlflow-artifacts:`` address."""
        await self._ask("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}", content)

    async def list_experiments(self) -> Mapping[str, str]:
        """Return the names by id of all experiments that they may read."""
        if self.experiments is not None:
            return self.experiments
        found: dict[str, str] = {}
        token: str | None = None
        while token != "":
            page = await self.change("experiments/search", {"max_results": _PAGE, "page_token": token or ""})
            found |= {one["experiment_id"]: one["name"] for one in page.get("experiments", [])}
            token = page.get("next_page_token", "")
        return found

    async def _ask(
        self, method: str, path: str, body: bytes = b"", *, query: Mapping[str, str] | None = None
    ) -> _Answer:
        """Return what MLflow's app answers, which may be the one that answers the caller.

        Args:
            method: Such as POST.
            path: Without the static prefix.
            body: A JSON document, or a file for an artifact.
            query: Its parameters.
        """
        path = f"{self.server.prefix}{path}"
        headers = [(key, value) for key, value in self.scope["headers"] if key.lower() in _PASSED_ON]
        scope: Scope = {
            **{key: self.scope.get(key) for key in ("asgi", "http_version", "scheme", "client", "server", "state")},
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": urlencode(query or {}).encode(),
            "headers": [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
            "extensions": {},
        }
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return messages.pop() if messages else {"type": "http.disconnect"}

        answer = _Answer()
        await self.server.mlflow(scope, receive, answer.take)
        if answer.status == 404:
            raise NotFoundError(answer.message)
        if answer.status >= 300:
            asked = {key: value for key, value in answer.headers.items() if key == "www-authenticate"}
            raise RefusedError(answer.status, answer.message, asked)
        return answer


@dataclass
class _Answer:
    """What MLflow answers, as it comes; the names of headers in lower case."""

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in message["headers"]}
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

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
        return str(self.read().get("message") or self.body[:300].decode("utf-8", "replace"))


async def identify(request: Request) -> Caller:
    """Return who sent a request; every route of ours depends on it.

    Where a login is needed MLflow is asked which experiments they may read, so it is MLflow that checks the login.

    Raises:
        RefusedError: If they have no login that MLflow takes.
    """
    server: Server = request.app.state.mlmeta
    caller = Caller(server, request.scope)
    return replace(caller, experiments=await caller.list_experiments()) if server.needs_login else caller


Asking = Annotated[Caller, Depends(identify)]
