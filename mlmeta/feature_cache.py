"""Keeps the meta-features of tasks on this machine, so that the tenth attempt on a task does not compute them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mlmeta.files import cache_folder
from mlmeta.metafeatures import META_FEATURES, VERSION

# A kilobyte each: of more, the oldest are removed.
MOST_TASKS = 1000


def remember_features(described: object, compute: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Return the meta-features of a task, computed only where this machine has not done so before.

    What cannot be read or written is computed, and costs nothing but time.

    Args:
        described: All that the meta-features depend on, plain JSON: digests and labels of the pictures, operations.
        compute: Computes them.
    """
    text = json.dumps([VERSION, described], sort_keys=True)
    file = feature_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and kept.keys() == META_FEATURES.keys() and all(map(_is_number, kept.values())):
            return kept
    features = dict(compute())
    with contextlib.suppress(OSError):
        _write(file, json.dumps(features))
    return features


def feature_folder() -> Path:
    """Return the folder of the kept meta-features, beside that of the kept pictures."""
    return cache_folder() / "tasks"


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all, and remove the oldest of too many."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)
    kept = list(file.parent.glob("*.json"))
    if len(kept) > MOST_TASKS:
        for old in sorted(kept, key=lambda one: one.stat().st_mtime)[: len(kept) - MOST_TASKS]:
            old.unlink(missing_ok=True)
