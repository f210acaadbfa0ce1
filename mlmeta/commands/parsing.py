"""Commands files: read them, and say everything that is wrong with them at once."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlmeta.commands.documents import Attempt, TestCommands, TrainCommands
from mlmeta.errors import BadInputError, CommandsError, Fault, NotFoundError, nearest_name, shorten

MAX_FILE_BYTES = 10_000_000
# More faults of one document are counted, not explained.
MAX_FAULTS = 200
# Python reads no longer whole number by default.
_MAX_DIGITS = 4_000
_Document = TypeVar("_Document", bound=BaseModel)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        NotFoundError: If there is no such file; names the nearest one.
        BadInputError: If it is not a file, too large, or not JSON; names line and column.
    """
    try:
        text = _read_text(Path(path))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: there is no such file{_suggest_file(Path(path))}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BadInputError(f"{path}: {error}") from None
    return parse_json(text, source=str(path))


def _read_text(file: Path) -> str:
    if "\0" in str(file):
        raise ValueError("is not the name of a file")
    if file.is_dir():
        raise ValueError(f"is a folder, not a commands file{_list_files(file)}")
    with file.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"is too large for a commands file: more than {MAX_FILE_BYTES:,} bytes")
    return content.decode("utf-8-sig")


def _suggest_file(missing: Path) -> str:
    if not missing.parent.is_dir():
        return f", nor the folder {missing.parent}"
    near = nearest_name(missing.name, (file.name for file in missing.parent.glob("*.json")))
    return f". Did you mean {str(missing.with_name(near))!r}?" if near else _list_files(missing.parent)


def _list_files(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.json"))
    return f"; in {folder} there are {shorten(names, 200)[1:-1]}" if names else ""


def parse_json(text: str, *, source: str) -> Any:
    """Parse JSON text, strictly: no NaN or Infinity, and no key twice in one object.

    Raises:
        BadInputError: If it is not JSON; names line and column.
        CommandsError: If keys are repeated; names all of them.
    """
    if not text.strip():
        raise BadInputError(f"{source}: is empty")
    repeating: list[_RepeatingObject] = []
    make_object = functools.partial(_make_object, repeating)
    try:
        document = json.loads(text, parse_constant=_refuse_token, parse_int=_read_int, object_pairs_hook=make_object)
    except json.JSONDecodeError as error:
        message = f"{source}: is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise BadInputError(message) from None
    except RecursionError:
        raise BadInputError(f"{source}: lists and objects lie in each other too deep") from None
    except ValueError as error:
        raise BadInputError(f"{source}: {error}{_locate_token(text)}") from None
    if repeating:
        raise CommandsError(sorted(_find_repeats(document), key=lambda fault: fault.path), source=source)
    return document


def _refuse_token(name: str) -> None:
    raise ValueError(f"is not JSON, which has no {name}")


def _read_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"holds a number of {len(digits):,} digits, which is too large")
    return int(digits)


def _locate_token(text: str) -> str:
    """Return where the first token stands that JSON or mlmeta does not have; strings are passed over."""
    tokens = re.finditer(rf'"(?:[^"\\]|\\.)*+"|(NaN|-?Infinity|-?[0-9]{{{_MAX_DIGITS},}})', text)
    start = next((token.start() for token in tokens if token[1]), None)
    if start is None:
        return ""
    line_start = text.rfind("\n", 0, start)
    return f", at line {text.count(chr(10), 0, start) + 1}, column {start - line_start}"


class _RepeatingObject(dict[str, Any]):
    """A JSON object some of whose keys stand in it more than once."""

    repeated: tuple[str, ...] = ()


