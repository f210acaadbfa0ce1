"""Pictures in folders: ``<root>/<label>/…``, or ``<root>/train|test|validation/<label>/…``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mlmeta.commands.documents import strip_operators
from mlmeta.commands.validation import CONTROL
from mlmeta.data.account import Item, Reason, name_some
from mlmeta.data.roots import confine_path, list_folder
from mlmeta.data.sources import (
    Listing,
    explain_absence,
    file_picture,
    is_picture_name,
    judge_file,
    make_grouping,
    read_part,
    refuse_labels,
    warn_ungrouped,
)
from mlmeta.data.splits import Part
from mlmeta.errors import PicturesError

# What systems put into every folder.
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def read_folder(root: Path, label_names: Sequence[str] = (), *, group: str | None = None) -> Listing:
    """Return the pictures of ``<root>/<label>/…`` or ``<root>/train|test|validation/<label>/…``.

    Hidden files and folders, files without a picture's suffix, and links to folders below a label are left out. What
    has a picture's suffix and is no file (a pipe, a link to nowhere) is given as a picture that cannot be read.

    Args:
        root: The folder.
        label_names: The wanted labels; empty for every folder.
        group: A pattern for the files' names, see `mlmeta.data.sources.make_grouping`.

    Raises:
        PicturesError: If there is no such folder, it cannot be read, a wanted label has no folder, or its folders
            could be labels as well as parts.
    """
    reader = _Reader(root, label_names, group)
    try:
        if not confine_path(root).is_dir():
            raise explain_absence(root, "folder")
        reader.read()
    except OSError as error:
        raise PicturesError(f"data.path: {root} cannot be read: {error}") from None
    reader.listing.warnings += warn_ungrouped(reader.listing.found, group)
    return reader.listing


class _Reader:
    def __init__(self, root: Path, label_names: Sequence[str], group: str | None) -> None:
        self.root = root
        self.label_names = label_names
        self.wanted = {strip_operators(label) for label in label_names}
        self.listing = Listing()
        self.find_group = make_grouping(group)

    def read(self) -> None:
        folders = self._enter(self.root)
        if not has_parts(folders, self.label_names):
            check_label_folders(self.label_names, folders, self.root)
            if not self.label_names:
                self._ask_about_parts(folders)
            self._read_labels(folders, None)
            return
        parts = {name: part for name in folders if (part := read_part(name))}
        inner = {label for name, part in parts.items() if part == "train" for label in subfolders(folders[name])}
        check_label_folders(self.label_names, inner, f"{self.root} (train)")
        for name, folder in folders.items():
            part = parts.get(name)
            if part is None:
                detail = f"it has {_count_pictures(folder):,} pictures; parts are train, validation and test"
                self._leave(folder, "folder", Reason.NO_PART, detail=detail)
            else:
                self.listing.items.append(Item("folder", self._name(folder), part=part))
                self._read_labels(self._enter(folder), part)

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.root).as_posix())

    def _leave(
        self, path: Path, kind: Literal["file", "folder"], reason: Reason, label: str = "", detail: str = ""
    ) -> None:
        self.listing.items.append(Item(kind, self._name(path), reason, label, detail=detail))

    def _enter(self, folder: Path) -> dict[str, Path]:
        """Return the folders in one that holds labels or parts; its files are left out, as none has a label."""
        inside = {}
        for name, is_folder in list_folder(folder):
            path = folder / name
            if _is_hidden(name):
                self._leave(path, "folder" if is_folder else "file", Reason.HIDDEN)
            elif not is_folder and is_picture_name(name):
                self._leave(path, "file", Reason.NO_LABEL)
            elif not is_folder:
                item = judge_file(path, self._name(path))
                self.listing.items.append(replace(item, bad=False))
            elif leads_back(path, folder):
                self._leave(path, "folder", Reason.LINK)
            else:
                inside[name] = path
        return inside

    def _ask_about_parts(self, folders: Mapping[str, Path]) -> None:
        inner = [set(subfolders(folder)) for folder in folders.values()]
        if len(inner) < 2 or len(inner[0]) < 2 or any(names != inner[0] for names in inner):
            return
        outer, names = name_some(list(folders)), name_some(sorted(inner[0]))
        raise PicturesError(
            f"data.path: all folders of {self.root} ({outer}) hold the same sub-folders ({names}): "
            "which are the labels? Call the outer ones train, validation and test if they are parts, move pictures up "
            "if the inner ones mean nothing, or name the labels in label_names"
        )

    def _read_labels(self, folders: Mapping[str, Path], part: Part | None) -> None:
        for name, folder in folders.items():
            label = printable(name)
            if self.wanted and strip_operators(name) not in self.wanted:
                self._leave(folder, "folder", Reason.OTHER_LABEL, label)
            else:
                self._read_label(folder, label, part)

    def _read_label(self, folder: Path, label: str, part: Part | None) -> None:
        """Take the pictures in a folder, then those in the folders below; links to other folders are not followed."""
        folders = [folder]
        while folders:
            here = folders.pop()
            self.listing.items.append(Item("folder", self._name(here), label=label, part=part or ""))
            below = []
            for name, is_folder in list_folder(here):
                path = here / name
                if _is_hidden(name):
                    self._leave(path, "folder" if is_folder else "file", Reason.HIDDEN, label)
                elif is_folder and path.is_symlink():
                    self._leave(path, "folder", Reason.LINK, label)
                elif is_folder:
                    below.append(path)
                elif is_picture_name(name):
                    group = self.find_group(name)
                    self.listing.found.append(
                        file_picture(path, id=self._name(path), label=label, part=part, group=group)
                    )
                else:
                    self.listing.items.append(judge_file(path, self._name(path), label))
            folders += reversed(below)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def subfolders(root: Path) -> dict[str, Path]:
    """Return the folders in a folder that may be labels or parts."""
    names = (name for name, is_folder in list_folder(root) if is_folder and not _is_hidden(name))
    return {name: root / name for name in names if not leads_back(root / name, root)}


def leads_back(folder: Path, root: Path) -> bool:
    """Return whether a folder is a link to the one it lies in, or above: it would hold all other labels' pictures."""
    return folder.is_symlink() and root.resolve().is_relative_to(folder.resolve())


