"""Pictures in folders: ``<root>/<label>/…`` or ``<root>/train|test|validation/<label>/…``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mlmeta.commands.documents import strip_operators
from mlmeta.commands.validation import CONTROL
from mlmeta.data_roots import confine_path, list_folder
from mlmeta.errors import PicturesError, nearest_name
from mlmeta.picture_files import PARTS, SUFFIXES, Found, Part, explain_missing, file_picture


def read_folder(root: Path, label_names: Sequence[str] = ()) -> list[Found]:
    """Return the pictures of ``<root>/<label>/…`` or ``<root>/train|test|validation/<label>/…``.

    Hidden files and folders, files without a picture's suffix, and links that lead back to the folder are left out.
    What has a picture's suffix and is no file (a pipe, a link to nowhere) is given as a picture that cannot be read.

    Args:
        root: The folder.
        label_names: The wanted labels; empty for every folder.

    Raises:
        PicturesError: If there is no such folder, it cannot be read, or a wanted label has no folder.
    """
    try:
        if not confine_path(root).is_dir():
            raise PicturesError(_explain_no_folder(root))
        folders = _subfolders(root)
        if not _has_parts(folders, label_names):
            return list(_read_labels(folders, label_names, part=None, root=root))
        parts = [(PARTS[name.lower()], folder) for name, folder in folders.items() if name.lower() in PARTS]
        inner = {name for part, folder in parts if part == "train" for name in _subfolders(folder)}
        _check_label_folders(label_names, inner, f"{root} (train)")
        return [
            picture for part, folder in parts
            for picture in _read_labels(_subfolders(folder), label_names, part=part, root=root)
        ]  # fmt: skip
    except OSError as error:
        raise PicturesError(f"data.path: {root} cannot be read: {error}") from None


def _explain_no_folder(root: Path) -> str:
    if root.exists():
        return f'data.path: {root} is a file, not a folder (a table of pictures is {{"source": "manifest"}})'
    try:
        siblings = [name for name, is_folder in list_folder(root.parent) if is_folder]
    except OSError:
        siblings = []
    near = nearest_name(root.name, siblings)
    return f"data.path: there is no folder {root}" + (f". Did you mean {near!r}?" if near else "")


def _subfolders(root: Path) -> dict[str, Path]:
    names = (name for name, is_folder in list_folder(root) if is_folder and not name.startswith("."))
    return {name: root / name for name in names if not _leads_back(root / name, root)}


def _leads_back(folder: Path, root: Path) -> bool:
    """Return whether a folder is a link to the one it lies in, or above: it would hold all other labels' pictures."""
    return folder.is_symlink() and root.resolve().is_relative_to(folder.resolve())


def _has_parts(folders: Mapping[str, Path], label_names: Sequence[str]) -> bool:
    """Return whether the folders are parts (train, test) and not labels, which may bear the same names."""
    train = [folder for name, folder in folders.items() if PARTS.get(name.lower()) == "train"]
    inner = {name for folder in train for name in _subfolders(folder)}
    if label_names and not _without_folder(label_names, inner):
        return True
    if not inner or (label_names and not _without_folder(label_names, folders)):
        return False
    holds_pictures = any(
        Path(name).suffix.lower() in SUFFIXES and Path(folder, name).is_file()
        for folder in train for name, is_folder in list_folder(folder) if not is_folder
    )  # fmt: skip
    return not holds_pictures or all(name.lower() in PARTS for name in folders)


def _without_folder(label_names: Sequence[str], folders: Iterable[str]) -> list[str]:
    there = {name for folder in folders for name in (folder, strip_operators(folder))}
    return [label for label in label_names if label not in there and strip_operators(label) not in there]


def _check_label_folders(label_names: Sequence[str], folders: Iterable[str], where: object) -> None:
    missing = _without_folder(label_names, folders)
    if missing:
        lines = "; ".join(explain_missing(label, folders) for label in missing[:5])
        raise PicturesError(f"label_names: {len(missing)} label(s) without a folder in {where}: {lines}")


def _read_labels(
    folders: Mapping[str, Path], label_names: Sequence[str], *, part: Part | None, root: Path
) -> Iterator[Found]:
    if part is None:
        _check_label_folders(label_names, folders, root)
    wanted = {strip_operators(label) for label in label_names}
    for label, folder in folders.items():
        if wanted and strip_operators(label) not in wanted:
            continue
        for path in _picture_files(folder):
            picture_id = _printable(path.relative_to(root).as_posix())
            yield file_picture(path, id=picture_id, label=_printable(label), part=part)


def _printable(name: str) -> str:
    """Return a file's name on one line, as UTF-8 can write it, whatever bytes it has on disk."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _picture_files(folder: Path) -> Iterator[Path]:
    """Yield the pictures in a folder, then those in the folders below; links to other folders are not followed."""
    folders = [folder]
    while folders:
        here = folders.pop()
        entries = [(here / name, is_folder) for name, is_folder in list_folder(here) if not name.startswith(".")]
        yield from (path for path, is_folder in entries if not is_folder and path.suffix.lower() in SUFFIXES)
        folders += [path for path, is_folder in reversed(entries) if is_folder and not path.is_symlink()]
