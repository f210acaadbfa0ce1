"""Pictures listed in a table: CSV or Parquet with the columns path, label and, if wanted, split and id."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlmeta.errors import PicturesError, nearest_name
from mlmeta.pictures import PARTS, Found, Part, file_picture

_COLUMNS = ("path", "label", "split", "id")


def read_manifest(file: Path) -> list[Found]:
    """Return the pictures that a manifest lists; their paths are relative to its folder.

    Raises:
        PicturesError: If the file is missing or unreadable, lacks a column, or a row is faulty; names the row.
    """
    if not file.is_file():
        raise PicturesError(f"data.path: there is no manifest {file}")
    rows = _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_csv(file)
    if rows:
        _check_columns(file, list(rows[0]))
    found = [_to_picture(row, number, file) for number, row in enumerate(rows, start=1)]
    _check_ids(found, file)
    return found


def _read_csv(file: Path) -> list[Mapping[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PicturesError(f"data.path: {file} is not a CSV table: {error}") from None


def _read_parquet(file: Path) -> list[Mapping[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PicturesError(f"data.path: reading {file} needs pyarrow: pip install 'mlmeta[parquet]'") from None
    try:
        rows: list[Mapping[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise PicturesError(f"data.path: {file} is not a Parquet table: {error}") from None
    return rows


def _check_columns(file: Path, columns: list[str]) -> None:
    for name in ("path", "label"):
        if name not in columns:
            near = nearest_name(name, [str(column) for column in columns])
            hint = f" (did you mean {near!r} to be it?)" if near else ""
            raise PicturesError(f"data.path: {file} has no column {name!r}{hint}; it may have {', '.join(_COLUMNS)}")


def _to_picture(row: Mapping[str, Any], number: int, file: Path) -> Found:
    path, label = row.get("path"), row.get("label")
    if not path or label is None or not str(label).strip():
        raise PicturesError(f"data.path: row {number} of {file} lacks a path or a label")
    picture_id = row.get("id")
    return file_picture(
        file.parent / str(path),
        id=str(path) if picture_id in (None, "") else str(picture_id),
        label=str(label).strip(),
        part=_read_part(row.get("split"), number, file),
    )


def _read_part(split: object, number: int, file: Path) -> Part | None:
    if split in (None, ""):
        return None
    part = PARTS.get(str(split).strip().lower())
    if part is None:
        raise PicturesError(f"data.path: row {number} of {file} has the split {split!r}; allowed: {', '.join(PARTS)}")
    return part


def _check_ids(found: list[Found], file: Path) -> None:
    if len({picture.id for picture in found}) == len(found):
        return
    seen: set[str] = set()
    repeated = next(p.id for p in found if p.id in seen or seen.add(p.id))  # type: ignore[func-returns-value]
    raise PicturesError(f"data.path: {file} lists the picture {repeated!r} twice")
