"""The settings of the server, from MLMETA_* environment variables: the one way into all worker processes.

Where the server listens, and whether others can reach it there, its own command line says.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlmeta.data.roots import ROOTS_VARIABLE
from mlmeta.errors import BadInputError, shorten

BASE_APPS = ("mlflow", "basic-auth")
_DEFAULT_HOST, _DEFAULT_PORT = "127.0.0.1", 8000
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows and where it keeps things.

    Attributes:
        data_roots: MLMETA_DATA_ROOT: the folders, links resolved, that commands may read from; none allows only the
            samples that mlmeta brings.
        queue_folder: MLMETA_QUEUE_DIR, absolute; None for the one that belongs to the tracking store.
        max_body_bytes: MLMETA_MAX_BODY_BYTES: the largest body of a request.
        max_commands_bytes: MLMETA_MAX_COMMANDS_BYTES: the largest commands document.
        max_depth: MLMETA_MAX_JSON_DEPTH: how deep lists and objects may lie in each other.
        max_queue: MLMETA_MAX_QUEUE: how many jobs may wait.
        at_once: MLMETA_AT_ONCE: how many attempts are trained at once.
        run_worker: MLMETA_WORKER: whether the server starts a runner of jobs.
        base_app: MLMETA_BASE_APP: MLflow's app that ours stands on, one of `BASE_APPS`.
        server_uri: MLMETA_SERVER_URI: where training processes reach the server, without a slash at its end; None
            where requests show it.
    """

    data_roots: tuple[Path, ...] = ()
    queue_folder: Path | None = None
    max_body_bytes: int = 2_000_000
    max_commands_bytes: int = 200_000
    max_depth: int = 60
    max_queue: int = 1000
    at_once: int = 1
    run_worker: bool = True
    base_app: str = "mlflow"
    server_uri: str | None = None


def read_settings(environ: Mapping[str, str] = os.environ) -> ServerSettings:
    """Read the settings; a variable that is missing or empty leaves the default.

    Raises:
        BadInputError: If a value is faulty; names the variable, what came and what is allowed.
    """
    default = ServerSettings()
    return ServerSettings(
        data_roots=_read_roots(environ),
        queue_folder=_read_folder(environ, "MLMETA_QUEUE_DIR"),
        max_body_bytes=_read_int(environ, "MLMETA_MAX_BODY_BYTES", default.max_body_bytes, most=10**9),
        max_commands_bytes=_read_int(environ, "MLMETA_MAX_COMMANDS_BYTES", default.max_commands_bytes, most=10**9),
        # Python's own JSON reader gives up a little below a thousand.
        max_depth=_read_int(environ, "MLMETA_MAX_JSON_DEPTH", default.max_depth, most=500),
        max_queue=_read_int(environ, "MLMETA_MAX_QUEUE", default.max_queue, most=10**6),
        at_once=_read_int(environ, "MLMETA_AT_ONCE", default.at_once, most=1000),
        run_worker=_read_choice(environ, "MLMETA_WORKER", ("1", "0")) == "1",
        base_app=_read_choice(environ, "MLMETA_BASE_APP", BASE_APPS),
        server_uri=_read_uri(environ, "MLMETA_SERVER_URI"),
    )


def _refuse(name: str, allowed: str, came: str) -> BadInputError:
    return BadInputError(f"{name}: must be {allowed}; got {shorten(came)}")


def _read_roots(environ: Mapping[str, str]) -> tuple[Path, ...]:
    text = environ.get(ROOTS_VARIABLE, "")
    return tuple(check_root(part, name=ROOTS_VARIABLE) for part in text.split(os.pathsep) if part.strip())


def check_root(text: str, *, name: str) -> Path:
    """Return a data root, absolute and with links resolved.

    Args:
        text: The folder's path.
        name: What it was given to, for error text.

    Raises:
        BadInputError: If it is no folder, or the whole disk.
    """
    try:
        root = Path(text).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise _refuse(name, "an existing folder", text) from None
    if not root.is_dir():
        raise _refuse(name, "an existing folder", text)
    if root == root.parent:
        raise _refuse(name, "a folder, not the whole disk", text)
    return root


def _read_folder(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    # It is made where it is missing.
    folder = Path(text).absolute()
    if "\0" in text or (folder.exists() and not folder.is_dir()):
        raise _refuse(name, "a folder", text)
    return folder


def _read_int(environ: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    # Not int(): it takes underscores, signs and the digits of all scripts.
    if not text.isascii() or not text.isdigit() or len(text) > 12 or not 1 <= int(text) <= most:
        raise _refuse(name, f"a whole number from 1 to {most:,}", text)
    return int(text)


def _read_choice(environ: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """Return one of the choices, the first where the variable is not set."""
    text = environ.get(name, "").strip() or choices[0]
    if text not in choices:
        raise _refuse(name, f"one of {', '.join(choices)}", text)
    return text


def _read_uri(environ: Mapping[str, str], name: str) -> str | None:
    text = environ.get(name, "").strip()
    if not text:
        return None
    try:
        parts = urlsplit(text)
        is_plain = parts.port != 0 and not (parts.username or parts.password or parts.query or parts.fragment)
        is_usable = is_plain and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise _refuse(name, "an address such as http://127.0.0.1:5000, without user or query", text)
    return text.rstrip("/")


@dataclass(frozen=True)
class Listening:
    """An address that uvicorn listens on.

    Attributes:
        host: As it was given.
    """

    scheme: str
    host: str
    port: int

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach it."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    @property
    def uri(self) -> str:
        """Where processes of this machine reach it."""
        host = _ANY.get(self.host, self.host)
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def find_listening(arguments: Sequence[str]) -> Listening | None:
    """Return where uvicorn listens, read from the command line of its processes; None where it is none of uvicorn's.

    Uvicorn's workers are spawned, and so have the ``sys.argv`` of their supervisor.
    """
    options = dict(itertools.pairwise(arguments))
    options |= dict(one.split("=", 1) for one in arguments if one.startswith("--") and "=" in one)
    if "--host" not in options and "--port" not in options:
        return None
    port = options.get("--port", str(_DEFAULT_PORT))
    if not port.isdecimal():
        return None
    scheme = "https" if "--ssl-certfile" in options else "http"
    return Listening(scheme, options.get("--host", _DEFAULT_HOST), int(port))
