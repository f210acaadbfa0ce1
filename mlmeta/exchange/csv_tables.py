"""Attempts from a CSV table, such as an export of Weights & Biases: one row an attempt, columns mapped to fields.

A field is one of the Attempt document (``name``, ``accuracy``, ``training_commands.optimizer.lr``) or ``params.…``,
``metrics.…``, ``tags.…``. A row whose columns do not make whole train commands becomes a document with params and
metrics: just what the columns say, nothing that mlmeta would have taken by default.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlmeta.commands.params import flatten_params, make_lists
from mlmeta.commands.parsing import parse_json
from mlmeta.errors import BadInputError, CommandsError, Fault, MlmetaError, nearest_name, shorten, suggest
from mlmeta.status import Status

# The columns that are known by their name, in any case.
_COLUMNS = {
    "name": "name", "model_name": "name", "state": "status", "status": "status", "runtime": "seconds",
    "seconds": "seconds", "duration_s": "seconds", "created": "started", "started": "started", "ended": "ended",
    "accuracy": "accuracy", "id": "id", "run_id": "id", "n_epoch": "n_epoch", "n_parameters": "n_parameters",
    "task": "task.name", "training_losses": "training_losses", "test_losses": "test_losses",
    "test_accuracies": "test_accuracies", "val_losses": "val_losses", "val_accuracies": "val_accuracies",
}  # fmt: skip
_METRICS = (
    "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "macro_f1", "top5_accuracy",
    "epoch_seconds", "pictures_per_second",
)  # fmt: skip
# What a table of Weights & Biases says of a run beside its config and its summary.
_WANDB_FACTS = ("Notes", "User", "Tags", "Sweep", "Group", "Job Type", "Hostname", "Description", "Commit", "GitHub")
_STATES = {
    "finished": Status.COMPLETE, "success": Status.COMPLETE, "completed": Status.COMPLETE,
    "crashed": Status.FAILED, "killed": Status.INTERRUPTED, "preempted": Status.INTERRUPTED,
    "preempting": Status.INTERRUPTED, "running": Status.TRAINING, "pending": Status.INCOMPLETE,
} | {status.casefold(): status for status in Status}  # fmt: skip
# Fewer commands would be filled up with mlmeta's defaults, with which the attempt was not trained.
_WHOLE = {"model", "optimizer", "batch_size", "n_epoch"}
_OPEN = ("training_commands", "params", "metrics", "tags")
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

Row = dict[str, Any]


def parse_mapping(texts: Iterable[str]) -> dict[str, str]:
    """Read mappings ``column=field``; an empty field leaves the column out.

    Raises:
        BadInputError: If one is not of that form, or names no field; names the nearest.
    """
    mapping = {}
    for text in texts:
        column, sign, field = text.rpartition("=")
        if not sign or not column:
            raise BadInputError(f"a mapping is written column=field; got {shorten(text)}")
        mapping[column] = field.strip()
    check_mapping(mapping)
    return mapping


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Check that every column is mapped to a field.

    Raises:
        BadInputError: If one is not; names the nearest field.
    """
    for column, field in mapping.items():
        if field and field not in _READERS and not (field.startswith(tuple(f"{name}." for name in _OPEN))):
            hint = suggest(field, [*_READERS, *(f"{name}.…" for name in _OPEN)])
            open_fields = ", ".join(f"{name}.<name>" for name in _OPEN)
            raise BadInputError(
                f"the column {shorten(column)} is mapped to {shorten(field)}, which is no field; fields are "
                f"{', '.join(_READERS)}, {open_fields}{hint}"
            )


def read_table(
    lines: Iterable[str], *, source: str, stem: str, mapping: Mapping[str, str] | None = None
) -> Iterator[tuple[int, Row | MlmetaError]]:
    """Yield the attempts of a table.

    Args:
        lines: The lines of a CSV file, its header first; separated by comma, semicolon or tab.
        source: The name of the table, for error text.
        stem: What attempts without a name are named after.
        mapping: Column to field; columns that it does not name go by their own name, or are kept as params.

    Yields:
        The line on which the row begins and its document, or what is wrong with it; line 0 is the table itself.
    """
    lines = iter(lines)
    header_line = next(lines, "")
    delimiter = max(",;\t", key=header_line.count)
    try:
        columns = next(csv.reader([header_line], delimiter=delimiter, strict=True), [])
        if not columns:
            raise BadInputError("its first line, the header, is empty")
        fields = map_columns(columns, mapping or {})
    except (csv.Error, MlmetaError) as error:
        yield 0, BadInputError(f"{source}: {error}")
        return
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = rows.line_num + 2
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, BadInputError(f"{source}, line {line}: is not CSV: {error}")
            continue
        if cells:
            yield line, _read_row(cells, columns, fields, source=f"{source}, line {line}", name=f"{stem}-{line}")


