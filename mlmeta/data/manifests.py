"""Pictures listed in a table: CSV or Parquet with the columns path, label and, if wanted, split and id."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmeta.data.account import Item, Rank, Reason, Warned, name_some
from mlmeta.data.roots import OutsideRootsError, confine_path, open_confined
from mlmeta.data.sources import (
    PARTS,
    Found,
    Listing,
    explain_absence,
    file_picture,
    make_grouping,
    read_part,
    warn_ungrouped,
)
from mlmeta.data.splits import Part
from mlmeta.errors import PicturesError, nearest_name, shorten, suggest

FIELDS = ("path", "label", "split", "id")
_SEPARATORS = ",;\t|"
_NAMED_SEPARATOR = re.compile(rf"sep=([{_SEPARATORS}])[\r\n]+", re.IGNORECASE)
# Columns that say a part by being true: ``is_valid`` of fastai.
_FLAG = re.compile(r"is[ _-]?([a-z]+)")
_TRUE, _FALSE = ("true", "1", "yes", "t"), ("false", "0", "no", "f")
# What columns of parts are called, beside split itself.
_SPLIT_NAMES = frozenset({"set", "subset", "partition", "fold", "phase", "usage", "part", "dataset", "stage"})
_Cells = Sequence[Any]


@dataclass(frozen=True)
class _Table:
    """A table as it was read: its columns, and each row's number (from 1, below the header) with its cells."""

    columns: Sequence[str]
    rows: Sequence[tuple[int, _Cells]]
    blank: Sequence[int] = ()


def read_manifest(file: Path, *, columns: Mapping[Any, str | None] | None = None, group: str | None = None) -> Listing:
    """Return the pictures that a manifest lists; their paths are relative to its folder.

    It is a Parquet table if its suffix is .parquet or .pq, else a CSV table in UTF-8 (or, with its mark, UTF-16), whose
    cells commas, semicolons, tabs or bars divide. Columns are found without regard to case and blanks. A picture's id
    is its ``id`` or else its ``path``. Rows are counted from 1, below the header; empty ones are left out.

    Args:
        file: The table.
        columns: The column of a field (path, label, split, id) that has another name; None to read none for it.
        group: The column, or else a pattern for the files' names, that says which pictures belong together.

    Raises:
        PicturesError: If the file is missing, unreadable or empty, lacks a column, a row is faulty, or pictures
            are missing; names the first row.
    """
    try:
        if not confine_path(file).is_file():
            raise explain_absence(file, "manifest")
    except OutsideRootsError as error:
        raise PicturesError(f"data.path: {file} cannot be read: {error}") from None
    wanted = dict(columns or {})
    table = _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_csv(file, wanted)
    places = _find_columns(file, table.columns, wanted)
    group_place = _place_of(group, table.columns) if group is not None else None
    if not table.rows:
        raise PicturesError(f"data.path: {file} lists no picture")
    reader = _RowReader(file, table, places, group_place, group)
    found = [reader.read(number, cells) for number, cells in table.rows]
    paths = [reader.text(cells, "path") for _, cells in table.rows]
    numbers = [number for number, _ in table.rows]
    _check_repeated([os.path.normpath(path) for path in paths], numbers, "path", file)
    _check_repeated([picture.id for picture in found], numbers, "id", file)
    missing = [n for n, path in zip(numbers, paths, strict=True) if _is_missing(file.parent / path)]
    if missing:
        first = file.parent / paths[numbers.index(missing[0])]
        raise PicturesError(
            f"data.path: {len(missing)} of the {len(found)} pictures of {file} are not there, the first in row "
            f"{missing[0]}: {first}"
        )
    listing = Listing(found, list(_account_for(table, places, group_place)), kind="row")
    if "split" not in places and wanted.get("split", "") is not None:
        listing.warnings += _warn_of_splits(table)
    listing.warnings += warn_ungrouped(found, group)
    return listing


