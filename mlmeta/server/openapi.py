"""The API described: an OpenAPI document, a page about it that works offline, and the JSON Schemas of the commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel
from starlette.responses import HTMLResponse

import mlmeta
from mlmeta.commands.documents import Attempt, TestCommands, TrainCommands
from mlmeta.commands.json_schema import complete_schema
from mlmeta.server import legacy_routes, routes
from mlmeta.server.callers import Caller, identify

PATH = "/ajax-api/mlmeta"
router = APIRouter(prefix=PATH, tags=["about the API"])
Asking = Annotated[Caller, Depends(identify)]
_KINDS: Mapping[str, type[BaseModel]] = {"train": TrainCommands, "test": TestCommands, "attempt": Attempt}
_BODIES = {
    "train": "train",
    "test": "test",
    "create_attempt": "attempt",
    "update_attempt": "attempt",
    "attempts": "train",
}
_FAULTS = {
    "400": "the filter is not understood", "401": "a login is needed", "403": "MLflow does not allow it",
    "404": "there is no such attempt", "409": "the name or the state does not allow it", "413": "the body is too large",
    "415": "the body is not JSON", "422": "the commands are faulty: `faults` has all of them",
    "429": "the queue is full",
}  # fmt: skip
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code{font-size:.95em}h2{font-size:1.1rem;margin:2rem 0 .2rem;overflow-wrap:anywhere}ul{margin:.2rem 0}"
)


@router.get("/schema/{kind}")
async def show_schema(_caller: Asking, kind: Literal["train", "test", "attempt"]) -> dict[str, Any]:
    """Return the JSON Schema of a document: train commands, test commands, or an Attempt."""
    return complete_schema(_KINDS[kind].model_json_schema())


@router.get("/openapi.json")
async def show_openapi(caller: Asking) -> dict[str, Any]:
    """Return this API as an OpenAPI document."""
    return describe_api(caller.server.prefix)


@router.get("/docs", response_class=HTMLResponse)
async def show_docs(caller: Asking) -> HTMLResponse:
    """Return this API as a page for people."""
    return HTMLResponse(write_page(describe_api(caller.server.prefix)))


def describe_api(prefix: str) -> dict[str, Any]:
    """Return the OpenAPI document of mlmeta's routes."""
    app = FastAPI(
        title="mlmeta",
        version=mlmeta.__version__,
        summary="Attempts at classifying images: trained in the background, compared, learnt from.",
        description='A fault is `{"detail": sentence}`; faulty commands have `faults` beside it, one for each.',
    )
    for each in (routes.router, legacy_routes.router, router):
        app.include_router(each, prefix=prefix)
    document = app.openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _add_faults(operation)
            if method == "post":
                _add_body(operation, path.removeprefix(f"{prefix}{PATH}/"), f"{prefix}{PATH}")
    return document


def _add_faults(operation: dict[str, Any]) -> None:
    told = {"type": "object", "properties": {"detail": {"type": "string"}, "faults": {"type": "array"}}}
    content = {"application/json": {"schema": told}}
    operation["responses"] |= {status: {"description": text, "content": content} for status, text in _FAULTS.items()}


def _add_body(operation: dict[str, Any], name: str, base: str) -> None:
    schema: dict[str, Any] = {"type": "object"}
    if name in _BODIES:
        schema["externalDocs"] = {"url": f"{base}/schema/{_BODIES[name]}", "description": "its JSON Schema"}
    elif name != "recommend":
        return
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}


def write_page(document: Mapping[str, Any]) -> str:
    """Return an OpenAPI document as one HTML page."""
    parts = [f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}: its API</h1>"]
    parts.append(f"<p>{escape(document['info']['description'])} <a href=openapi.json>OpenAPI</a></p>")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _write_operation(path, method, operation)
    head = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    return f"{head}<title>mlmeta: API</title><style>{_STYLE}</style><body><main>{''.join(parts)}</main></body></html>"


def _write_operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    parameters = operation.get("parameters", [])
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if "externalDocs" in schema:
        url = escape(schema["externalDocs"]["url"])
        yield f'<p>Body: a JSON document; <a href="{url}">its JSON Schema</a>.</p>'
    if parameters:
        items = (
            f"<li><code>{escape(one['name'])}</code>{' (required)' if one.get('required') else ''} "
            f"{escape(one.get('description', ''))}</li>"
            for one in parameters
        )
        yield f"<ul>{''.join(items)}</ul>"
