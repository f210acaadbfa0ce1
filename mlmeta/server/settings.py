"""The settings of the server, from MLMETA_* environment variables: the one way into all worker processes.

Where the server listens, and whether others can reach it there, its own command line says.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlmeta.data.roots import ROOTS_VARIABLE
from mlmeta.errors import BadInputError, shorten

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


def read_root(text: str) -> Path:
    """Return a data root, absolute and with links resolved.

    Raises:
        ValueError: If it is no folder, or the whole disk.
    """
    try:
        root = Path(text).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        root = None
    if root is None or not root.is_dir() or root == root.parent:
        raise ValueError("an existing folder, and not the whole disk")
    return root


def _read_roots(text: str) -> tuple[Path, ...]:
    return tuple(read_root(part) for part in text.split(os.pathsep) if part.strip())


def _read_folder(text: str) -> Path:
    # It is made where it is missing.
    folder = Path(text).absolute()
    if "\0" in text or (folder.exists() and not folder.is_dir()):
        raise ValueError("a folder")
    return folder


def _up_to(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        # Not int() alone: it takes underscores, signs and the digits of all scripts.
        if not re.fullmatch("[0-9]{1,12}", text) or not 1 <= int(text) <= most:
            raise ValueError(f"a whole number from 1 to {most:,}")
        return int(text)

    return read


def _one_of(choices: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return choices[text]

    return read


def _read_uri(text: str) -> str:
    try:
        parts = urlsplit(text)
        has_more = parts.port == 0 or parts.username or parts.password or parts.query or parts.fragment
        is_usable = not has_more and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError("an address such as http://127.0.0.1:5000, without user or query")
    return text.rstrip("/")


def _variable(name: str, read: Callable[[str], Any], default: Any = None) -> Any:
    return field(default=default, metadata={"name": name, "read": read})


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows and where it keeps things; docs/server.md says what each variable means.

    Attributes:
        data_roots: With links resolved; none allows only the samples that mlmeta brings.
        queue_folder: Absolute; None for the one that belongs to the tracking store.
        base_app: MLflow's app that ours stands on.
        server_uri: Without a slash at its end; None where requests show it.
    """

    data_roots: tuple[Path, ...] = _variable(ROOTS_VARIABLE, _read_roots, ())
    queue_folder: Path | None = _variable("MLMETA_QUEUE_DIR", _read_folder)  # noqa: RUF009 - makes a field
    max_body_bytes: int = _variable("MLMETA_MAX_BODY_BYTES", _up_to(10**9), 2_000_000)
    max_commands_bytes: int = _variable("MLMETA_MAX_COMMANDS_BYTES", _up_to(10**9), 200_000)
    # Python's own JSON reader gives up a little below a thousand.
    max_depth: int = _variable("MLMETA_MAX_JSON_DEPTH", _up_to(500), 60)
    max_queue: int = _variable("MLMETA_MAX_QUEUE", _up_to(10**6), 1000)
    at_once: int = _variable("MLMETA_AT_ONCE", _up_to(1000), 1)
    run_worker: bool = _variable("MLMETA_WORKER", _one_of({"1": True, "0": False}), True)
    base_app: str = _variable("MLMETA_BASE_APP", _one_of({one: one for one in ("mlflow", "basic-auth")}), "mlflow")
    server_uri: str | None = _variable("MLMETA_SERVER_URI", _read_uri)


def read_settings(environ: Mapping[str, str] = os.environ) -> ServerSettings:
    """Read the settings; a variable that is missing or empty leaves the default.

    Raises:
        BadInputError: If values are faulty; names each variable, what came and what is allowed.
    """
    values, faults = {}, []
    for setting in fields(ServerSettings):
        name, read = setting.metadata["name"], setting.metadata["read"]
        if text := environ.get(name, "").strip():
            try:
                values[setting.name] = read(text)
            except ValueError as error:
                faults.append(f"{name}: must be {error}; got {shorten(text)}")
    if faults:
        raise BadInputError("\n".join(faults))
    return ServerSettings(**values)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens there; a name that is not sure is not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_options(arguments: Sequence[str], *names: str) -> list[str | None]:
    """Return what a command line gives some options, each by its long name or its first letter; the last one counts."""
    # Not above: `mlmeta --help` needs none of it.
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, name[1:3], dest=name, nargs="?")
    given = vars(parser.parse_known_args(list(arguments))[0])
    return [given[name] for name in names]


def find_listening(arguments: Sequence[str]) -> tuple[str, str] | None:
    """Return the host that uvicorn listens on, and the URI where processes of this machine reach it.

    They are read from the command line of its processes; None where it is none of uvicorn's. Uvicorn's workers are
    spawned, and so have the ``sys.argv`` of their supervisor.
    """
    host, port, certificate = read_options(arguments, "--host", "--port", "--ssl-certfile")
    if not (host or port) or not (port or "0").isdecimal():
        return None
    host = host or "127.0.0.1"
    name = _ANY.get(host, host)
    scheme = "https" if certificate else "http"
    return host, f"{scheme}://{f'[{name}]' if ':' in name else name}:{port or 8000}"
