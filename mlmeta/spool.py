"""Where operations lie on disk that the tracking store has not got yet: one folder a run.

``operations.jsonl`` holds a header and one operation a line, ``files/`` what is to be uploaded, ``rejected.jsonl``
what the store refused. The header names the tracking store, since only that one may get them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlmeta.files import state_folder
from mlmeta.operations import Operation, parse_operation

_OPERATIONS = "operations.jsonl"
_REJECTED = "rejected.jsonl"
_FILES = "files"


@dataclass(frozen=True)
class Spool:
    """The folder of one run.

    Attributes:
        folder: May not be there yet.
        tracking_uri: The store that the operations are for.
    """

    folder: Path
    tracking_uri: str

    @property
    def run_id(self) -> str:
        """The run that the operations were recorded for."""
        return self.folder.name

    def stage(self, source: Path) -> str:
        """Take a folder of files in, linked where the disk allows it, and return its name here.

        Raises:
            OSError: If the disk is full.
        """
        files = self.folder / _FILES
        files.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(dir=files))
        shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)
        return f"{_FILES}/{target.name}"

    def write(self, operations: Sequence[Operation], rejected: Iterable[tuple[Operation, str]] = ()) -> None:
        """Keep operations in place of those that lie here, and what the store refused beside what it refused before.

        Where nothing is left, the folder goes.

        Raises:
            OSError: If the disk is full.
        """
        refused = [json.dumps({"error": error, **json.loads(operation.to_line())}) for operation, error in rejected]
        if refused:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / _REJECTED).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in refused)
        if operations:
            self._write_operations(operations)
        elif (self.folder / _REJECTED).exists():
            (self.folder / _OPERATIONS).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write_operations(self, operations: Sequence[Operation]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"version": 1, "tracking_uri": self.tracking_uri})
        part = self.folder / f"{_OPERATIONS}.part"
        with part.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in [header, *(operation.to_line() for operation in operations)])
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / _OPERATIONS)

    def read(self) -> list[Operation]:
        """Return the operations that lie here, in their order.

        Raises:
            OSError: If they cannot be read.
            ValueError: If they are not what `write` wrote.
        """
        lines = (self.folder / _OPERATIONS).read_text(encoding="utf-8").splitlines()
        return [parse_operation(line) for line in lines[1:]]


def open_spool(run_id: str, tracking_uri: str) -> Spool:
    """Return the folder of a run, there or not.

    Raises:
        OSError: If there is no state folder.
    """
    return Spool(state_folder() / "spool" / run_id, tracking_uri)


def list_spools() -> list[Spool]:
    """Return the runs that have operations to send, of all tracking stores, by run id."""
    found = []
    with contextlib.suppress(OSError):
        for file in sorted((state_folder() / "spool").glob(f"*/{_OPERATIONS}")):
            with contextlib.suppress(ValueError, KeyError, TypeError), file.open(encoding="utf-8") as lines:
                found.append(Spool(file.parent, str(json.loads(lines.readline())["tracking_uri"])))
    return found


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
