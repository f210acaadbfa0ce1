"""The Attempt document as it is exchanged: checked as a whole, with the facts that may stand beside the commands.

Beside its own fields a document may hold ``task``, ``test_losses``, ``test_accuracies``, ``val_losses``,
``val_accuracies``, ``seconds``, ``n_parameters``, ``started`` and ``ended``; all other keys are kept and not looked at.
A document of another tool, which has no train commands, holds ``params``, ``metrics`` and ``tags`` in their place.

A file holds one document, JSON lines, a list, or a CSV table, also compressed with gzip. JSON lines and tables are read
line by line, and may be larger than the memory; what is wrong with one document does not keep the others out.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mlmeta.commands.documents import MAX_EPOCHS, MAX_PICTURES, Text, TrainCommands, digest_document
from mlmeta.commands.parsing import MAX_FILE_BYTES, format_path, parse_attempt, parse_json
from mlmeta.errors import BadInputError, CommandsError, Fault, MlmetaError, NotFoundError, shorten, suggest
from mlmeta.exchange.csv_tables import TableAccount, read_table
from mlmeta.status import Status

# About 30 years.
MAX_SECONDS = 1e9
# Larger numbers are milliseconds since 1970, not seconds.
_FIRST_MILLISECONDS = 1e11
_LATEST_S = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
# More is for JSON lines, which need no memory.
MAX_LIST_BYTES = 500_000_000
_TABLES = (".csv", ".tsv")
_LINES = (".jsonl", ".ndjson")
# Tells where an item of a list ends; what is in it is read for itself, strictly.
_ANY_JSON = json.JSONDecoder(parse_int=str)
_GAP = re.compile(r"[ \t\r\n]*([\[,\]]?)[ \t\r\n]*")

_Stream: TypeAlias = io.BufferedReader | gzip.GzipFile
# Number, source and content of an entry, and the share of the bytes read that is done.
_Numbered: TypeAlias = Iterator[tuple[int, str, dict[str, Any] | MlmetaError, float]]


def read_moment(value: Any) -> Any:
    """Return a moment as seconds since 1970.

    Args:
        value: ISO 8601 text (without a time zone it is UTC), or seconds or milliseconds since 1970.

    Raises:
        ValueError: If it is neither.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        else:
            seconds = float(value) / (1000 if float(value) > _FIRST_MILLISECONDS else 1)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds < _LATEST_S:
        raise ValueError("must be a moment since 1970: ISO 8601 text, or seconds or milliseconds since 1970")
    return seconds