def _make_object(repeating: list[_RepeatingObject], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    marked = _RepeatingObject(made)
    marked.repeated = tuple(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    repeating.append(marked)
    return marked


def _find_repeats(document: Any) -> Iterator[Fault]:
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while stack:
        location, item = stack.pop()
        if isinstance(item, _RepeatingObject):
            for key in item.repeated:
                yield Fault(format_path((*location, key)), "this key stands more than once in one object")
        if isinstance(item, dict):
            stack += [((*location, key), value) for key, value in item.items() if isinstance(value, dict | list)]
        elif isinstance(item, list):
            stack += [((*location, i), value) for i, value in enumerate(item) if isinstance(value, dict | list)]


def parse_train_commands(document: Any, *, source: str = "the commands") -> TrainCommands:
    """Read train commands from a document, or from an Attempt document that holds them.

    Raises:
        CommandsError: With every fault that was found.
    """
    return _parse_part(TrainCommands, document, source, key="training_commands")


def parse_test_commands(document: Any, *, source: str = "the commands") -> TestCommands:
    """Read test commands from a document.

    An Attempt document gives its testing commands; train commands give a test of their newest attempt, as
    their section ``test`` says.

    Raises:
        CommandsError: With every fault that was found.
    """
    if isinstance(document, Mapping) and document.get("testing_commands") is None:
        if {"training_commands", "optimizer", "n_epoch", "test"} & document.keys():
            return make_test_commands(parse_train_commands(document, source=source))
    return _parse_part(TestCommands, document, source, key="testing_commands")


def parse_attempt(document: Any, *, source: str = "the attempt") -> Attempt:
    """Read an Attempt document: what was commanded and what came of it.

    Raises:
        CommandsError: With every fault that was found.
    """
    return _parse(Attempt, document, source)


def make_test_commands(train: TrainCommands, *, run_id: str | None = None) -> TestCommands:
    """Return the test commands that the section ``test`` of train commands stands for."""
    section = train.test.model_dump(exclude_unset=True)
    named = {"run_id": run_id} if run_id else {"model_name": train.model_name}
    return TestCommands.model_validate({**named, **section})


def load_train_commands(path: str | Path, changes: Sequence[str] = ()) -> TrainCommands:
    """Read train commands from a file; see `read_json`, `set_values` and `parse_train_commands` for what is raised."""
    return parse_train_commands(set_values(read_json(path), changes), source=str(path))


def load_test_commands(path: str | Path, changes: Sequence[str] = ()) -> TestCommands:
    """Read test commands from a file; see `read_json`, `set_values` and `parse_test_commands` for what is raised."""
    return parse_test_commands(set_values(read_json(path), changes), source=str(path))


def set_values(document: Any, changes: Sequence[str]) -> Any:
    """Return a document with some of its values set.

    Args:
        document: As it was read from JSON; it is changed.
        changes: Each ``PATH=VALUE``, the path with dots as in messages (``optimizer.lr``, ``model.layers.0.p``); the
            value is JSON, or else text. Objects that are not there are made.

    Raises:
        BadInputError: If one is not of that form, or leads through what has no such place.
    """
    for change in changes:
        path, equals, text = change.partition("=")
        *above, last = path.split(".")
        if not equals or not all((*above, last)):
            raise BadInputError(f"--set {shorten(change)}: must be PATH=VALUE, such as data.path=pictures")
        place = document
        for key in above:
            place = place.setdefault(key, {}) if isinstance(place, dict) else place[_position(place, key, change)]
        try:
            value = parse_json(text, source=change)
        except BadInputError:
            value = text
        place[last if isinstance(place, dict) else _position(place, last, change)] = value
    return document


def _position(place: Any, key: str, change: str) -> int:
    if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
        return int(key)
    there = f"a list of {len(place)}" if isinstance(place, list) else shorten(place)
    raise BadInputError(f"--set {shorten(change)}: there is no {key!r} in {there}")


def _parse_part(kind: type[_Document], document: Any, source: str, *, key: str) -> _Document:
    """Read a document, or the part of an Attempt document that a key names."""
    if isinstance(document, Mapping) and key in document:
        return _parse(kind, document[key], source, at=(key,))
    return _parse(kind, document, source)


def _parse(kind: type[_Document], document: Any, source: str, *, at: tuple[str, ...] = ()) -> _Document:
    if not isinstance(document, Mapping):
        raise CommandsError([Fault(format_path(at), "must be a JSON object", shorten(document))], source=source)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = [_to_fault(details, kind, at) for details in found[:MAX_FAULTS]]
        raise CommandsError(faults, source=source, n_more=len(found) - len(faults)) from None


def format_path(location: tuple[str | int, ...]) -> str:
    """Return a location with dots; keys that are long or do not print are quoted and cut."""
    parts = [str(part) for part in location]
    return ".".join(part if part.isprintable() and len(part) <= 60 else shorten(part, 60) for part in parts)


def _to_fault(details: ErrorDetails, kind: type[BaseModel], at: tuple[str, ...]) -> Fault:
    location = details["loc"]
    keys, tags = _fields_at(kind, location[:-1])
    path = format_path((*at, *(part for index, part in enumerate(location) if index not in tags)))
    context = details.get("ctx", {})
    if details["type"] == "fault":
        return Fault(path, context["message"], context["came"], context["nearest"])
    if details["type"] == "missing":
        return Fault(path, "is required and missing")
    came = shorten(details["input"])
    if details["type"] == "extra_forbidden":
        nearest = nearest_name(str(location[-1]), keys)
        return Fault(path, f"unknown key; allowed are: {', '.join(keys)}", came, nearest)
    if details["type"] == "value_error":
        # A default that breaks a rule (no run_id beside no model_name) is nothing that came.
        return Fault(path, str(context["error"]), "" if details["input"] is None else came)
    if details["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return _explain_tag(path, kind, location, details)
    if details["type"] in ("literal_error", "enum"):
        return _explain_choice(path, re.findall(r"'([^']*)'", context["expected"]), details["input"])
    words = _WORDS.get(details["type"], "cannot be used")
    return Fault(path, words.format(**{key: _show_limit(value) for key, value in context.items()}), came)


def _explain_tag(path: str, kind: type[BaseModel], location: tuple[int | str, ...], details: ErrorDetails) -> Fault:
    """Explain what names a union's member: it is missing, or names none."""
    here = [kind]
    for part in location:
        here = [inner for model in here for inner in _models(_fields_of(model).get(part))]
    choices = [tag for model in here if (tag := _tag_of(model)) is not None]
    key = details["ctx"]["discriminator"].strip("'")
    if details["type"] == "union_tag_not_found":
        return Fault(f"{path}.{key}", f"is required and missing; must be one of {', '.join(choices)}")
    return _explain_choice(f"{path}.{key}", choices, details["input"][key])


def _explain_choice(path: str, choices: Sequence[str], given: Any) -> Fault:
    nearest = nearest_name(given, choices) if isinstance(given, str) else ""
    return Fault(path, f"must be one of {', '.join(choices)}", shorten(given), nearest)


def _show_limit(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


_WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "string_unicode": "holds text that is not Unicode",
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
    "finite_number": "must be a finite number",
}


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], set[int]]:
    """Return the keys allowed at a location, and the indices of the location that only name a union's member."""
    here = [kind]
    tags: set[int] = set()
    for index, part in enumerate(location):
        chosen = [model for model in here if len(here) > 1 and _tag_of(model) == part]
        if chosen:
            tags.add(index)
            here = chosen
        else:
            here = [inner for model in here for inner in _models(_fields_of(model).get(part))]
    return [str(name) for model in here for name in _fields_of(model)], tags


def _fields_of(model: type[BaseModel]) -> dict[int | str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation holds, those of its union too."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tag_of(model: type[BaseModel]) -> str | None:
    """Return by which name a model of the unions `Data` and `Stop` is chosen."""
    fields = _fields_of(model)
    return next((tag for key in ("source", "rule") for tag in get_args(fields.get(key))), None)
