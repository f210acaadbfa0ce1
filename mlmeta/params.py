"""Commands as MLflow params: dotted keys, text values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_KEY = 250
MAX_VALUE = 6000


def flatten_params(document: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Return a document as params: ``optimizer.lr``, ``model.layers.0.name``.

    A list of scalars is one param, as JSON; a list with objects in it goes on by index. What is null or empty
    is left out, but for an object: ``{}`` is how an operation without arguments is written. Where a key would be
    longer than MLflow's 250 characters, all that lies below is one param, as JSON. Values longer than MLflow's
    6,000 characters are cut and end in "…".
    """
    return dict(_flatten(document, prefix))


def _flatten(value: Any, key: str) -> Iterator[tuple[str, str]]:
    below = {f"{key}.{name}" if key else str(name): item for name, item in _children(value)}
    if below and max(map(len, below)) <= MAX_KEY:
        for name, item in below.items():
            yield from _flatten(item, name)
    elif key and value is not None and value != "" and value != []:
        text = format_param(value)
        yield key, text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return what of a value has params of its own: the items of an object, and of a list with objects in it."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return enumerate(value)
    return ()


def format_param(value: Any) -> str:
    """Return one param's text: strings as they are, all else as JSON (``true``, ``0.001``, ``[5, 5]``)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
