"""The Attempt document as it is exchanged: checked as a whole, with the facts that may stand beside the commands.

Beside its own fields a document may hold ``task``, ``test_losses``, ``test_accuracies``, ``val_losses``,
``val_accuracies``, ``seconds``, ``n_parameters``, ``started`` and ``ended``; all other keys are kept and not looked at.
A document of another tool, which has no train commands, holds ``params``, ``metrics`` and ``tags`` in their place.

Files of Attempt documents: one JSON document, a list, JSON lines, or a CSV table; each also compressed with gzip.

Files are read piece by piece, so that they may be larger than the memory; what is wrong with one document does not
keep the others out.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mlmeta.commands.documents import MAX_EPOCHS, MAX_PICTURES, Text, TrainCommands, digest_document
from mlmeta.commands.parsing import MAX_FILE_BYTES, format_path, parse_attempt, parse_json
from mlmeta.errors import BadInputError, CommandsError, Fault, MlmetaError, NotFoundError, nearest_name, shorten
from mlmeta.exchange.csv_tables import read_table
from mlmeta.status import Status

# About 30 years.
MAX_SECONDS = 1e9
# Larger numbers are milliseconds since 1970, not seconds.
_FIRST_MILLISECONDS = 1e11
_LATEST_S = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_BUFFER_BYTES = 1 << 16
_TABLES = (".csv", ".tsv")
_LINES = (".jsonl", ".ndjson")
_BOM = codecs.BOM_UTF8


_Numbered: TypeAlias = Iterator[tuple[int, str, dict[str, Any] | MlmetaError]]
# What decides where an item ends; an escape inside a string is passed over with the character that it escapes.
_TOKEN = re.compile(r'\\.?|["\[\]{},]', re.DOTALL)


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


Losses: TypeAlias = Annotated[list[float | None], Field(default_factory=list, max_length=MAX_EPOCHS)]
Moment: TypeAlias = Annotated[float | None, BeforeValidator(read_moment)]
Scalars: TypeAlias = Annotated[dict[str, Any], AfterValidator(_check_scalars), Field(default_factory=dict)]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=(), allow_inf_nan=False)


class TaskNote(_Facts):
    """What a document says of its task."""

    name: Text | None = None
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
        params: Of an attempt of another tool. So `metrics` and `tags`.
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
    metrics: dict[str, float | None] = Field(default_factory=dict)
    tags: Scalars


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
    if not _is_of_another_tool(document):
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


def _is_of_another_tool(document: Any) -> bool:
    if not isinstance(document, Mapping) or document.get("training_commands") is not None:
        return False
    return "params" in document or "metrics" in document


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
        n_bytes: How much of the file has been read, as it lies on the disk.
    """

    number: int
    source: str
    content: dict[str, Any] | MlmetaError
    n_bytes: int


def is_table(file: Path) -> bool:
    """Return whether a file's name says that it is a CSV table."""
    return Path(file.name.removesuffix(".gz")).suffix.lower() in _TABLES


def read_entries(file: Path, *, mapping: Mapping[str, str] | None = None) -> Iterator[Entry]:
    """Yield the documents of a file.

    JSON is strict, as in commands files. A document may have `mlmeta.commands.parsing.MAX_FILE_BYTES`, a file any
    number of them. Nothing is raised: a file that cannot be read gives one entry with the number 0.

    Args:
        file: The file.
        mapping: For a table, see `mlmeta.exchange.csv_tables.read_table`.
    """
    try:
        with file.open("rb") as raw:
            try:
                with _unpacked(raw) as stream:
                    for number, source, content in _read_stream(stream, file, mapping):
                        yield Entry(number, source, content, raw.tell())
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                yield _refuse(file, f"its compressed content is damaged or cut off: {error}")
    except FileNotFoundError:
        near = nearest_name(file.name, _list_names(file.parent))
        hint = f". Did you mean {str(file.with_name(near))!r}?" if near else ""
        yield Entry(0, str(file), NotFoundError(f"{file}: there is no such file{hint}"), 0)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        yield _refuse(file, f"cannot be read: {reason or error}")