def _count_pictures(folder: Path) -> int:
    entries = list_folder(folder)
    below = sum(
        _count_pictures(folder / name) for name, is_folder in entries if is_folder and not (folder / name).is_symlink()
    )
    return below + sum(is_picture_name(name) for name, is_folder in entries if not is_folder)


def has_parts(folders: Mapping[str, Path], label_names: Sequence[str]) -> bool:
    """Return whether the folders are parts (train, test) and not labels, which may bear the same names."""
    parts = {name: read_part(name) for name in folders}
    if folders and all(parts.values()) and "train" not in parts.values() and not label_names:
        # A set to test on, with nothing beside it.
        return all(subfolders(folder) and not _holds_pictures(folder) for folder in folders.values())
    train = [folder for name, folder in folders.items() if parts[name] == "train"]
    inner = {name for folder in train for name in subfolders(folder)}
    if label_names and not without_folder(label_names, inner):
        return True
    if not inner or (label_names and not without_folder(label_names, folders)):
        return False
    return not any(map(_holds_pictures, train)) or all(parts.values())


def _holds_pictures(folder: Path) -> bool:
    return any(
        is_picture_name(name) and (folder / name).is_file() for name, is_folder in list_folder(folder) if not is_folder
    )


def without_folder(label_names: Sequence[str], folders: Iterable[str]) -> list[str]:
    """Return the labels that no folder is named for, with or without query operators."""
    there = {name for folder in folders for name in (folder, strip_operators(folder))}
    return [label for label in label_names if label not in there and strip_operators(label) not in there]


def check_label_folders(label_names: Sequence[str], folders: Iterable[str], where: object) -> None:
    """Refuse labels without a folder.

    Raises:
        PicturesError: With the nearest names.
    """
    missing = without_folder(label_names, folders)
    if missing:
        raise refuse_labels(missing, folders, lack=f"a folder in {where}")


def printable(name: str) -> str:
    """Return a file's name on one line, as UTF-8 can write it, whatever bytes it has on disk."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
