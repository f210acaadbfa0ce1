"""What mlmeta keeps on this machine: its folders, files written whole or not at all, and the locks of runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from mlmeta.errors import BadInputError

# Why a lock is not to be had: its Timeout is an OSError; filelock raises the other where the file system has no locks.
NO_LOCKS = (OSError, NotImplementedError)


def state_folder() -> Path:
    """Return the folder, made where it is missing.

    It is ``$MLMETA_STATE_DIR``, else ``$XDG_STATE_HOME/mlmeta``, else ``~/.local/state/mlmeta``; where that cannot
    be written, a folder of this user among the temporary ones.

    Raises:
        OSError: If there is no place to write at all.
    """
    given = os.environ.get("MLMETA_STATE_DIR")
    base = os.environ.get("XDG_STATE_HOME")
    home = Path(base) if base else Path.home() / ".local" / "state"
    return _usable(Path(given) if given else home / "mlmeta")


@cache
def _usable(wanted: Path) -> Path:
    try:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted.absolute()
    except OSError:
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
        folder = Path(tempfile.gettempdir()) / f"mlmeta-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{wanted} cannot be written, and {folder} belongs to another user") from None
        return folder


@contextlib.contextmanager
def replacing(file: Path, *, durable: bool = False, part: Path | None = None) -> Iterator[IO[bytes]]:
    """Give a stream whose content becomes the file, whole, when the block ends well; else the one before is left.

    Args:
        file: Where it goes; its folder must be there.
        durable: Whether the content is to be on the disk before the file has its name.
        part: Where it is written until then; None for a name of its own, beside the file.

    Raises:
        OSError: If it cannot be written.
    """
    part = part or file.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        part.replace(file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_lock(file: Path, taken: str) -> Iterator[None]:
    """Hold a lock file, which says that its process lives; the system frees it when that ends in any way.

    Args:
        file: Made, and removed afterwards; its folder is there.
        taken: The sentence for whoever comes second.

    Raises:
        BadInputError: If another process holds it.
    """
    lock = FileLock(file)
    try:
        # Whoever looks whether it is held, holds it for a moment.
        lock.acquire(timeout=1)
    except Timeout:
        raise BadInputError(taken) from None
    try:
        yield
    finally:
        # Before the release: whoever comes now makes a file of their own.
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


def is_lock_held(file: Path) -> bool | None:
    """Return whether a living process holds a lock file; None where there is none."""
    if not file.exists():
        return None
    try:
        with FileLock(file).acquire(timeout=0):
            return False
    except Timeout:
        return True


@contextlib.contextmanager
def hold_run(run_id: str) -> Iterator[None]:
    """Hold the lock of a run, which tells other processes of this machine that it is being worked on.

    Where no lock can be made, the run goes without.

    Raises:
        BadInputError: If a living process holds it.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(*NO_LOCKS):
            file = _lock_file(run_id)
            file.parent.mkdir(parents=True, exist_ok=True)
            taken = f"the run {run_id} is being worked on by another process of this machine"
            held.enter_context(hold_lock(file, taken))
        yield


def is_held(run_id: str) -> bool | None:
    """Return whether a living process holds the lock of a run; None where this machine has no such lock."""
    with contextlib.suppress(*NO_LOCKS):
        return is_lock_held(_lock_file(run_id))
    return None


def _lock_file(run_id: str) -> Path:
    return state_folder() / "locks" / f"{run_id}.lock"


def cache_folder() -> Path:
    """Return the cache folder: ``$MLMETA_CACHE_DIR``, else ``$XDG_CACHE_HOME/mlmeta``, else ``~/.cache/mlmeta``."""
    if folder := os.environ.get("MLMETA_CACHE_DIR"):
        return Path(folder).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a path that is not absolute is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "mlmeta"