def _refuse(file: Path, reason: str) -> Entry:
    return Entry(0, str(file), BadInputError(f"{file}: {reason}"), 0)


def _list_names(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir()] if folder.is_dir() else []


def _unpacked(raw: io.BufferedReader) -> io.BufferedReader:
    is_packed = raw.peek(2)[:2] == b"\x1f\x8b"
    return io.BufferedReader(gzip.GzipFile(fileobj=raw) if is_packed else raw, _BUFFER_BYTES)


def _read_stream(stream: io.BufferedReader, file: Path, mapping: Mapping[str, str] | None) -> _Numbered:
    start = stream.peek(_BUFFER_BYTES)
    if not start:
        raise ValueError("it is empty")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    if is_table(file):
        stem = file.name.removesuffix(".gz").rpartition(".")[0]
        for line, content in read_table(_decode_lines(stream), source=str(file), stem=stem, mapping=mapping):
            yield line, f"{file}, line {line}", content
        return
    begins = start.removeprefix(_BOM).lstrip()[:1]
    if begins == b"[":
        yield from _read_list(stream, file)
    else:
        yield from _read_objects(stream, file)


def _decode_lines(stream: io.BufferedReader) -> Iterator[str]:
    """Yield lines of text; bytes that are not UTF-8 stay visible as surrogates, so that only their row is refused."""
    first = stream.readline(MAX_FILE_BYTES).removeprefix(_BOM)
    while first:
        yield first.decode("utf-8", errors="surrogateescape")
        first = stream.readline(MAX_FILE_BYTES)


def _read_list(stream: io.BufferedReader, file: Path) -> _Numbered:
    number = 0
    try:
        for piece in split_list(_decode_chunks(stream), max_characters=MAX_FILE_BYTES):
            number += 1
            source = f"{file}, item {number} (from line {piece.line})"
            yield number, source, _parse(piece.text, source)
    except ValueError as error:
        source = f"{file}, after item {number}"
        yield number + 1, source, BadInputError(f"{source}: {error}")


def _decode_chunks(stream: io.BufferedReader) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
    while chunk := stream.read(_BUFFER_BYTES):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _read_objects(stream: io.BufferedReader, file: Path) -> _Numbered:
    """Yield the objects of JSON lines, or the one document of a file."""
    n_blank, first = 0, stream.readline(MAX_FILE_BYTES + 1).removeprefix(_BOM)
    while first.isspace():
        n_blank, first = n_blank + 1, stream.readline(MAX_FILE_BYTES + 1)
    if not first:
        raise ValueError("it is empty")
    elif _holds_lines(first, file):
        yield from _read_lines(stream, file, first, n_blank)
    else:
        content = b"\n" * n_blank + first + stream.read(MAX_FILE_BYTES + 1 - len(first))
        yield 1, str(file), _parse_bytes(content, str(file))


def _holds_lines(first: bytes, file: Path) -> bool:
    """Return whether a file holds one document a line, as its first line and its name tell."""
    if Path(file.name.removesuffix(".gz")).suffix.lower() in _LINES and first.strip() != b"{":
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(stream: io.BufferedReader, file: Path, first: bytes, n_blank: int) -> _Numbered:
    number, line = n_blank + 1, first
    while line:
        if not line.isspace():
            source = f"{file}, line {number}"
            yield number, source, _parse_bytes(line, source)
        while len(line) > MAX_FILE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_FILE_BYTES + 1)
        number, line = number + 1, stream.readline(MAX_FILE_BYTES + 1)


def _parse_bytes(content: bytes, source: str) -> dict[str, Any] | MlmetaError:
    if len(content) > MAX_FILE_BYTES:
        return _parse(None, source)
    return _parse(content.decode("utf-8", errors="surrogateescape"), source)


