"""The API described: an OpenAPI document, a page about it that works offline, and the JSON Schemas of the commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from jinja2 import Environment
from pydantic import BaseModel
from starlette.responses import HTMLResponse

import mlmeta
from mlmeta.commands.documents import Attempt, TestCommands, TrainCommands
from mlmeta.commands.json_schema import complete_schema
from mlmeta.server import legacy_routes, routes
from mlmeta.server.callers import Asking
from mlmeta.server.responses import FAULTS

router = APIRouter(prefix="/ajax-api/mlmeta", tags=["about the API"], responses=FAULTS)
_KINDS: Mapping[str, type[BaseModel]] = {"train": TrainCommands, "test": TestCommands, "attempt": Attempt}
_PAGE = Environment(autoescape=True).from_string("""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width"><title>mlmeta: API</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}
code{font-size:.95em}h2{font-size:1.1rem;margin:2rem 0 .2rem;overflow-wrap:anywhere}ul{margin:.2rem 0}
</style>
<body><main><h1>{{ info.title }} {{ info.version }}: its API</h1>
<p>{{ info.description }} <a href=openapi.json>OpenAPI</a></p>
{% for path, operations in paths.items() %}{% for method, operation in operations.items() %}
<h2><code>{{ method.upper() }} {{ path }}</code></h2>
<p>{{ operation.description }}</p>
{% set docs = operation.requestBody and operation.requestBody.content["application/json"].schema.externalDocs %}
{% if docs %}<p>Body: a JSON document; <a href="{{ docs.url }}">{{ docs.description }}</a>.</p>{% endif %}
{% if operation.parameters %}<ul>{% for one in operation.parameters %}
<li><code>{{ one.name }}</code>{{ " (required)" if one.required }} {{ one.description }}</li>
{% endfor %}</ul>{% endif %}
{% endfor %}{% endfor %}</main></body></html>
""")


@router.get("/schema/{kind}")
async def show_schema(_caller: Asking, kind: Literal["train", "test", "attempt"]) -> dict[str, Any]:
    """Return the JSON Schema of a document: train commands, test commands, or an Attempt."""
    return complete_schema(_KINDS[kind].model_json_schema())


@router.get("/openapi.json")
async def show_openapi(caller: Asking) -> dict[str, Any]:
    """Return this API as an OpenAPI document."""
    return describe_api(caller.server.prefix)


@router.get("/docs", response_class=HTMLResponse)
async def show_docs(caller: Asking) -> str:
    """Return this API as a page for people."""
    return _PAGE.render(describe_api(caller.server.prefix))


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
    return app.openapi()
