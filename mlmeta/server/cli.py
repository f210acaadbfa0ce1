"""The commands ``server``, MLflow's server with mlmeta's routes and pages, and ``worker``, a runner of its queue."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from mlmeta.console import reporting_errors
from mlmeta.data.roots import ROOTS_VARIABLE, join_roots
from mlmeta.errors import BadInputError, shorten
from mlmeta.files import state_folder
from mlmeta.server.settings import ServerSettings, is_loopback, read_options, read_root, read_settings
from mlmeta.tracking.store import hide_password

_STORE_VARIABLE = "MLFLOW_BACKEND_STORE_URI"
_JOBS_VARIABLE = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"


@dataclass(frozen=True)
class ServerProcess:
    """What is to be run.

    Attributes:
        arguments: The command line, the program first.
        environ: All of its environment.
        settings: What that says.
        host: The network interface that it will listen on.
        store: The URI of the store that it serves; empty for MLflow's default.
        pages: The address of mlmeta's pages.
    """

    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    settings: ServerSettings
    host: str
    store: str
    pages: str


def plan_server(
    options: Sequence[str],
    *,
    data_roots: Sequence[str] = (),
    at_once: int | None = None,
    run_worker: bool = True,
    auth: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> ServerProcess:
    """Return the process of a server; what is left out is as the environment says.

    The store is that of ``--backend-store-uri`` or `MLFLOW_BACKEND_STORE_URI`, else that of `MLFLOW_TRACKING_URI` as
    everywhere in mlmeta, if that is a store and no other server.

    MLflow's own job runners stay off unless the environment switches them on: mlmeta has jobs of its own, and those
    are 13 more processes.

    Args:
        options: Of ``mlflow server``.
        data_roots: Folders that commands may read from.
        at_once: How many attempts are trained at once.
        run_worker: False: the server starts no runner of jobs.
        auth: Ask for a login, by MLflow's basic authentication.
        environ: Of this process.

    Raises:
        BadInputError: If an option or a variable is faulty.
    """
    if any(option.partition("=")[0] == "--app-name" for option in options):
        raise BadInputError("--app-name: is mlmeta already; leave it out (--auth puts mlmeta on MLflow's basic-auth)")
    given = {_JOBS_VARIABLE: "false", ROOTS_VARIABLE: "", **environ}
    if data_roots:
        given[ROOTS_VARIABLE] = join_roots([_check_root(root) for root in data_roots])
    if at_once is not None:
        given["MLMETA_AT_ONCE"] = str(at_once)
    if not run_worker:
        given["MLMETA_WORKER"] = "0"
    if auth:
        given["MLMETA_BASE_APP"] = "basic-auth"
    found = read_options(options, "--host", "--port", "--static-prefix", "--backend-store-uri")
    variables = ("MLFLOW_HOST", "MLFLOW_PORT", "MLFLOW_STATIC_PREFIX", _STORE_VARIABLE)
    host, port, prefix, store = (one or environ.get(name, "") for one, name in zip(found, variables, strict=True))
    followed = environ.get("MLFLOW_TRACKING_URI", "")
    if not store and followed and not _is_server(followed):
        store = given[_STORE_VARIABLE] = followed
    host = host or "127.0.0.1"
    pages = f"http://{host}:{port or 5000}{prefix.rstrip('/')}/mlmeta/"
    arguments = (sys.executable, "-m", "mlflow", "server", "--app-name", "mlmeta", *options)
    return ServerProcess(arguments, given, read_settings(given), host, store, pages)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _check_root(text: str) -> Path:
    try:
        root = read_root(text)
    except ValueError as error:
        raise BadInputError(f"--data-root: must be {error}; got {shorten(text)}") from None
    if os.pathsep in str(root):
        raise BadInputError(f"--data-root: its path may hold no {os.pathsep!r}; got {shorten(str(root))}")
    return root


def describe_server(process: ServerProcess) -> list[str]:
    """Return what somebody who starts the server has to know, a line each."""
    settings = process.settings
    roots = ", ".join(map(str, settings.data_roots)) or "none (only mlmeta's samples; --data-root DIR allows more)"
    queue = settings.queue_folder or f"{state_folder() / 'jobs'} (by tracking store)"
    followed = process.environ.get("MLFLOW_TRACKING_URI", "")
    reason = " (MLFLOW_TRACKING_URI names a server, and is not followed)" if _is_server(followed) else ""
    lines = [
        f"data roots: {roots}; queue: {queue}",
        f"store: {hide_password(process.store) or 'the default of MLflow' + reason}; pages: {process.pages}",
    ]
    if not is_loopback(process.host) and settings.base_app != "basic-auth":
        lines.append(
            f"warning: the server listens on {process.host} and asks for no login: whoever reaches it may train, read "
            "and delete; --auth asks for one"
        )
    has_login = "MLFLOW_TRACKING_USERNAME" in process.environ or "MLFLOW_TRACKING_TOKEN" in process.environ
    if settings.base_app == "basic-auth" and settings.run_worker and not has_login:
        lines.append(
            "warning: trainings have no login and will fail: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are "
            "not set"
        )
    return lines


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--data-root", "data_roots", multiple=True, metavar="DIR", help="Commands may read here; repeatable.")
@click.option("--at-once", type=click.IntRange(1, 1000), help="Attempts at once; 1 by default.")
@click.option("--no-worker", is_flag=True, help="Start no runner of jobs; `mlmeta worker` is one.")
@click.option("--auth", is_flag=True, help="Ask for a login, by MLflow's basic authentication.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF mlflow server]")
@reporting_errors
def server(
    data_roots: tuple[str, ...], at_once: int | None, no_worker: bool, auth: bool, options: Sequence[str]
) -> None:
    """Serve MLflow with mlmeta's page and API: mlflow server --app-name mlmeta."""
    process = plan_server(options, data_roots=data_roots, at_once=at_once, run_worker=not no_worker, auth=auth)
    for line in describe_server(process):
        click.echo(f"mlmeta: {line}", err=True)
    os.execvpe(process.arguments[0], list(process.arguments), dict(process.environ))  # noqa: S606  # no shell


@click.command()
@click.option("--queue", "folder", metavar="DIR", envvar="MLMETA_QUEUE_DIR", type=Path, help="The folder of the queue.")
@click.option("--at-once", type=click.IntRange(1, 1000), default=1, show_default=True, help="Attempts at once.")
@click.option("--while-pid", metavar="PID", type=click.IntRange(min=1), help="End with this process.")
@reporting_errors
def worker(folder: Path | None, at_once: int, while_pid: int | None) -> None:
    """Train what a server has queued, until Ctrl-C; a server starts one by itself.

    Without --queue it is the folder of MLMETA_QUEUE_DIR, or the queue of the tracking store of MLflow's settings.
    """
    from mlmeta.server.queue import JobQueue, queue_folder
    from mlmeta.server.worker import JobRunner
    from mlmeta.tracking.store import current_uri

    queue = JobQueue(folder or queue_folder(current_uri()))
    click.echo(f"working on {queue.folder}, {at_once} at once", err=True)
    JobRunner(queue, at_once=at_once, while_pid=while_pid).run()


COMMANDS: list[click.Command] = [worker, server]