def _parse(text: str | None, source: str) -> dict[str, Any] | MlmetaError:
    """Return the document of a text, or what is wrong with it; None is a text that was too long."""
    if text is None:
        return BadInputError(f"{source}: is too large for a document: more than {MAX_FILE_BYTES:,} bytes")
    try:
        text.encode()
        document = parse_json(text, source=source)
    except UnicodeEncodeError:
        return BadInputError(f"{source}: is not UTF-8 text")
    except MlmetaError as error:
        return error
    if not isinstance(document, dict):
        return CommandsError([Fault("", "must be a JSON object", shorten(document))], source=source)
    return document


class Piece(NamedTuple):
    """One item of a list, as text that still has to be parsed.

    Attributes:
        text: The item, or None where it was longer than allowed and has been passed over.
        line: The line, from 1, on which it begins.
    """

    text: str | None
    line: int


def split_list(chunks: Iterable[str], *, max_characters: int) -> Iterator[Piece]:
    """Yield the items of a JSON list.

    Only strings and brackets are looked at: an item may be wrong in itself, and those after it are still found.

    Args:
        chunks: The text of the list in any pieces, from its ``[`` on; blanks may stand before it.
        max_characters: A longer item is passed over.

    Raises:
        ValueError: After the last item, if the list is not closed or something stands behind it.
    """
    splitter = _Splitter(max_characters)
    for chunk in chunks:
        yield from splitter.feed(chunk)
    splitter.close()


class _Splitter:
    def __init__(self, max_characters: int) -> None:
        self._max = max_characters
        self._kept: list[str] = []
        self._n_kept = 0
        self._line = 1
        self._depth = 0
        self._in_string = False
        self._escaping = False
        self._after = ""
        self._closed = False
        self._n_items = 0

    def feed(self, chunk: str) -> Iterator[Piece]:
        """Take the next part of the text; yield the items that end in it."""
        if not chunk:
            return
        start = 0
        for token in _TOKEN.finditer(chunk, 1 if self._escaping else 0):
            if self._closed:
                break
            if not self._is_structure(token[0]):
                continue
            before = self._depth
            self._depth += {"[": 1, "{": 1, ",": 0}.get(token[0], -1)
            if before == 0:
                start = token.end()
                self._line += chunk.count("\n", 0, start)
            elif self._depth == 0 or (token[0] == "," and before == 1):
                self._keep(chunk[start : token.start()])
                start = token.end()
                self._closed = self._depth == 0
                yield from self._take()
        self._escaping = self._in_string and _ends_in_escape(chunk, skip_first=self._escaping)
        if self._closed:
            self._after = self._after or chunk[start:].strip()[:1]
        elif self._depth:
            self._keep(chunk[start:])
        else:
            self._line += chunk.count("\n", start)

    def _is_structure(self, sign: str) -> bool:
        if sign == '"':
            self._in_string = not self._in_string
        return sign != '"' and not self._in_string and not sign.startswith("\\")

    def _keep(self, text: str) -> None:
        self._n_kept += len(text)
        # Of an item that is too long only the line breaks are of use.
        self._kept.append(text if self._n_kept <= self._max else "\n" * text.count("\n"))

    def _take(self) -> Iterator[Piece]:
        text = "".join(self._kept)
        n_kept, line = self._n_kept, self._line
        self._kept, self._n_kept = [], 0
        self._line += text.count("\n")
        if self._closed and not self._n_items and not text.strip():
            return
        self._n_items += 1
        blank = text[: len(text) - len(text.lstrip())]
        yield Piece(text.strip() if n_kept <= self._max else None, line + blank.count("\n"))

    def close(self) -> None:
        """Look how the list ended.

        Raises:
            ValueError: If it is not closed, or something stands behind it.
        """
        if not self._closed:
            raise ValueError("the list is not closed: it ends in the middle")
        if self._after:
            raise ValueError("something stands behind the end of the list")


def _ends_in_escape(chunk: str, *, skip_first: bool) -> bool:
    """Return whether the last character of a part is a backslash that escapes the first one of the next."""
    n_backslashes = len(chunk) - len(chunk.rstrip("\\"))
    if skip_first and n_backslashes == len(chunk):
        n_backslashes -= 1
    return n_backslashes % 2 == 1
