"""Pictures listed in a table: CSV or Parquet with the columns path, label and, if wanted, split and id."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlmeta.data_roots import OutsideRootsError, confine_path, list_folder, open_confined
from mlmeta.errors import PicturesError, nearest_name, shorten
from mlmeta.picture_files import PARTS, Found, Part, file_picture

_COLUMNS = ("path", "label", "split", "id")
_Row = Mapping[str, Any]


def read_manifest(file: Path) -> list[Found]:
    """Return the pictures that a manifest lists; their paths are relative to its folder.

    A picture's id is its ``id`` or else its ``path``. Rows are counted from 1, below the header.

    Args:
        file: A Parquet table if its suffix is .parquet or .pq, else a CSV table in UTF-8.

    Raises:
        PicturesError: If the file is missing, unreadable or empty, lacks a column, a row is faulty, or pictures
            are missing; names the first row.
    """
    try:
        if not confine_path(file).is_file():
            raise PicturesError(_explain_no_file(file))
    except OutsideRootsError as error:
        raise PicturesError(f"data.path: {file} cannot be read: {error}") from None
    columns, rows = _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_csv(file)
    _check_columns(file, columns)
    if not rows:
        raise PicturesError(f"data.path: {file} lists no picture")
    found = [_to_picture(row, number, file) for number, row in enumerate(rows, start=1)]
    _check_repeated([os.path.normpath(str(row["path"])) for row in rows], "path", file)
    _check_repeated([picture.id for picture in found], "id", file)
    _check_files(rows, file)
    return found


def _explain_no_file(file: Path) -> str:
    if file.is_dir():
        return f'data.path: {file} is a folder, not a table (pictures in folders are {{"source": "folder"}})'
    try:
        siblings = [name for name, is_folder in list_folder(file.parent) if not is_folder]
    except OSError:
        siblings = []
    near = nearest_name(file.name, siblings)
    return f"data.path: there is no manifest {file}" + (f". Did you mean {near!r}?" if near else "")


def _read_csv(file: Path) -> tuple[Sequence[str], Sequence[_Row]]:
    try:
        with open_confined(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            return list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PicturesError(f"data.path: {file} is not a CSV table in UTF-8: {error}") from None


def _read_parquet(file: Path) -> tuple[Sequence[str], Sequence[_Row]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with open_confined(file) as stream, ParquetFile(stream) as table:
            columns = table.schema_arrow.names
            rows: list[_Row] = table.read(columns=[name for name in _COLUMNS if name in columns]).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PicturesError(f"data.path: {file} is not a Parquet table: {shorten(str(error), 300)}") from None
    return columns, rows


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    for name in ("path", "label"):
        if name not in columns:
            near = nearest_name(name, [column for column in columns if column not in _COLUMNS])
            hint = f" (is {near!r} meant to be it?)" if near else ""
            raise PicturesError(f"data.path: {file} has no column {name!r}{hint}; it may have {', '.join(_COLUMNS)}")


def _to_picture(row: _Row, number: int, file: Path) -> Found:
    path, label, picture_id = (_read_text(row.get(name)) for name in ("path", "label", "id"))
    if not path or not label:
        raise PicturesError(f"data.path: row {number} of {file} has no {'label' if path else 'path'}")
    part = _read_part(_read_text(row.get("split")), number, file)
    return file_picture(_locate(row, file), id=picture_id or path, label=label, part=part)


def _read_text(value: object) -> str:
    """Return a cell's text without spaces around it; nothing and not-a-number are empty."""
    return "" if value is None or value != value else str(value).strip()


def _locate(row: _Row, file: Path) -> Path:
    return file.parent / _read_text(row["path"])


def _read_part(split: str, number: int, file: Path) -> Part | None:
    if split and split.lower() not in PARTS:
        raise PicturesError(f"data.path: row {number} of {file} has the split {split!r}; allowed: {', '.join(PARTS)}")
    return PARTS[split.lower()] if split else None


def _check_repeated(values: Sequence[str], column: str, file: Path) -> None:
    rows: dict[str, int] = {}
    for number, value in enumerate(values, start=1):
        if value in rows:
            raise PicturesError(
                f"data.path: {file} lists the {column} {value!r} twice, in the rows {rows[value]} and {number}"
            )
        rows[value] = number


def _check_files(rows: Sequence[_Row], file: Path) -> None:
    missing = [number for number, row in enumerate(rows, start=1) if _is_missing(_locate(row, file))]
    if missing:
        first = _locate(rows[missing[0] - 1], file)
        raise PicturesError(
            f"data.path: {len(missing)} of the {len(rows)} pictures of {file} are not there, the first in row "
            f"{missing[0]}: {first}"
        )


def _is_missing(picture: Path) -> bool:
    try:
        return not confine_path(picture).is_file()
    except OutsideRootsError:
        # It is left out as a picture that cannot be read, be it there or not.
        return False
