"""Commands as MLflow params: dotted keys, text values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

MAX_VALUE = 6000


def flatten_params(document: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Return a document as params: ``optimizer.lr``, ``model.layers.0.name``.

    A list of scalars is one param, as JSON; a list with objects in it goes on by index. What is null or empty
    is left out. Values longer than MLflow's 6,000 characters are cut and end in "…".
    """
    return dict(_flatten(document, prefix))


def _flatten(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{key}.{index}")
    elif value is not None and value != "" and value != []:
        text = format_param(value)
        yield key, text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def format_param(value: Any) -> str:
    """Return one param's text: strings as they are, all else as JSON (``true``, ``0.001``, ``[5, 5]``)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
