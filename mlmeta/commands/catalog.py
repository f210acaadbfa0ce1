"""The allow-list: which names a commands file may use, what they stand for, and their legal arguments.

Everything that becomes an object goes through `find_entry`; a name that is not listed here cannot be reached
from a file. The list itself is data (`catalog.json`, written by `scripts/make_catalog.py` from the installed
libraries), so that a faulty file is answered without importing torch.

Roles: layer, criterion, optimizer, scheduler, transform, image_op, model.

Values come as JSON writes them, or as documents of the older tool wrote them. That tool evaluated strings as Python;
mlmeta never does: a string is read by the few forms of `read_value` and by nothing else, so ``"'RGB'"`` is RGB,
``"Image.ANTIALIAS"`` is LANCZOS, ``"(0.9, 0.999)"`` is a tuple of two numbers, and ``"2 * 3"`` stays the string that
it is.
"""

from __future__ import annotations

import functools
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mlmeta.errors import CommandsError, Fault, nearest_name, shorten

ROLES = ("layer", "criterion", "optimizer", "scheduler", "transform", "image_op", "model")

# Arguments of layers that may say "auto": they are filled in from the shape that arrives.
AUTO_ARGUMENTS = frozenset(
    "in_features in_channels num_features num_channels normalized_shape input_size embed_dim d_model "
    "num_parameters in1_features in2_features".split()
)
# Arguments of layers that mlmeta decides itself; older documents write what they are anyway.
SETTLED = {
    "dtype": (None, "float32", "torch.float32"),
    "device": (None,),
}
_QUOTED = re.compile(r"""^(['"])([^'"]*)\1$""")
_ENUM = re.compile(
    r"^(?:PIL\.)?(?:transforms\.)?(?:Image(?:\.(?:Resampling|Transpose|Transform|Dither|Palette|Quantize))?"
    r"|InterpolationMode|AutoAugmentPolicy)\.([A-Z][A-Z0-9_]*)$"
)
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
# Possessive (*+): blanks can be read in one way only, so that no string takes long.
_NUMBERS = rf"({_NUMBER}(?:\s*+,\s*+{_NUMBER})*+)\s*+(,?)\s*+"
_SEQUENCE = re.compile(rf"\(\s*+{_NUMBERS}\)|\[\s*+{_NUMBERS}\]", re.ASCII)
_WORDS: Mapping[str, bool | None] = {"True": True, "False": False, "None": None}
_RENAMED = {"ANTIALIAS": "LANCZOS"}
# No older form is longer; the limit keeps hostile strings away from the patterns.
_LONGEST = 1000