def _read_csv(file: Path, wanted: Mapping[str, str | None]) -> _Table:
    try:
        with open_confined(file) as stream:
            is_wide = stream.read(2) in (b"\xff\xfe", b"\xfe\xff")
            stream.seek(0)
            with io.TextIOWrapper(stream, encoding="utf-16" if is_wide else "utf-8-sig", newline="") as lines:
                text = lines.read().lstrip("\r\n")
        # Excel reads, and some programs write, a first line that names the separator.
        named = _NAMED_SEPARATOR.match(text)
        text = text[named.end() :] if named else text
        separator = named[1] if named else _find_separator(text.partition("\n")[0], wanted)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (UnicodeError, csv.Error, OSError) as error:
        raise PicturesError(f"data.path: {file} is not a CSV table in UTF-8: {error}") from None
    while rows and not any(map(str.strip, rows[0])):
        rows.pop(0)
    columns = rows[0] if rows else []
    kept, blank = [], []
    for number, cells in enumerate(rows[1:], start=1):
        if not any(map(str.strip, cells)):
            blank.append(number)
        elif len(cells) > len(columns):
            raise PicturesError(
                f"data.path: row {number} of {file} has {len(cells)} cells, and the header {len(columns)}: "
                f"{shorten(separator.join(cells), 120)!r}; a cell that holds a {separator!r} has to stand in quotes"
            )
        else:
            kept.append((number, [*cells, *[""] * (len(columns) - len(cells))]))
    return _Table(columns, kept, blank)


def _find_separator(header: str, wanted: Mapping[str, str | None]) -> str:
    """Return what divides the cells: by what the header has all columns that are needed, else the most columns."""
    columns = {separator: next(csv.reader([header], delimiter=separator), []) for separator in _SEPARATORS}
    needed = {_fold(wanted.get(name) or name) for name in ("path", "label")}
    return max(_SEPARATORS, key=lambda one: (needed <= set(map(_fold, columns[one])), len(columns[one])))


def _read_parquet(file: Path) -> _Table:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with open_confined(file) as stream, ParquetFile(stream) as table:
            read = table.read()
            columns = read.schema.names
            rows = list(zip(*(column.to_pylist() for column in map(_undo_codes, read.columns)), strict=True))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PicturesError(f"data.path: {file} is not a Parquet table: {shorten(str(error), 300)}") from None
    return _Table(columns, list(enumerate(rows, start=1)))


def _undo_codes(column: Any) -> Any:
    """Return a column with whole numbers as integers: a table with gaps keeps them as floats."""
    import pyarrow
    from pyarrow import compute

    if (
        pyarrow.types.is_floating(column.type)
        and not compute.any(compute.not_equal(column, compute.floor(column)), min_count=0).as_py()
    ):
        return compute.if_else(compute.is_nan(column), None, column).cast(pyarrow.int64(), safe=False)
    return column


def _fold(name: str) -> str:
    return "".join(str(name).split()).casefold()


def _place_of(name: str, columns: Sequence[str]) -> int | None:
    """Return where a column stands; one that is written exactly so comes before one that differs by case or blanks.

    Raises:
        PicturesError: If several differ from it by no more than that.
    """
    if name in columns:
        return list(columns).index(name)
    same = [place for place, column in enumerate(columns) if _fold(column) == _fold(name)]
    if len(same) > 1:
        raise PicturesError(f"data.path: the columns {name_some([columns[p] for p in same])} all read as {name!r}")
    return same[0] if same else None


def _find_columns(file: Path, columns: Sequence[str], wanted: Mapping[str, str | None]) -> dict[str, int]:
    """Return where each field's column stands; of those that may lack, only what is there."""
    there = f"; the columns are {', '.join(map(repr, columns[:20]))}" if columns else "; it is empty"
    places = {}
    for name in FIELDS:
        given = wanted.get(name, name)
        place = None if given is None else _place_of(given, columns)
        if place is not None:
            places[name] = place
        elif name in wanted and given is not None:
            raise PicturesError(f"data.columns.{name}: {file} has no column {given!r}{suggest(given, columns)}{there}")
        elif name in ("path", "label"):
            near = nearest_name(name, [column for column in columns if column not in FIELDS])
            hint = f" (is {near!r} meant to be it?)" if near else ""
            raise PicturesError(
                f"data.path: {file} has no column {name!r}{hint}{there}; it may have {', '.join(FIELDS)}, or say "
                f'{{"columns": {{"{name}": …}}}}'
            )
    return places


