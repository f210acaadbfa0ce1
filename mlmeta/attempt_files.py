"""Files of Attempt documents: one JSON document, a list, JSON lines, or a CSV table; each also compressed with gzip.

Files are read piece by piece, so that they may be larger than the memory; what is wrong with one document does not
keep the others out.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from mlmeta.attempt_tables import read_table
from mlmeta.commands.parsing import MAX_FILE_BYTES, parse_json
from mlmeta.errors import BadInputError, CommandsError, Fault, MlmetaError, NotFoundError, nearest_name, shorten
from mlmeta.json_stream import split_list

_BUFFER_BYTES = 1 << 16
_TABLES = (".csv", ".tsv")
_LINES = (".jsonl", ".ndjson")
_BOM = codecs.BOM_UTF8


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
        mapping: For a table, see `mlmeta.attempt_tables.read_table`.
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


_Numbered: TypeAlias = Iterator[tuple[int, str, dict[str, Any] | MlmetaError]]


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