def map_columns(columns: Sequence[str], mapping: Mapping[str, str]) -> list[str]:
    """Return the field of every column; empty for one that is left out.

    Raises:
        BadInputError: If the mapping names a column that is not there, or two columns go to one field.
    """
    check_mapping(mapping)
    for column in mapping:
        if column not in columns:
            hint = suggest(column, columns, f"; there are {shorten(list(columns), 300)}")
            raise BadInputError(f"the column {shorten(column)} of the mapping is not in the table{hint}")
    is_wandb = {"Name", "State"} <= set(columns) and bool({"Created", "Runtime"} & set(columns))
    fields: list[str] = []
    taken = {field for field in mapping.values() if field}
    for number, column in enumerate(columns, start=1):
        field = mapping.get(column)
        if field is None:
            field = _default_field(column or f"column {number}", is_wandb=is_wandb)
            field = field if field not in taken else f"params.{column}"
        if field and field in fields:
            other = columns[fields.index(field)]
            raise BadInputError(f"the columns {shorten(other)} and {shorten(column)} both go to {field}")
        fields.append(field)
        taken.add(field)
    return fields


def _default_field(column: str, *, is_wandb: bool) -> str:
    if is_wandb and column in _WANDB_FACTS:
        return f"tags.{column}"
    if column in _METRICS or (is_wandb and column.startswith("_")):
        return f"metrics.{column}"
    if column.startswith("tags."):
        return column
    return _COLUMNS.get(column.casefold(), f"params.{column}")


def _read_row(cells: list[str], columns: list[str], fields: list[str], *, source: str, name: str) -> Row | MlmetaError:
    if len(cells) != len(columns):
        return BadInputError(f"{source}: has {len(cells)} fields; the header has {len(columns)}")
    row: Row = {"name": name}
    faults = []
    for cell, column, field in zip(cells, columns, fields, strict=True):
        if not field or not cell.strip():
            continue
        try:
            cell.encode()
            read = _READERS.get(field) or _READERS_BELOW[field.partition(".")[0]]
            _put(row, field, read(cell.strip()))
        except UnicodeEncodeError:
            faults.append(Fault(column, "is not UTF-8 text"))
        except ValueError as error:
            faults.append(Fault(column, str(error), shorten(cell)))
    if faults:
        return CommandsError(faults, source=source)
    return _settle(row)


def _put(row: Row, field: str, value: Any) -> None:
    head, _, rest = field.partition(".")
    if not rest:
        row[head] = value
    elif head == "training_commands":
        *above, last = rest.split(".")
        place = row.setdefault(head, {})
        for key in above:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ValueError(f"another column gives {key} as a whole")
        place[last] = value
    elif value is not None:
        row.setdefault(head, {})[rest] = value


def _settle(row: Row) -> Row:
    """Return a row's document: with train commands where they are whole, else with params in their place."""
    commands = row.pop("training_commands", None)
    commands = {} if commands is None else make_lists(commands)
    if isinstance(commands, dict) and not commands.keys() >= _WHOLE:
        row["params"] = flatten_params(commands) | row.get("params", {})
        row.setdefault("metrics", {})
        return row
    if isinstance(commands, dict):
        commands = {"model_name": row["name"], **commands}
    return {**row, "training_commands": commands}


def _read_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    # What is not finite has no place in JSON.
    return number if abs(number) < float("inf") else None


def _read_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}(\.0*)?", text, re.ASCII):
        raise ValueError("must be a whole number")
    return int(text.partition(".")[0])


def _read_seconds(text: str) -> float | None:
    """Return a duration: a number of seconds, or ``1h 5m 3s``, or ``1:05:03``."""
    if re.fullmatch(r"(\d{1,9}\s*[dhms]\s*)+", text, re.ASCII):
        return float(sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)\s*([dhms])", text)))
    if clock := re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d+)?)", text, re.ASCII):
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    return _read_number(text)


def _read_moment(text: str) -> Any:
    return _read_number(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else text


def _read_status(text: str) -> str:
    state = _STATES.get(text.casefold())
    if state is None:
        near = nearest_name(text, _STATES)
        raise ValueError(f"is no state of an attempt{f' (perhaps {near!r}?)' if near else ''}")
    return str(state)


def _read_cell(text: str) -> Any:
    """Return a cell of the commands: JSON where it is JSON, else the text; 32.0 is the whole number 32."""
    try:
        value = parse_json(text, source="the cell")
    except BadInputError:
        return text
    is_whole = isinstance(value, float) and re.fullmatch(r"-?\d{1,15}\.0+", text, re.ASCII)
    return int(value) if is_whole else value


def _read_json(text: str) -> Any:
    try:
        return parse_json(text, source="the cell")
    except BadInputError as error:
        raise ValueError(f"must be JSON: {error}") from None


_READERS: dict[str, Callable[[str], Any]] = {
    "name": str, "id": str, "status": _read_status, "seconds": _read_seconds, "started": _read_moment,
    "ended": _read_moment, "accuracy": _read_number, "n_epoch": _read_count, "n_parameters": _read_count,
    "limit": _read_count, "task.name": str, "task.n_train": _read_count, "task.n_test": _read_count,
    "task.label_names": _read_json, "training_losses": _read_json, "test_losses": _read_json,
    "test_accuracies": _read_json, "val_losses": _read_json, "val_accuracies": _read_json,
    "training_commands": _read_json, "testing_commands": _read_json,
}  # fmt: skip
_READERS_BELOW: dict[str, Callable[[str], Any]] = {
    "training_commands": _read_cell, "params": str, "metrics": _read_number, "tags": str,
}  # fmt: skip