@dataclass(frozen=True)
class _RowReader:
    file: Path
    table: _Table
    places: Mapping[str, int]
    group_place: int | None
    group: str | None

    def text(self, cells: _Cells, name: str) -> str:
        """Return a field's cell, ``""`` where it has none."""
        return _read_text(cells[self.places[name]]) if name in self.places else ""

    def read(self, number: int, cells: _Cells) -> Found:
        """Return the picture of a row."""
        path, label, picture_id = (self.text(cells, name) for name in ("path", "label", "id"))
        if not path or not label:
            raise PicturesError(f"data.path: row {number} of {self.file} has no {'label' if path else 'path'}")
        if self.group_place is not None:
            group = _read_text(cells[self.group_place])
        else:
            group = make_grouping(self.group)(Path(path).name)
        part = self._read_split(number, self.text(cells, "split"))
        return file_picture(self.file.parent / path, id=picture_id or path, label=label, part=part, group=group)

    def _read_split(self, number: int, split: str) -> Part | None:
        if not split:
            return None
        part = read_part(split) or self._read_flag(split)
        if part is None:
            raise PicturesError(
                f"data.path: row {number} of {self.file} has the split {split!r}; allowed: {', '.join(PARTS)}"
            )
        return part

    def _read_flag(self, text: str) -> Part | None:
        """Return the part of ``true`` or ``false`` in a column such as is_valid."""
        part = _flagged_part(self.table.columns[self.places["split"]])
        if part and text.lower() in _TRUE:
            return part
        return "train" if part and text.lower() in _FALSE else None


def _flagged_part(column: str) -> Part | None:
    found = _FLAG.fullmatch(column.strip().casefold())
    return read_part(found[1]) if found else None


def _read_text(value: object) -> str:
    """Return a cell's text without spaces around it; nothing and not-a-number are empty."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return "" if value is None or value != value else str(value).strip()


def _account_for(table: _Table, places: Mapping[str, int], group_place: int | None) -> Iterator[Item]:
    used = {place: name for name, place in places.items()}
    if group_place is not None:
        used[group_place] = f"{used[group_place]}, group" if group_place in used else "group"
    for place, column in enumerate(table.columns):
        name = f"column {place + 1} ({column})" if list(table.columns).count(column) > 1 else column
        yield Item("column", name, None if place in used else Reason.COLUMN, detail=used.get(place, ""))
    for number in table.blank:
        yield Item("row", f"row {number}", Reason.EMPTY)


def _warn_of_splits(table: _Table) -> Iterator[Warned]:
    """Warn of columns that look like a split, and are not named so."""
    for place, column in enumerate(table.columns):
        values = {_read_text(cells[place]) for _, cells in table.rows} - {""}
        if not values or len(values) > 10:
            continue
        flag = _flagged_part(column) and {value.lower() for value in values} <= {*_TRUE, *_FALSE}
        named = _fold(column).replace("_", "") in _SPLIT_NAMES
        if flag or named or all(read_part(value) for value in values):
            yield Warned(
                Rank.LEAK, f"the column {column!r} looks like a split ({name_some(sorted(values), 3)}) and is not "
                f'read; {{"columns": {{"split": "{column}"}}}} in data reads it, null for its name silences this',
            )  # fmt: skip


def _check_repeated(values: Sequence[str], numbers: Sequence[int], column: str, file: Path) -> None:
    rows: dict[str, int] = {}
    for number, value in zip(numbers, values, strict=True):
        if value in rows:
            raise PicturesError(
                f"data.path: {file} lists the {column} {value!r} twice, in the rows {rows[value]} and {number}"
            )
        rows[value] = number


def _is_missing(picture: Path) -> bool:
    try:
        return not confine_path(picture).is_file()
    except OutsideRootsError:
        # It is left out as a picture that cannot be read, be it there or not.
        return False
