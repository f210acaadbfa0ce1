"""The tag that holds an attempt's training losses: written thin enough for MLflow, and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

CURVE_TAG = "mlmeta.training_losses"
MAX_CHARACTERS = 8000


def write_curve(values: Sequence[float | None], *, max_characters: int = MAX_CHARACTERS) -> str:
    """Return losses as JSON short enough for a tag; see `thin_curve`."""
    return json.dumps(thin_curve(values, max_characters=max_characters))


def thin_curve(values: Sequence[float | None], *, max_characters: int = MAX_CHARACTERS) -> list[float | None]:
    """Return a curve short enough for a tag: every k-th value and the last; what is not finite is null."""
    rounded = [None if value is None or not math.isfinite(value) else float(f"{value:.6g}") for value in values]
    every = max(1, len(json.dumps(rounded)) // (max_characters + 1))
    while len(json.dumps(kept := _every(rounded, every))) > max_characters:
        every += 1
    return kept


def _every(values: list[float | None], every: int) -> list[float | None]:
    return values if every == 1 or not values else [*values[:-1:every], values[-1]]


def parse_curve(text: str) -> list[float] | None:
    """Return the losses of a tag, NaN where one is null; None for anything that is no list of numbers."""
    try:
        return [math.nan if value is None else float(value) for value in json.loads(text)]
    except (TypeError, ValueError, RecursionError):
        return None
