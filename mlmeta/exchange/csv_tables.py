"""Attempts from a CSV table, such as an export of Weights & Biases: one row an attempt, columns mapped to fields.

A field is one of the Attempt document (``name``, ``accuracy``, ``training_commands.optimizer.lr``) or ``params.…``,
``metrics.…``, ``tags.…``. A row whose columns do not make whole train commands becomes a document with params and
metrics: just what the columns say, nothing that mlmeta would have taken by default.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlmeta.commands.params import MAX_KEY, flatten_params, make_lists, may_move
from mlmeta.commands.parsing import parse_json
from mlmeta.errors import BadInputError, CommandsError, Fault, MlmetaError, nearest_name, shorten, suggest
from mlmeta.status import Status

# The columns that are known by their name, in any case, with blanks or underscores.
_COLUMNS = {
    "name": "name", "model_name": "name", "run_name": "name", "state": "status", "status": "status",
    "runtime": "seconds", "_runtime": "seconds", "seconds": "seconds", "duration_s": "seconds", "duration": "seconds",
    "created": "started", "created_at": "started", "started": "started",
    "start_time": "started", "ended": "ended", "end_time": "ended",
    "_timestamp": "ended", "accuracy": "accuracy", "id": "id", "run_id": "id", "n_epoch": "n_epoch",
    "n_parameters": "n_parameters", "task": "task.name", "training_losses": "training_losses",
    "test_losses": "test_losses", "test_accuracies": "test_accuracies", "val_losses": "val_losses",
    "val_accuracies": "val_accuracies",
    # Of MLflow's tables, and mlmeta's own runs in them.
    "artifact_uri": "", "experiment_id": "tags.experiment_id",
    "source_type": "tags.source_type", "source_name": "tags.source_name", "tags.mlflow.runname": "name",
    "tags.mlmeta.status": "status", "tags.mlmeta.task_name": "task.name", "tags.mlmeta.task_digest": "task.digest",
    "tags.mlmeta.task": "task.features", "tags.mlmeta.training_losses": "training_losses",
    # Of Weights & Biases: one cell holds them all.
    "config": "params", "summary": "metrics",
}  # fmt: skip
_PREFIXES = {"config": "params", "summary": "metrics", "params": "params", "metrics": "metrics", "tags": "tags"}
# What a metric's name says is no metric.
_RESULTS = {"accuracy": "accuracy", "_runtime": "seconds", "_timestamp": "ended"}
_METRICS = (
    "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "macro_f1", "top5_accuracy",
    "epoch_seconds", "pictures_per_second",
)  # fmt: skip
# What a table of Weights & Biases says of a run beside its config and its summary.
_WANDB_FACTS = ("Notes", "User", "Tags", "Sweep", "Group", "Job Type", "Hostname", "Description", "Commit", "GitHub")
# Whatever is at work elsewhere, nobody goes on with it here.
_STATES = {
    "finished": Status.COMPLETE, "success": Status.COMPLETE, "completed": Status.COMPLETE,
    "crashed": Status.FAILED, "killed": Status.INTERRUPTED, "preempted": Status.INTERRUPTED,
    "preempting": Status.INTERRUPTED, "running": Status.INTERRUPTED, "pending": Status.INCOMPLETE,
    "scheduled": Status.INCOMPLETE,
} | {status.casefold(): status for status in Status}  # fmt: skip
# Fewer commands would be filled up with mlmeta's defaults, with which the attempt was not trained.
_WHOLE = {"model", "optimizer", "batch_size", "n_epoch"}
_OPEN = ("training_commands", "params", "metrics", "tags")
_UNITS = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1, "ms": 0.001}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|ms|s)(?![a-z])", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?", re.ASCII)
_MAY_BE_SCORE = re.compile(r"acc|f1|auc|score|correct", re.IGNORECASE)

Row = dict[str, Any]


def parse_mapping(texts: Iterable[str]) -> dict[str, str]:
    """Read mappings ``column=field``; an empty field leaves the column out.

    Raises:
        BadInputError: If one is not of that form, or names no field; names the nearest.
    """
    mapping = {}
    for text in texts:
        column, sign, name = text.rpartition("=")
        if not sign or not column:
            raise BadInputError(f"a mapping is written column=field; got {shorten(text)}")
        mapping[column] = name.strip()
    check_mapping(mapping)
    return mapping


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Check that every column is mapped to a field.

    Raises:
        BadInputError: If one is not; names the nearest field.
    """
    for column, name in mapping.items():
        if name and name not in _READERS and not name.startswith(tuple(f"{one}." for one in _OPEN)):
            hint = suggest(name, [*_READERS, *(f"{one}.…" for one in _OPEN)])
            open_fields = ", ".join(f"{one}.<name>" for one in _OPEN)
            raise BadInputError(
                f"the column {shorten(column)} is mapped to {shorten(name)}, which is no field; fields are "
                f"{', '.join(_READERS)}, {open_fields}{hint}"
            )