def _check_scalars(values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{shorten(key)} must be a string, a number, true, false or null; got {shorten(value)}")
    return values


def _read_named(value: Any) -> Any:
    """Return a number that JSON has only by its name: NaN, Infinity or -Infinity."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


Number: TypeAlias = Annotated[
    Annotated[float, Field(allow_inf_nan=True)] | None, BeforeValidator(_read_named, json_schema_input_type=float | str)
]
Step: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Point: TypeAlias = Annotated[tuple[Step, Number], Field(strict=False)]
Losses: TypeAlias = Annotated[list[float | None], Field(default_factory=list, max_length=MAX_EPOCHS)]
Moment: TypeAlias = Annotated[float | None, BeforeValidator(read_moment)]
Scalars: TypeAlias = Annotated[dict[str, Any], AfterValidator(_check_scalars), Field(default_factory=dict)]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=(), allow_inf_nan=False)


class TaskNote(_Facts):
    """What a document says of its task.

    Attributes:
        digest: Of the pictures, where somebody has seen them. So `features`, their meta-features.
    """

    name: Text | None = None
    digest: Text | None = None
    features: dict[str, int | float | None] = Field(default_factory=dict)
    label_names: list[Text] = Field(default_factory=list)
    n_train: int | None = Field(None, ge=0, le=MAX_PICTURES)
    n_test: int | None = Field(None, ge=0, le=MAX_PICTURES)


class AttemptFacts(_Facts):
    """What came of an attempt, as its document says.

    Attributes:
        training_losses: One an epoch; null where it was not finite. So all curves.
        seconds: How long it took.
        started: Seconds since 1970. So `ended`.
        n_parameters: Trainable numbers of its model.
        params: Those that the commands do not give, all of another tool's attempt. So `metrics` and `tags`.
        curves: The points (step, value) of metrics, in the order in which they were written.
        weights_sha256: Of weights that are elsewhere.
        row_digest: Tells the row of a table that the document was made of; see `mlmeta.exchange.csv_tables`.
    """

    name: Text
    status: Status | None = Field(None, strict=False)
    n_epoch: int = Field(0, ge=0, le=MAX_EPOCHS)
    accuracy: float | None = None
    training_losses: Losses
    test_losses: Losses
    test_accuracies: Losses
    val_losses: Losses
    val_accuracies: Losses
    seconds: float | None = Field(None, ge=0, le=MAX_SECONDS)
    started: Moment = None
    ended: Moment = None
    n_parameters: int | None = Field(None, ge=0, le=2**62)
    task: TaskNote | None = None
    params: Scalars
    metrics: dict[str, Number] = Field(default_factory=dict)
    curves: dict[str, list[Point]] = Field(default_factory=dict)
    tags: Scalars
    weights_sha256: Text | None = None
    row_digest: Text | None = None


@dataclass(frozen=True)
class ExchangedAttempt:
    """An Attempt document that has been checked.

    Attributes:
        document: As it came.
        facts: What came of it.
        commands: The train commands; None for an attempt of another tool.
        digest: SHA-256 (hex) of the document's canonical JSON.
    """

    document: dict[str, Any]
    facts: AttemptFacts
    commands: TrainCommands | None
    digest: str


def parse_exchanged(document: Any, *, source: str = "the attempt") -> ExchangedAttempt:
    """Check an Attempt document, or one of another tool: without train commands, but with params or metrics.

    Raises:
        CommandsError: With every fault that was found.
        BadInputError: If the document cannot be written as JSON again.
    """
    faults: list[Fault] = []
    commands = None
    told = document if isinstance(document, Mapping) else {}
    if told.get("training_commands") or not {"params", "metrics"} & told.keys():
        try:
            commands = parse_attempt(document, source=source).training_commands
        except CommandsError as error:
            if not isinstance(document, Mapping):
                raise
            faults += error.faults
    try:
        facts = AttemptFacts.model_validate(document)
    except ValidationError as error:
        paths = {fault.path for fault in faults}
        faults += [fault for fault in map(_explain, error.errors(include_url=False)) if fault.path not in paths]
    if faults:
        raise CommandsError(faults, source=source)
    return ExchangedAttempt(document, facts, commands, _digest(document, source))


def _explain(details: Any) -> Fault:
    message = str(details.get("ctx", {}).get("error") or details["msg"].replace("Input should", "should"))
    came = "" if details["type"] == "missing" else shorten(details["input"])
    return Fault(format_path(details["loc"]), "is required and missing" if not came else message, came)


def _digest(document: dict[str, Any], source: str) -> str:
    try:
        return digest_document(document)
    except UnicodeEncodeError:
        raise BadInputError(f"{source}: holds text that is not Unicode") from None
    except ValueError:
        raise BadInputError(f"{source}: holds a number that is too large") from None
    except RecursionError:
        raise BadInputError(f"{source}: lists and objects lie in each other too deep") from None


class Entry(NamedTuple):
    """One document of a file, or what is wrong with it.

    Attributes:
        number: The line (of JSON lines or a table) or the place in the list, from 1; 0 for the file itself.
        source: File and number in words.
        content: The document, not yet checked, or an error whose text names the source.
        n_bytes: How much of the file is done, as it lies on the disk.
    """

    number: int
    source: str
    content: dict[str, Any] | MlmetaError
    n_bytes: int


def is_table(file: Path) -> bool:
    """Return whether a file's name says that it is a CSV table."""
    return _find_suffix(file) in _TABLES


def _find_suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def read_entries(
    file: Path, *, mapping: Mapping[str, str] | None = None, account: TableAccount | None = None
) -> Iterator[Entry]:
    """Yield the documents of a file.

    JSON is strict, as in commands files. A document may have `mlmeta.commands.parsing.MAX_FILE_BYTES`, a list of them
    `MAX_LIST_BYTES`; JSON lines and tables may be of any length. Nothing is raised: a file that cannot be read, or not
    to its end, gives an entry with the number 0. `mapping` and `account` are for a table, see
    `mlmeta.exchange.csv_tables.read_table`.
    """
    try:
        with file.open("rb") as raw, _unpack(raw) as stream:
            for number, source, content, share in _read_stream(stream, file, mapping, account):
                yield Entry(number, source, content, int(raw.tell() * share))
        return
    except FileNotFoundError:
        near = suggest(file.name, (other.name for other in file.parent.glob("*")))
        fault: MlmetaError = NotFoundError(f"{file}: there is no such file{near}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fault = BadInputError(f"{file}: its compressed content is damaged or cut off: {error}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        fault = BadInputError(f"{file}: cannot be read: {reason or error}")
    yield Entry(0, str(file), fault, 0)


def _unpack(raw: io.BufferedReader) -> _Stream:
    return gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw


def _read_stream(
    stream: _Stream, file: Path, mapping: Mapping[str, str] | None, account: TableAccount | None
) -> _Numbered:
    start = stream.peek(len(codecs.BOM_UTF8))
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    stream.read(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
    lines = enumerate(_read_lines(stream), start=1)
    if start and is_table(file):
        # Bytes that are not UTF-8 stay visible as surrogates, so that only their row is refused.
        texts = (line.decode("utf-8", errors="surrogateescape") for _, line in lines)
        stem = file.name.removesuffix(".gz").rpartition(".")[0]
        for row, document in read_table(texts, source=str(file), stem=stem, mapping=mapping, account=account):
            yield row, f"{file}, line {row}", document, 1.0
        return
    begins, first = next((item for item in lines if not item[1].isspace()), (0, b""))
    is_list = first.lstrip().startswith(b"[")
    if not first:
        raise ValueError("it is empty")
    elif not is_list and _holds_lines(first, file):
        for number, line in itertools.chain([(begins, first)], lines):
            if not line.isspace():
                source = f"{file}, line {number}"
                yield number, source, _parse(line, source), 1.0
    else:
        limit = MAX_LIST_BYTES if is_list else MAX_FILE_BYTES
        content = b"\n" * (begins - 1) + first + stream.read(max(0, limit + 1 - len(first)))
        yield from _read_list(content, file) if is_list else [(1, str(file), _parse(content, str(file)), 1.0)]


def _read_lines(stream: _Stream) -> Iterator[bytes]:
    """Yield lines; of one that is longer than a document may be, its beginning."""
    while line := stream.readline(MAX_FILE_BYTES + 1):
        yield line
        while len(line) > MAX_FILE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_FILE_BYTES + 1)


def _holds_lines(first: bytes, file: Path) -> bool:
    """Return whether a file holds one document a line, as its first line and its name tell."""
    if _find_suffix(file) in _LINES and first.strip() != b"{":
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _read_list(content: bytes, file: Path) -> _Numbered:
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(
            f"it is one list of more than {MAX_LIST_BYTES:,} bytes, and a list is read whole; write its documents as "
            "JSON lines, one a line, which may be as many as you like"
        )
    text = content.decode("utf-8", errors="surrogateescape")
    number, line, before = 0, 1, 0
    try:
        for start, end in _split_list(text):
            number, line, before = number + 1, line + text.count("\n", before, start), start
            source = f"{file}, item {number} (from line {line})"
            item = text[start:end].encode("utf-8", errors="surrogateescape")
            yield number, source, _parse(item, source), end / len(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = "lists and objects lie in each other too deep"
        if isinstance(error, json.JSONDecodeError):
            reason = f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise ValueError(f"after item {number}, {reason}") from None


def _split_list(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each item of a JSON list begins and ends: what is faulty in one keeps no other out.

    Raises:
        JSONDecodeError: Where an item does not end, or the list does not.
    """
    sign, place = ",", _cross(text, 0)[1]
    if text.startswith("]", place):
        sign, place = _cross(text, place)
    while sign == ",":
        end = _ANY_JSON.raw_decode(text, place)[1]
        yield place, end
        sign, place = _cross(text, end)
    if sign != "]" or place < len(text):
        reason = "something stands behind the end of the list" if sign == "]" else "the list is not closed"
        raise json.JSONDecodeError(reason, text, place)


def _cross(text: str, place: int) -> tuple[str, int]:
    """Return the sign that comes next, if it is one of a list, and the place of what comes after it."""
    gap = _GAP.match(text, place)
    return (gap[1], gap.end()) if gap else ("", place)


def _parse(content: bytes, source: str) -> dict[str, Any] | MlmetaError:
    """Return the document of a text, or what is wrong with it."""
    if len(content) > MAX_FILE_BYTES:
        return BadInputError(f"{source}: is too large for a document: more than {MAX_FILE_BYTES:,} bytes")
    try:
        document = parse_json(content.decode(), source=source)
    except UnicodeDecodeError:
        return BadInputError(f"{source}: is not UTF-8 text")
    except MlmetaError as error:
        return error
    if not isinstance(document, dict):
        return CommandsError([Fault("", "must be a JSON object", shorten(document))], source=source)
    return document
