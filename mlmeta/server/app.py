"""The app of ``mlflow server --app-name mlmeta``: MLflow's own, with mlmeta's routes before its last, catch-all mount.

MLflow's answers stay as they are. Whatever a worker process keeps is a cache: any number of them may run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from filelock import FileLock
from starlette.responses import Response
from starlette.routing import Mount

from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.files import state_folder
from mlmeta.server.limits import RequestGuard
from mlmeta.server.queue import JobQueue, queue_folder
from mlmeta.server.responses import answer_error
from mlmeta.server.settings import ServerSettings, find_listening, is_loopback, read_settings
from mlmeta.server.state import AttemptTable, Server
from mlmeta.server.worker import keeping_runner
from mlmeta.tracking.store import sqlite_file

_LOG = logging.getLogger("uvicorn.error")


def create_app() -> FastAPI:
    """Return MLflow's app with mlmeta's routes.

    Raises:
        BadInputError: If a setting cannot be used, or the server is not uvicorn.
    """
    settings = read_settings()
    app = _make_base(settings)
    if not isinstance(app, FastAPI):
        raise BadInputError(
            "mlmeta's app needs uvicorn, which is MLflow's default: leave out --gunicorn-opts and --waitress-opts"
        )
    server = _make_server(app, settings)
    app.state.mlmeta = server
    _add_routes(app, server.prefix)
    app.add_exception_handler(MlmetaError, _answer)
    app.add_middleware(RequestGuard, settings=settings, prefix=server.prefix)
    _extend_lifespan(app, server)
    return app


def _make_base(settings: ServerSettings) -> object:
    if settings.base_app == "mlflow":
        from mlflow.server.fastapi_app import create_fastapi_app

        return create_fastapi_app()
    from mlflow.server.auth import create_app as create_auth_app

    with FileLock(state_folder() / "auth.lock"):
        return create_auth_app()


def _make_server(app: FastAPI, settings: ServerSettings) -> Server:
    from mlflow.server import BACKEND_STORE_URI_ENV_VAR
    from mlflow.server.handlers import STATIC_PREFIX_ENV_VAR

    store_uri = make_absolute(os.environ.get(BACKEND_STORE_URI_ENV_VAR, ""))
    folder = settings.queue_folder or queue_folder(store_uri)
    return Server(
        settings=settings,
        mlflow=app,
        prefix=os.environ.get(STATIC_PREFIX_ENV_VAR, "").rstrip("/"),
        store_uri=store_uri,
        needs_login=settings.base_app != "mlflow",
        queue=JobQueue(folder, capacity=settings.max_queue),
        attempts=AttemptTable(store_uri),
    )


def make_absolute(store_uri: str) -> str:
    """Return the URI of a store that means the same in every folder."""
    file = sqlite_file(store_uri)
    return f"sqlite:///{file.resolve()}" if file else store_uri or str(Path.cwd())


def _add_routes(app: FastAPI, prefix: str) -> None:
    from mlmeta.server import legacy_routes, openapi, pages, routes

    last = app.router.routes.pop()
    if not isinstance(last, Mount):
        raise MlmetaError(f"MLflow's app ends with {last!r} where mlmeta expects its catch-all mount")
    for router in (openapi.router, routes.router, legacy_routes.router, pages.router):
        app.include_router(router, prefix=prefix)
    app.router.routes.append(last)


async def _answer(_request: Request, error: Exception) -> Response:
    if not isinstance(error, MlmetaError):
        raise error
    return answer_error(error)


def _extend_lifespan(app: FastAPI, server: Server) -> None:
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncIterator[Any]:
        _begin(server)
        with keeping_runner(server.queue, server.settings):
            async with inner(started) as state:
                yield state

    app.router.lifespan_context = lifespan


def _begin(server: Server) -> None:
    """Tell the runner where the server is, and whoever reads its log what is open to whom."""
    listening = find_listening(sys.argv)
    if address := server.settings.server_uri or (listening and listening[1]):
        server.queue.set_address(f"{address}{server.prefix}")
    if listening and not is_loopback(listening[0]) and not server.needs_login:
        _LOG.warning(
            "mlmeta: the server listens on %s without authentication: whoever reaches it can train there; "
            "MLMETA_BASE_APP=basic-auth asks for a login",
            listening[0],
        )


def _check_settings() -> None:
    """End the process where a setting cannot be used.

    `mlflow server` imports this module before it starts worker processes. A fault that showed in those would be told
    as a traceback, again and again: their supervisor starts them anew.
    """
    try:
        if read_settings().base_app == "basic-auth":
            _check_login()
    except MlmetaError as error:
        sys.stderr.write(f"mlmeta: {error}\n")
        raise SystemExit(error.exit_code) from None


def _check_login() -> None:
    """Make MLflow's database of logins and its admin, as `mlflow server --app-name basic-auth` does."""
    from mlflow.exceptions import MlflowException

    try:
        from mlflow.server.auth import bootstrap_admin_user, get_flask_server_secret_key

        # Worker processes that make the database together would be in each other's way.
        with FileLock(state_folder() / "auth.lock"):
            get_flask_server_secret_key()
            bootstrap_admin_user()
    except ImportError as error:
        raise BadInputError(f"MLMETA_BASE_APP=basic-auth needs pip install 'mlmeta[server]': {error}") from None
    except MlflowException as error:
        raise BadInputError(f"MLMETA_BASE_APP=basic-auth: {error.message}") from None


_check_settings()
