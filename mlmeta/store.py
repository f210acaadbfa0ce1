"""Opens the tracking store; makes a new SQLite store once, whoever comes first."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlmeta.errors import MlmetaError

# A new SQLite store takes seconds to make; its migrations are of no interest to the user.
_NOISY = ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent")


def open_client() -> MlflowClient:
    """Return a client of the tracking store that MLflow's own settings name.

    Several processes that start on a new SQLite store together could leave it unusable, so it is made under a
    file lock.

    Raises:
        MlmetaError: If the store cannot be opened.
    """
    uri = mlflow.get_tracking_uri()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _sqlite_lock(uri):
            client = MlflowClient()
            client.get_experiment("0")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return client
        raise MlmetaError(f"the tracking store {uri} cannot be opened: {error.message}") from None
    except OSError as error:
        raise MlmetaError(f"the tracking store {uri} cannot be opened: {error}") from None
    return client


@contextlib.contextmanager
def _sqlite_lock(uri: str) -> Iterator[None]:
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    if not file.parent.is_dir():
        raise MlmetaError(f"the tracking store {uri} lies in {file.parent}, which is not a folder")
    with FileLock(f"{file}.lock"):
        yield


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a ``sqlite:///`` store, or None for a store of another kind."""
    parsed = urlparse(uri)
    if parsed.scheme.partition("+")[0] != "sqlite" or parsed.path in ("", "/", "/:memory:"):
        return None
    return Path(unquote(parsed.path.removeprefix("/")))
