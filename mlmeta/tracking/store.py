"""Opens the tracking store; makes a new SQLite store once, whoever comes first.

MLflow takes seconds to be imported, and is only imported where a store is opened, not where it is only named.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse, urlunparse

from mlmeta.errors import MlmetaError, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

# A new SQLite store takes seconds to make; its migrations are of no interest to the user.
_NOISY = ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "urllib3.connectionpool")
# MLflow would try a request 8 times in 4 minutes; what is written is tried again by `mlmeta.tracking.outbox`. A bar for
# each small file would bury what an attempt says.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Several hosts cannot share the memory that write-ahead logging needs.
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "ceph", "gpfs", "glusterfs", "afs"}
EXPERIMENTS_VARIABLE = "MLMETA_EXPERIMENTS"


def open_client(uri: str | None = None) -> MlflowClient:
    """Return a client of a tracking store; None for the one that MLflow's own settings name.

    Several processes that start on a new SQLite store together could leave it unusable, so it is made under a
    file lock; it is given a write-ahead log, with which readers and writers do not wait for each other.

    Raises:
        MlmetaError: If the store cannot be opened.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = uri or current_uri()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    with telling(f"the tracking store {hide_password(uri)} cannot be opened"), _sqlite_lock(uri):
        client = MlflowClient(tracking_uri=uri)
        try:
            client.get_experiment("0")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return client


@contextlib.contextmanager
def _sqlite_lock(uri: str) -> Iterator[None]:
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    if not file.parent.is_dir():
        raise MlmetaError(f"the tracking store {uri} lies in {file.parent}, which is not a folder")
    from filelock import FileLock

    with FileLock(f"{file}.lock"):
        # Not before: another process may be making the tables.
        _check_sqlite(file)
        yield
        if file.is_file() and not _on_network(file):
            _log_ahead(file)


def _log_ahead(file: Path) -> None:
    """Give a SQLite file a write-ahead log, which stays; a file that cannot have one is left as it is."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file, timeout=5)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode=WAL")


def _on_network(file: Path) -> bool:
    """Return whether a file lies on a file system that other hosts may write too, as far as Linux tells."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    mounts = [(Path(fields[1]), fields[2]) for fields in map(str.split, lines) if len(fields) > 2]
    above = [(len(folder.parts), kind) for folder, kind in mounts if file.resolve().is_relative_to(folder)]
    kind = max(above, default=(0, ""), key=lambda mount: mount[0])[1]
    return kind in _NETWORK_FILE_SYSTEMS or kind == "fuse.sshfs"


def _check_sqlite(file: Path) -> None:
    """Refuse a file that is no store before MLflow makes its tables in it."""
    if not file.is_file() or not file.stat().st_size:
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            return  # It is locked, or its write-ahead log cannot be made: MLflow says more.
        raise MlmetaError(f"the tracking store {file} is no SQLite database") from None
    if names and "experiments" not in names:
        raise MlmetaError(f"the tracking store {file} is a database of another program, without MLflow's tables")


def explain_stale(client: MlflowClient, run_id: str) -> str:
    """Return what to say where a run's artifacts lie in a folder that is not here; empty where it is, or no run."""
    from mlflow.exceptions import MlflowException

    try:
        place = urlparse(client.get_run(run_id).info.artifact_uri)
    except MlflowException:
        return ""
    folder = Path(unquote(place.path)).parent.parent
    if place.scheme not in ("", "file") or folder.is_dir():
        return ""
    return (
        f"; the store says that artifacts lie in {folder}, which is not here: if it was moved, make that place a link "
        f"to where they lie now (ln -s NEW '{folder}')"
    )


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn what MLflow, a database or its missing driver raises, and what the system does, into one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except MlflowException as error:
        raise MlmetaError(f"{what}: {error.message}") from error
    except DBAPIError as error:
        # Without the statement, which says nothing to a user.
        raise MlmetaError(f"{what}: {one_line(error.orig or error, 300)}") from error
    except ModuleNotFoundError as error:
        known = "; pip install 'mlmeta[postgresql]' brings that of addresses that begin with postgresql+psycopg://"
        extra = known if (error.name or "").startswith("psycopg") else ""
        raise MlmetaError(f"{what}: its driver {error.name} is not installed{extra}") from error
    except OSError as error:
        raise MlmetaError(f"{what}: {error}") from error


def list_experiments(client: MlflowClient) -> list[str]:
    """Return the ids of all experiments that are not deleted, and that this process may look at."""
    found = [experiment.experiment_id for experiment in read_pages(client.search_experiments)]
    visible = visible_experiments()
    return found if visible is None else [experiment_id for experiment_id in found if experiment_id in visible]


def search_all_runs(client: MlflowClient, filters: str) -> Iterator[Run]:
    """Yield every run of all experiments that fits MLflow's filter."""
    if experiments := list_experiments(client):
        yield from read_pages(client.search_runs, experiments, filters, max_results=1000)


def read_pages(search: Callable[..., PagedList[Any]], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yield all that one of MLflow's searches finds, page after page."""
    token = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def visible_experiments() -> frozenset[str] | None:
    """Return the ids of the only experiments whose past this process may look at; None for all.

    A server sets them for a training: the login that it records with may read more than who asked for it.
    """
    given = os.environ.get(EXPERIMENTS_VARIABLE)
    return None if given is None else frozenset(given.split(","))


def hide_password(uri: str) -> str:
    """Return a URI to be shown: without the password that it may hold."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:***@", uri)


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
