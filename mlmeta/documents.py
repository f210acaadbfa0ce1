"""Commands files: read them, and say everything that is wrong with them at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlmeta.commands import TestCommands, TrainCommands
from mlmeta.errors import BadInputError, CommandsError, Fault, NotFoundError, nearest_name, shorten

MAX_FILE_BYTES = 10_000_000
_Commands = TypeVar("_Commands", bound=BaseModel)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        NotFoundError: If there is no such file.
        BadInputError: If it is not a file, too large, or not JSON; names line and column.
    """
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise BadInputError(f"{path}: is a folder, not a commands file")
        if (size := file.stat().st_size) > MAX_FILE_BYTES:
            raise BadInputError(f"{path}: {size:,} bytes are too many for a commands file ({MAX_FILE_BYTES:,} allowed)")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = nearest_name(file.name, (p.name for p in _json_files(file.parent)))
        hint = f". Did you mean {near!r}?" if near else ""
        raise NotFoundError(f"{path}: there is no such file{hint}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from None
    return parse_json(text, source=str(path))


def _json_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def parse_json(text: str, *, source: str) -> Any:
    """Parse JSON text.

    Raises:
        BadInputError: If it is not JSON; names line and column.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    except json.JSONDecodeError as error:
        message = f"{source}: is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise BadInputError(message) from None
    except RecursionError:
        raise BadInputError(f"{source}: is nested too deeply") from None
    except ValueError as error:
        raise BadInputError(f"{source}: is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that JSON knows")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return made


def parse_train_commands(document: Any, *, source: str = "the commands") -> TrainCommands:
    """Read train commands from a document, or from an Attempt document that holds them.

    Raises:
        CommandsError: With every fault that was found.
    """
    if isinstance(document, Mapping) and "training_commands" in document:
        document = document["training_commands"]
    return _parse(TrainCommands, document, source)


def parse_test_commands(document: Any, *, source: str = "the commands") -> TestCommands:
    """Read test commands from a document.

    An Attempt document gives its testing commands; train commands give a test of their newest attempt, as
    their section ``test`` says.

    Raises:
        CommandsError: With every fault that was found.
    """
    if isinstance(document, Mapping) and "testing_commands" in document:
        document = document["testing_commands"]
    elif isinstance(document, Mapping) and {"optimizer", "n_epoch", "test"} & document.keys():
        train = _parse(TrainCommands, document, source)
        return make_test_commands(train)
    return _parse(TestCommands, document, source)


def make_test_commands(train: TrainCommands, *, run_id: str | None = None) -> TestCommands:
    """Return the test commands that the section ``test`` of train commands stands for."""
    section = train.test.model_dump(exclude_unset=True)
    named = {"run_id": run_id} if run_id else {"model_name": train.model_name}
    return TestCommands.model_validate({**named, **section})


def load_train_commands(path: str | Path) -> TrainCommands:
    """Read train commands from a file; see `read_json` and `parse_train_commands` for what is raised."""
    return parse_train_commands(read_json(path), source=str(path))


def load_test_commands(path: str | Path) -> TestCommands:
    """Read test commands from a file; see `read_json` and `parse_test_commands` for what is raised."""
    return parse_test_commands(read_json(path), source=str(path))


def _parse(kind: type[_Commands], document: Any, source: str) -> _Commands:
    if not isinstance(document, Mapping):
        raise CommandsError([Fault("", "must be a JSON object", came=shorten(document))], source=source)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = [_to_fault(details, kind) for details in error.errors(include_url=False)]
        raise CommandsError(sorted(faults, key=lambda fault: fault.path), source=source) from None
    except RecursionError:
        raise CommandsError([Fault("", "is nested too deeply")], source=source) from None


def _to_fault(details: ErrorDetails, kind: type[BaseModel]) -> Fault:
    location = details["loc"]
    keys, tags = _fields_at(kind, location[:-1])
    path = ".".join(str(part) for index, part in enumerate(location) if index not in tags)
    came = shorten(details["input"])
    context = details.get("ctx", {})
    if details["type"] == "fault":
        return Fault(path, context["message"], context["came"], context["nearest"])
    if details["type"] == "extra_forbidden":
        nearest = nearest_name(str(location[-1]), keys)
        return Fault(path, f"unknown key; allowed are: {', '.join(keys)}", came, nearest)
    if details["type"] == "missing":
        return Fault(path, "is required and missing")
    if details["type"] == "value_error":
        return Fault(path, str(context["error"]), came if path else "")
    if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _to_source_fault(path, details)
    return Fault(path, _WORDS.get(details["type"], "{}").format(details["msg"], **_plain(context)), came)


def _to_source_fault(path: str, details: ErrorDetails) -> Fault:
    sources = ("folder", "manifest", "torchvision", "sample")
    given = details["input"].get("source") if isinstance(details["input"], Mapping) else None
    message = f"must be one of {', '.join(sources)}"
    if given is None:
        return Fault(f"{path}.source", f"is required and missing; {message}")
    return Fault(f"{path}.source", message, shorten(given), nearest_name(str(given), sources))


def _plain(context: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in context.items() if isinstance(value, str | int | float)}


_WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null in this version",
    "greater_than_equal": "must be {ge} or above",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be {le} or below",
    "less_than": "must be below {lt}",
    "literal_error": "must be one of {expected}",
    "finite_number": "must be a finite number",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "too_long": "must have at most {max_length} items",
}


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], set[int]]:
    """Return the keys allowed at a location, and the indices of the location that only name a union's member."""
    current: Any = kind
    tags: set[int] = set()
    for index, part in enumerate(location):
        members = [member for member in _members(current) if isinstance(member, type)]
        chosen = [m for m in members if issubclass(m, BaseModel) and _source_of(m) == part]
        if len(members) > 1 and chosen:
            tags.add(index)
            current = chosen[0]
        elif isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        else:
            return [], tags
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [field.alias or name for name, field in current.model_fields.items()], tags
    return [], tags


def _members(annotation: Any) -> list[Any]:
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return [m for arg in get_args(annotation) for m in _members(arg)] if is_union else [annotation]


def _source_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("source")
    return get_args(field.annotation)[0] if field else None