@dataclass
class TableAccount:
    """What was made of a table; `read_table` fills it while it reads.

    Attributes:
        source: The name of the table.
        fields: Column to field; empty for one that is left out. What lies in one cell has a line for each of its keys.
        n_rows: Rows that became documents.
        n_scored: Those of them that have an accuracy.
        n_commas: Cells whose decimal comma was read as a point.
    """

    source: str
    fields: dict[str, str] = field(default_factory=dict)
    n_rows: int = 0
    n_scored: int = 0
    n_commas: int = 0

    def warnings(self) -> Iterator[str]:
        """Yield what somebody who trusts the table should know."""
        if self.fields and not self.n_rows:
            yield f"{self.source}: it has no row that can be read"
        if self.n_rows and not self.n_scored:
            near = [column for column, name in self.fields.items() if name and _MAY_BE_SCORE.search(column)]
            hint = f"; perhaps {shorten(near, 200)}" if near else ""
            yield (
                f"{self.source}: no row of {self.n_rows:,} has an accuracy, so no leaderboard shows them and "
                f"nothing is learnt from them; --map COLUMN=accuracy says which column has it{hint}"
            )
        if self.n_commas:
            yield f"{self.source}: the comma in {self.n_commas:,} cells was read as a decimal point"


def read_table(
    lines: Iterable[str],
    *,
    source: str,
    stem: str,
    mapping: Mapping[str, str] | None = None,
    account: TableAccount | None = None,
) -> Iterator[tuple[int, Row | MlmetaError]]:
    """Yield the attempts of a table.

    Args:
        lines: The lines of a CSV file, its header first; separated by comma, semicolon, tab or ``|``. A line
            ``sep=;`` may stand before the header.
        source: The name of the table, for error text.
        stem: What attempts without a name are named after.
        mapping: Column to field; columns that it does not name go by their own name, or are kept as params.
        account: Is told what became of the columns.

    Yields:
        The line on which the row begins and its document, or what is wrong with it; line 0 is the table itself.
    """
    table = _Table(dict(mapping or {}), account or TableAccount(source), stem)
    lines = iter(lines)
    header, before = next(lines, ""), 0
    if told := re.fullmatch(r'"?sep=([^\w"\r\n ])"?\s*', header):
        header, before = next(lines, ""), 1
    bare = re.sub(r'"[^"]*"?', "", header)
    rows = csv.reader(
        itertools.chain([header], lines), delimiter=told[1] if told else max(",;\t|", key=bare.count), strict=True
    )
    try:
        table.read_header(next(rows, []), has_commas=rows.dialect.delimiter == ";")
    except (csv.Error, MlmetaError, ValueError) as error:
        yield 0, BadInputError(f"{source}: {error}")
        return
    while True:
        line = before + rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            yield line, BadInputError(f"{source}, line {line}: is not CSV: {error}")
            continue
        if cells:
            yield line, table.read_row(cells, line)
    if missing := table.find_unused():
        yield 0, BadInputError(f"{source}: the columns {shorten(missing)} of the mapping are in none of its rows")


