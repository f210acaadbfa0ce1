"""What names a tracking store; MLflow, which takes seconds to be imported, is not needed for that."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse, urlunparse

EXPERIMENTS_VARIABLE = "MLMETA_EXPERIMENTS"


def visible_experiments() -> frozenset[str] | None:
    """Return the ids of the only experiments whose past this process may look at; None for all.

    A server sets them for a training: the login that it records with may read more than who asked for it.
    """
    given = os.environ.get(EXPERIMENTS_VARIABLE)
    return None if given is None else frozenset(given.split(","))


def current_uri() -> str:
    """Return the URI of the tracking store that MLflow's own settings name."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given and "mlflow" not in sys.modules:
        return given
    import mlflow

    return str(mlflow.get_tracking_uri())


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a ``sqlite:///`` store, or None for a store of another kind."""
    parsed = urlparse(uri)
    if parsed.scheme.partition("+")[0] != "sqlite" or parsed.path in ("", "/", "/:memory:"):
        return None
    return Path(unquote(parsed.path.removeprefix("/")))


def store_key(uri: str) -> str:
    """Return what names a tracking store wherever the process stands: an absolute path, no login."""
    if file := sqlite_file(uri):
        return f"sqlite:///{file.resolve()}"
    parsed = urlparse(uri)
    return urlunparse(parsed._replace(netloc=parsed.netloc.rpartition("@")[2])).rstrip("/")
