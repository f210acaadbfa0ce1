"""How answers are written: errors as status and sentence, tables as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd
from starlette.responses import JSONResponse, Response

from mlmeta.analysis.filter_grammar import FilterError
from mlmeta.errors import AttemptFailedError, BadInputError, CommandsError, MlmetaError, NotFoundError, QueueFullError

# The first that fits decides.
_STATUS: tuple[tuple[type[MlmetaError], int], ...] = (
    (CommandsError, 422),
    (FilterError, 400),
    (BadInputError, 422),
    (NotFoundError, 404),
    (QueueFullError, 429),
    (AttemptFailedError, 500),
    (MlmetaError, 503),
)
_MEANINGS = {
    400: "the filter is not understood", 401: "a login is needed", 403: "MLflow does not allow it",
    404: "there is no such attempt", 409: "the name or the state does not allow it", 413: "the body is too large",
    415: "the body is not JSON", 422: "the commands are faulty: `faults` has all of them", 429: "the queue is full",
}  # fmt: skip
_TOLD = {"type": "object", "properties": {"detail": {"type": "string"}, "faults": {"type": "array"}}}
# What OpenAPI says of the faults of every route.
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _TOLD}}}
    for status, text in _MEANINGS.items()
}
# pandas writes floats with so many digits after the point: enough for a learning rate of 1e-9.
_DIGITS = 12


class RefusedError(MlmetaError):
    """A request is refused: who asks may not, or what is asked for cannot be done now."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Keep the HTTP status, the sentence, and headers such as WWW-Authenticate."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def answer_error(error: MlmetaError) -> Response:
    """Return ``{"detail": sentence}``, with every fault of faulty commands under ``faults``."""
    document: dict[str, Any] = {"detail": str(error)}
    if isinstance(error, CommandsError):
        document["faults"] = [asdict(fault) for fault in error.faults]
        document["n_faults"] = len(error.faults) + error.n_more
    if isinstance(error, RefusedError):
        return JSONResponse(document, status_code=error.status, headers=error.headers)
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    return JSONResponse(document, status_code=status)


def describe_body(schema: str = "") -> dict[str, Any]:
    """Return what OpenAPI says of a route whose body is a JSON object, of one of the schemas that the API has."""
    docs = {"externalDocs": {"url": f"schema/{schema}", "description": "its JSON Schema"}} if schema else {}
    content = {"application/json": {"schema": {"type": "object", **docs}}}
    return {"requestBody": {"required": True, "content": content}}


def answer_rows(key: str, table: pd.DataFrame, **facts: Any) -> Response:
    """Return an object with the rows of a table under a key, and other facts beside them.

    Times are in ISO 8601; what is missing or not finite is null.
    """
    rows = table.to_json(orient="records", date_format="iso", double_precision=_DIGITS)
    others = "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    return Response(f"{{{json.dumps(key)}: {rows}{others}}}", media_type="application/json")