@dataclass(frozen=True)
class Argument:
    """One keyword argument of an entry.

    Attributes:
        kinds: What JSON may hold: int, float, bool, str, list (of numbers), null, layer, layers, schedulers,
            transforms, any.
        required: Whether it has to be given.
        default: Its default, where it has one that JSON can hold.
        choices: The only strings allowed; empty for any.
    """

    kinds: tuple[str, ...]
    required: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One name that a commands file may use."""

    role: str
    name: str
    target: str
    arguments: Mapping[str, Argument]

    def load(self) -> Any:
        """Import and return the class or function that the name stands for.

        Raises:
            CommandsError: If the installed version of its library does not have it.
        """
        try:
            return pkgutil.resolve_name(self.target)
        except AttributeError:
            library = self.target.partition(".")[0]
            message = f"{self.name} is not in the installed version of {library}"
            raise CommandsError([Fault(self.role, message)]) from None


@functools.cache
def _read_catalog() -> Mapping[str, Mapping[str, Any]]:
    text = (files("mlmeta.commands") / "catalog.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def made_with() -> Mapping[str, str]:
    """Return the versions (major.minor) of the libraries that the catalog was read off."""
    return _read_catalog()["made_with"]


def list_names(role: str) -> list[str]:
    """Return the names that may be used in a role, in alphabetical order."""
    return sorted(_read_catalog()[role])


def list_unsupported(role: str) -> Mapping[str, str]:
    """Return the public names of the libraries that cannot be used in a role, each with the reason."""
    reasons: Mapping[str, str] = _read_catalog()["unsupported"].get(role, {})
    return reasons


@functools.cache
def _read_entries(role: str) -> Mapping[str, Entry]:
    return {
        name: Entry(role, name, record["target"], {key: _read_argument(v) for key, v in record["arguments"].items()})
        for name, record in _read_catalog()[role].items()
    }


def _read_argument(record: Mapping[str, Any]) -> Argument:
    rows = {key: tuple(record[key]) for key in ("kinds", "choices") if key in record}
    return Argument(**{**record, **rows})


def explain_unknown(role: str, name: object, *, path: str = "") -> Fault:
    """Return the fault for a name that the catalog does not have."""
    kind = role.replace("_", " ")
    if not isinstance(name, str):
        return Fault(path, f"the {kind}'s name must be a string", came=shorten(name))
    # A name as programs write it, torch.nn.Conv2d, is answered by its last part.
    plain = name.rpartition(".")[2]
    if reason := list_unsupported(role).get(plain):
        return Fault(path, f"{kind} {plain} cannot be used: it {reason}", came=shorten(name))
    nearest = nearest_name(plain, list_names(role))
    if nearest.casefold() != plain.casefold() and (other := _find_other_role(role, plain)):
        return Fault(path, f"unknown {kind}: this is the name of {other}", came=shorten(name))
    return Fault(path, f"unknown {kind}", came=shorten(name), nearest=nearest)


def _find_other_role(role: str, name: str) -> str:
    """Return the other role that has a name, with its article; an empty string where none has."""
    for other in ROLES:
        if other != role and name in _read_catalog()[other]:
            return f"{'an' if other[0] in 'aeiou' else 'a'} {other.replace('_', ' ')}"
    return ""


def find_entry(role: str, name: str, *, path: str = "") -> Entry:
    """Return the entry of a name.

    Raises:
        CommandsError: If the name is not on the list; says why it is not, or which name is nearest.
    """
    entry = _read_entries(role).get(name) if isinstance(name, str) else None
    if entry is None:
        raise CommandsError([explain_unknown(role, name, path=path or role)])
    return entry


def check_arguments(entry: Entry, given: Mapping[str, Any]) -> Iterator[tuple[str, Fault]]:
    """Yield (argument, fault) for every argument that is unknown, missing or of the wrong kind."""
    for key, value in given.items():
        argument = entry.arguments.get(key)
        if entry.role == "layer" and key in SETTLED:
            if value not in SETTLED[key]:
                yield key, Fault("", _EXPLAINED[key], shorten(value))
        elif argument is None:
            allowed = f"it has: {', '.join(entry.arguments)}" if entry.arguments else "it has none"
            nearest = nearest_name(str(key), entry.arguments)
            yield key, Fault("", f"{entry.name} has no such argument; {allowed}", shorten(value), nearest)
        elif message := explain_value(argument, value, placeholders=list_placeholders(entry, key)):
            nearest = nearest_name(value, argument.choices) if isinstance(value, str) else ""
            yield key, Fault("", message, shorten(value), nearest)
    for key, argument in entry.arguments.items():
        if argument.required and key not in given:
            allowed = "" if "any" in argument.kinds else _describe_allowed(argument, list_placeholders(entry, key))
            yield key, Fault("", f"{entry.name} needs this argument" + (f": {allowed}" if allowed else ""))


_EXPLAINED = {
    "dtype": "layers compute in torch.float32; leave this argument out",
    "device": "mlmeta chooses the device that a model is trained on; leave this argument out",
}


def list_placeholders(entry: Entry, argument: str) -> tuple[str, ...]:
    """Return the words that may stand for an argument's value: "auto", "n_labels"; only layers have them."""
    if entry.role != "layer":
        return ()
    auto = ("auto",) if argument in AUTO_ARGUMENTS else ()
    # A number of layers that follows from the labels would be thousands of layers by accident.
    counts = "int" in entry.arguments[argument].kinds and "layers" not in argument
    return (*auto, "n_labels") if counts else auto


_KIND_WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string", "null": "null",
    "layer": "a layer", "layers": "a list of layers", "schedulers": "a list of schedulers",
    "transforms": "a list of transforms", "any": "a value",
}  # fmt: skip