class _Table:
    """The columns of a table and what they mean."""

    def __init__(self, mapping: dict[str, str], account: TableAccount, stem: str) -> None:
        self._mapping = mapping
        self._account = account
        self._stem = stem
        self._columns: list[str] = []
        self._has_commas = False

    def read_header(self, columns: list[str], *, has_commas: bool) -> None:
        if not columns:
            raise BadInputError("its first line, the header, is empty")
        self._columns = [column or f"column {place}" for place, column in enumerate(columns, start=1)]
        self._has_commas = has_commas
        self._account.fields.update(zip(self._columns, map_columns(columns, self._mapping), strict=True))

    def find_unused(self) -> list[str]:
        """Return the columns of the mapping that neither the header nor a cell has."""
        if not self._account.n_rows:
            return []
        known = {name for column in self._account.fields for name in (column, column.partition(".")[2])}
        return [column for column in self._mapping if column not in known]

    def read_row(self, cells: list[str], line: int) -> Row | MlmetaError:
        source, name = f"{self._account.source}, line {line}", f"{self._stem}-{line}"
        if len(cells) != len(self._columns):
            return BadInputError(f"{source}: has {len(cells)} fields; the header has {len(self._columns)}")
        row: Row = {"name": name}
        faults = []
        for cell, column in zip(cells, self._columns, strict=True):
            try:
                for key, text in self._open_cell(column, cell.strip()):
                    self._read_cell(row, key, text)
            except UnicodeEncodeError:
                faults.append(Fault(column, "is not UTF-8 text"))
            except ValueError as error:
                faults.append(Fault(column, str(error), shorten(cell)))
        if faults:
            return CommandsError(faults, source=source)
        row["row_digest"] = self._digest(cells, row, name)
        self._account.n_rows += 1
        scores = row.get("accuracy"), row.get("metrics", {}).get("accuracy")
        self._account.n_scored += scores != (None, None)
        return _settle(row)

    def _open_cell(self, column: str, cell: str) -> Iterator[tuple[str, str]]:
        """Yield the cell, or the keys and values of the object in it, as columns of their own."""
        kind = self._account.fields[column]
        cell.encode()
        if "\0" in cell:
            raise ValueError("holds a NUL character")
        if kind not in ("params", "metrics", "tags"):
            yield column, cell
            return
        if cell and not cell.startswith("{"):
            if column in self._mapping:
                raise ValueError("must hold an object, {…}")
            self._account.fields[column] = f"params.{column}"
            yield column, cell
            return
        found = _read_object(cell) if cell else {}
        if not isinstance(found, dict):
            raise ValueError("must hold an object, {…}")
        # Weights & Biases may write {"value": 0.1, "desc": None} for 0.1.
        plain = {key: one["value"] if _is_described(one) else one for key, one in found.items()}
        for key, text in flatten_params(plain, prefix=column).items() if plain else ():
            if key == column:
                raise ValueError(f"holds keys of more than {MAX_KEY} characters")
            if key not in self._account.fields:
                self._account.fields[key] = self._find_field(key, kind, key[len(column) + 1 :])
            yield key, text

    def _find_field(self, column: str, kind: str, key: str) -> str:
        for name in (column, key):
            if name in self._mapping and name not in self._columns:
                return self._mapping[name]
        name = _default_field(f"{kind}.{key}", is_wandb=False)
        return name if name not in self._account.fields.values() else f"{kind}.{key}"

    def _read_cell(self, row: Row, column: str, text: str) -> None:
        name = self._account.fields[column]
        if not name or not text:
            return
        if self._has_commas and _DECIMAL_COMMA.fullmatch(text):
            text = text.replace(",", ".")
            self._account.n_commas += 1
        read = _READERS.get(name) or _READERS_BELOW[name.partition(".")[0]]
        try:
            _put(row, name, read(text))
        except ValueError:
            # A summary holds what came out, numbers or not.
            if not (name.startswith("metrics.") and column.startswith("summary")):
                raise
            self._account.fields[f"{column} (where it is no number)"] = f"params.{column}"
            _put(row, f"params.{column}", text)

    def _digest(self, cells: list[str], row: Row, name: str) -> str:
        """Return what tells the row from all others, whatever its columns are mapped to; so MLflow's run ids do."""
        identity: Any = dict(zip(self._columns, cells, strict=True)) | ({"": name} if row["name"] == name else {})
        if re.fullmatch("[0-9a-f]{32}", str(row.get("id"))):
            identity = row["id"]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _is_described(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value and value.keys() <= {"value", "desc"}


def _read_object(cell: str) -> Any:
    """Return what a cell says in JSON or as Python writes it, with its nan and inf."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(cell)
    try:
        found = ast.literal_eval(_Numbers().visit(ast.parse(cell, mode="eval")))
        # Sets, bytes and the like have no place in a document.
        json.dumps(found)
        return found
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise ValueError("is no object, neither in JSON nor as Python writes it") from None


class _Numbers(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ("nan", "inf") else node


def map_columns(columns: Sequence[str], mapping: Mapping[str, str]) -> list[str]:
    """Return the field of every column; empty for one that is left out.

    Raises:
        BadInputError: If the mapping names a column that is not there, or two columns go to one field.
    """
    check_mapping(mapping)
    is_wandb = {"Name", "State"} <= set(columns) and bool({"Created", "Runtime"} & set(columns))
    fields = dict.fromkeys(range(len(columns)), "")
    taken = {name for name in mapping.values() if name}
    # What mlmeta and MLflow say of their own runs is more exact than other columns.
    for place in sorted(fields, key=lambda one: not columns[one].startswith(("tags.mlflow.", "tags.mlmeta."))):
        column = columns[place] or f"column {place + 1}"
        name = mapping.get(columns[place])
        if name is None:
            # The first column of a table that pandas wrote counts its rows.
            name = "" if columns[place] in ("", "Unnamed: 0") and place == 0 else _default_field(column, is_wandb)
            if name in taken:
                name = f"tags.{column}" if name == "status" else f"params.{column}"
        if name and name in fields.values():
            other = columns[next(one for one, taker in fields.items() if taker == name)]
            hint = "rename one of them" if other == column else "--map COLUMN=FIELD gives one another field"
            raise BadInputError(f"the columns {shorten(other)} and {shorten(column)} both go to {name}; {hint}")
        fields[place] = name
        taken |= {name} - {""}
    if not {"params", "metrics", "tags"} & taken:
        for column in mapping:
            if column not in columns:
                hint = suggest(column, columns, f"; there are {shorten(list(columns), 300)}")
                raise BadInputError(f"the column {shorten(column)} of the mapping is not in the table{hint}")
    return [*fields.values()]


def _default_field(column: str, is_wandb: bool) -> str:
    if is_wandb and column in _WANDB_FACTS:
        return f"tags.{column}"
    known = _COLUMNS.get(column.strip().casefold().replace(" ", "_"))
    if known is not None:
        return known
    head, _, rest = column.partition(".")
    kind = _PREFIXES.get(head.casefold())
    if kind == "tags" and rest:
        return column if may_move(rest) else ""
    if kind and rest:
        return _RESULTS.get(rest.casefold(), f"metrics.{rest}") if kind == "metrics" else f"params.{rest}"
    return f"metrics.{column}" if column in _METRICS or (is_wandb and column.startswith("_")) else f"params.{column}"


def _put(row: Row, name: str, value: Any) -> None:
    head, _, rest = name.partition(".")
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
    number = _read_any_number(text)
    # What is not finite has no place in JSON.
    return number if abs(number) < math.inf else None


def _read_any_number(text: str) -> float:
    try:
        if "_" in text:
            raise ValueError
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _read_metric(text: str) -> float | str | None:
    number = _read_any_number(text)
    return ("Infinity" if number > 0 else "-Infinity") if math.isinf(number) else _read_number(text)


def _read_share(text: str) -> float | None:
    share = _read_any_number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if math.isnan(share):
        return None
    if not 0 <= share <= 1:
        raise ValueError("must be a share from 0 to 1, or end in % (other results go to metrics.<name>)")
    return share


def _read_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}(\.0*)?", text, re.ASCII):
        raise ValueError("must be a whole number")
    return int(text.partition(".")[0])


def _read_seconds(text: str) -> float | None:
    """Return a duration: a number of seconds, or ``1h 5m 3s``, ``1.5min``, ``45ms``, or ``1:05:03``."""
    if re.fullmatch(rf"(?:{_SIZE.pattern}\s*)+", text, re.ASCII):
        return float(sum(float(n) * _UNITS[unit] for n, unit in _SIZE.findall(text)))
    if clock := re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d+)?)", text, re.ASCII):
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    return _read_number(text)


def _read_moment(text: str) -> Any:
    if text in ("NaT", "NaN", "nan", "None", "-"):
        return None
    return _read_number(text) if re.fullmatch(r"\d+(\.\d+)?(e\+?\d+)?", text, re.ASCII) else text


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
    "ended": _read_moment, "accuracy": _read_share, "n_epoch": _read_count, "n_parameters": _read_count,
    "limit": _read_count, "task.name": str, "task.n_train": _read_count, "task.n_test": _read_count,
    "task.digest": str, "task.features": _read_json,
    "task.label_names": _read_json, "training_losses": _read_json, "test_losses": _read_json,
    "test_accuracies": _read_json, "val_losses": _read_json, "val_accuracies": _read_json,
    "training_commands": _read_json, "testing_commands": _read_json, "params": str, "metrics": str,
    "tags": str,
}  # fmt: skip
_READERS_BELOW: dict[str, Callable[[str], Any]] = {
    "training_commands": _read_cell, "params": str, "metrics": _read_metric, "tags": str,
}  # fmt: skip
