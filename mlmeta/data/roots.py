"""Where data may lie: the folders, *data roots*, that commands of strangers may read from.

Two rules hold together. `confine_commands` refuses commands whose paths lead out, before anything is queued. And where
the environment variable MLMETA_DATA_ROOT is set, every picture, manifest and weights file is opened through
`open_descriptor`, which goes down from a root one folder at a time and follows no link: what was swapped after a check
is not opened either. Where the variable is not set, on a user's own command line, nothing is looked at.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from mlmeta.errors import BadInputError, CommandsError, Fault, shorten

if TYPE_CHECKING:
    from mlmeta.commands.documents import TestCommands, TrainCommands

ROOTS_VARIABLE = "MLMETA_DATA_ROOT"
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CHUNK_BYTES = 2**20
_OUTSIDE = "lies outside the data roots"
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}  # fmt: skip
# Windows opens nothing relative to a folder that is open; there the resolved path is checked and then opened.
_HAS_DIR_FD = os.open in os.supports_dir_fd


class OutsideRootsError(PermissionError):
    """A file lies outside the data roots; like any file that cannot be read, it makes a picture be left out."""

    def __init__(self, name: str = "") -> None:
        """Say no more than the name that was given: whether there is such a file is not for strangers to know."""
        super().__init__(errno.EACCES, f"{name} {_OUTSIDE}".strip())

    def __str__(self) -> str:
        """Return the message alone."""
        return str(self.strerror)


def join_roots(roots: Sequence[Path | str]) -> str:
    """Return data roots as the value of MLMETA_DATA_ROOT; none are the empty text, which allows no file at all."""
    return os.pathsep.join(str(root) for root in roots)


def read_roots() -> tuple[Path, ...] | None:
    """Return the data roots that MLMETA_DATA_ROOT names, links resolved.

    Returns:
        None where the variable is not set: all files may be opened. Empty where it is set and empty: none may.
    """
    text = os.environ.get(ROOTS_VARIABLE)
    return None if text is None else _split_roots(text)


@cache
def _split_roots(text: str) -> tuple[Path, ...]:
    return tuple(Path(part).resolve() for part in text.split(os.pathsep) if part.strip())


def confine_commands(commands: TrainCommands | TestCommands, roots: Sequence[Path]) -> Path:
    """Refuse commands that would read anything but the samples that mlmeta brings and files below the data roots.

    Args:
        commands: Of a stranger.
        roots: Existing folders, which may themselves be links; relative paths lie below the first. None: samples only.

    Returns:
        What relative paths in the commands are relative to: the first root, links resolved.

    Raises:
        CommandsError: With every path that leads out, is written in a way that hides where it leads, or does not exist
            inside; and for ``download: true``.
    """
    resolved = [root.resolve() for root in roots]
    faults = list(_find_faults(commands, resolved))
    if faults:
        raise CommandsError(faults)
    return resolved[0] if resolved else Path(Path.cwd().anchor)


def _find_faults(commands: TrainCommands | TestCommands, roots: Sequence[Path]) -> Iterator[Fault]:
    data = commands.data
    if data is not None and data.source != "sample":
        if data.source == "torchvision" and data.download:
            yield Fault("data.download", "nothing is fetched for commands that came over HTTP; must be false", "true")
        if roots:
            wanted = "file" if data.source == "manifest" else "folder"
            yield from _check_path("data.path", data.path, roots, wanted=wanted)
        else:
            message = "the server has no data root (--data-root): only the samples that mlmeta brings may be used"
            yield Fault("data.source", message, repr(data.source))
    weights = (commands.model or {}).get("weights")
    if weights:
        yield from _check_path("model.weights", str(weights), roots, wanted="file")


def _check_path(key: str, path: str, roots: Sequence[Path], *, wanted: str) -> Iterator[Fault]:
    """Check one path of the commands; all that lies outside gets the same answer, be it there or not."""
    if not roots:
        yield Fault(key, "the server has no data root (--data-root): no file may be read", shorten(path))
        return
    if reason := _find_disguise(path) or _find_disguise(unicodedata.normalize("NFKC", path)):
        yield Fault(key, f"{reason}; must be a plain path below the server's data root", shorten(path))
        return
    try:
        file = check_inside(roots[0] / path, roots)
        is_there = file.is_dir() if wanted == "folder" else file.is_file()
    except OSError:
        yield Fault(key, f"{_OUTSIDE} of the server", shorten(path))
        return
    if not is_there:
        yield Fault(key, f"there is no such {wanted} below the server's data root", shorten(path))


def _find_disguise(path: str) -> str:
    """Return in words what about a path may lead out or hide where it leads; nothing for a plain one."""
    parts = path.split("/")
    rules = {
        "holds a control character": any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in path),
        "holds a backslash": "\\" in path,
        "is percent-encoded": bool(_ENCODED.search(path)),
        "names a scheme or a drive": bool(_SCHEME.match(path.lstrip())),
        "names another machine": path.startswith("//"),
        "starts at a home folder": path.lstrip().startswith("~"),
        "goes up (..)": ".." in parts,
        "has a part that ends or starts with a space, or ends with a dot": any(map(_is_padded, parts)),
    }
    return next((words for words, is_broken in rules.items() if is_broken), "")


def _is_padded(part: str) -> bool:
    return part not in ("", ".") and part != part.strip().rstrip(".")


def check_inside(file: Path, roots: Sequence[Path]) -> Path:
    """Return a file's path with all links resolved, as those of the data roots have to be; it need not be there.

    Raises:
        OutsideRootsError: If it lies in none of them.
    """
    try:
        resolved = file.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a NUL
        raise OutsideRootsError from None
    if not any(resolved.is_relative_to(root) for root in roots):
        raise OutsideRootsError
    return resolved


def confine_path(file: Path) -> Path:
    """Return a path as it is or, where MLMETA_DATA_ROOT is set, resolved.

    Raises:
        OutsideRootsError: If the variable is set and the path leads out of the data roots.
    """
    roots = read_roots()
    return file if roots is None else check_inside(file, roots)


def open_descriptor(path: str | Path, flags: int) -> int:
    """Open a file or folder, as `os.open` does; where MLMETA_DATA_ROOT is set, only below a data root.

    It may stand as the ``opener`` of `open`.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        OutsideRootsError: If it lies outside the data roots, or a part of it became a link meanwhile.
        OSError: If it cannot be opened.
    """
    roots = read_roots()
    if roots is None:
        return os.open(path, flags)
    resolved = check_inside(Path(path), roots)
    if not _HAS_DIR_FD:
        return os.open(resolved, flags)
    root = next(root for root in roots if resolved.is_relative_to(root))
    return _open_below(root, PurePosixPath(resolved.relative_to(root)).parts, flags)


def _open_below(root: Path, parts: Sequence[str], flags: int) -> int:
    """Open what lies below a folder step by step; a resolved path has no link, so one that is met was just made."""
    if not parts:
        return os.open(root, flags)
    folder_flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, folder_flags, dir_fd=here)
            os.close(here)
            here = below
        return os.open(parts[-1], flags | os.O_NOFOLLOW, dir_fd=here)
    except OSError as error:
        # Of a link the system says ELOOP or, where a folder is asked for, ENOTDIR.
        raise (OutsideRootsError() if error.errno in (errno.ELOOP, errno.ENOTDIR) else error) from None
    finally:
        os.close(here)


def open_confined(file: Path) -> BinaryIO:
    """Open a regular file for reading: a pipe would wait for a writer, and some devices never end.

    Raises:
        OutsideRootsError: If it lies outside the data roots where MLMETA_DATA_ROOT is set.
        OSError: If it cannot be opened, or is of another kind.
    """
    path = confine_path(file)
    _check_regular(path.stat())
    # The name may mean something else by now.
    stream = open(path, "rb", opener=lambda name, flags: open_descriptor(name, flags | getattr(os, "O_NONBLOCK", 0)))
    try:
        _check_regular(os.fstat(stream.fileno()))
    except OSError:
        stream.close()
        raise
    return stream


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")


def list_folder(folder: Path) -> list[tuple[str, bool]]:
    """Return the names in a folder in order, each with whether it is a folder or a link to one.

    Raises:
        OutsideRootsError: If the folder lies outside the data roots.
        OSError: If it cannot be read.
    """
    if read_roots() is None or not _HAS_DIR_FD:
        with os.scandir(confine_path(folder)) as entries:
            return sorted((entry.name, _is_folder(entry)) for entry in entries)
    try:
        descriptor = open_descriptor(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OutsideRootsError:
        raise OutsideRootsError(f"the folder {folder.name}") from None
    try:
        with os.scandir(descriptor) as entries:
            return sorted((entry.name, _is_folder(entry)) for entry in entries)
    finally:
        os.close(descriptor)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself is nothing.
        return False


@contextmanager
def confined_copy(file: Path) -> Iterator[Path]:
    """Give a file's path or, where MLMETA_DATA_ROOT is set, a copy of it, made through a descriptor below a root.

    This is for libraries that open a file by its name more than once; what they read is what was checked.

    Raises:
        BadInputError: If it lies outside the data roots, or cannot be read.
    """
    if read_roots() is None:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="mlmeta-") as folder:
        copy = Path(folder, file.name)
        try:
            with open_confined(file) as source, copy.open("xb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
        except OSError as error:
            raise BadInputError(f"{file.name}: cannot be read: {error.strerror or error}") from None
        yield copy


def check_tree(folder: Path) -> None:
    """Check, where MLMETA_DATA_ROOT is set, that no link below a folder leads out of the data roots.

    This is for readers that open files themselves.

    Raises:
        OutsideRootsError: If one does, or the folder itself lies outside.
        OSError: If it cannot be read.
    """
    roots = read_roots()
    if roots is None:
        return
    for path, folders, names in os.walk(check_inside(folder, roots)):
        for link in filter(Path.is_symlink, (Path(path, name) for name in (*folders, *names))):
            try:
                check_inside(link, roots)
            except OutsideRootsError:
                raise OutsideRootsError(f"the link {link.name}") from None