def describe_kinds(argument: Argument) -> str:
    """Return in words what an argument may be."""
    kinds = [kind for kind in argument.kinds if not (kind == "int" and "float" in argument.kinds)]
    words = {**_KIND_WORDS, "list": "a list of whole numbers" if "int" in kinds else "a list of numbers"}
    if argument.choices:
        words["str"] = "one of " + ", ".join(repr(choice) for choice in argument.choices)
    return _join_or([words[kind] for kind in kinds])


def _describe_allowed(argument: Argument, placeholders: Sequence[str]) -> str:
    # Sizes that may be lists take "n_labels" too, but nobody who reads the message is after that.
    words = [f'"{word}"' for word in placeholders if word == "auto" or "list" not in argument.kinds]
    return _join_or([describe_kinds(argument), *words])


def _join_or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def explain_value(argument: Argument, value: object, *, placeholders: Sequence[str] = ()) -> str:
    """Return why a value is not of an argument's kind, or an empty string where it is."""
    is_word = isinstance(value, str) and value in placeholders
    if "any" in argument.kinds or is_word or _matches(argument, value):
        return ""
    return f"must be {_describe_allowed(argument, placeholders)}"


def _matches(argument: Argument, value: object) -> bool:
    kinds = argument.kinds
    if value is None:
        return "null" in kinds
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, int):
        return "int" in kinds or "float" in kinds
    if isinstance(value, float):
        return "float" in kinds
    if isinstance(value, str):
        return "str" in kinds and (not argument.choices or value in argument.choices)
    if isinstance(value, list | tuple):
        return _matches_list(argument, value)
    return isinstance(value, Mapping) and bool({"layer", "transforms"} & set(kinds))


def _matches_list(argument: Argument, value: Sequence[object]) -> bool:
    """Say whether a list is a list of objects, or holds the numbers that the argument wants, at least one."""
    kinds = set(argument.kinds)
    if {"layers", "schedulers", "transforms"} & kinds:
        return True
    if kinds <= {"list", "null"} and value and all(isinstance(row, list | tuple) for row in value):
        return all(_are_numbers(row, kinds) for row in value if isinstance(row, list | tuple))
    return "list" in kinds and _are_numbers(value, kinds)


def _are_numbers(items: Sequence[object], kinds: set[str]) -> bool:
    wanted: type | tuple[type, ...] = int if "int" in kinds and "float" not in kinds else (int, float)
    return bool(items) and all(
        (isinstance(item, wanted) and not isinstance(item, bool)) or (item is None and "null" in kinds)
        for item in items
    )


def read_value(value: Any) -> Any:
    """Return what a JSON value stands for; lists and dicts are read through.

    Returns:
        The value itself, but for strings in one of the older forms: a quoted string gives its inside, a name of
        a Pillow or torchvision enum its last part, ``True``/``False``/``None`` the constant, and a bracketed
        row of numbers a tuple, but for one number in parentheses, which Python too reads as that number.
    """
    if isinstance(value, str):
        return _read_string(value)
    if isinstance(value, list):
        return [read_value(item) for item in value]
    if isinstance(value, dict):
        return {key: read_value(item) for key, item in value.items()}
    return value


def _read_string(text: str) -> Any:
    if len(text) > _LONGEST:
        return text
    stripped = text.strip()
    if quoted := _QUOTED.match(stripped):
        return _read_string(quoted.group(2))
    if stripped in _WORDS:
        return _WORDS[stripped]
    if enum := _ENUM.match(stripped):
        return _RENAMED.get(enum.group(1), enum.group(1))
    if sequence := _SEQUENCE.fullmatch(stripped):
        round_row, round_comma, square_row, _ = sequence.groups()
        numbers = tuple(_read_number(part) for part in (round_row or square_row).split(","))
        return numbers[0] if round_row and len(numbers) == 1 and not round_comma else numbers
    return text


def _read_number(text: str) -> int | float:
    stripped = text.strip()
    return int(stripped) if re.fullmatch(r"[-+]?\d+", stripped) else float(stripped)
