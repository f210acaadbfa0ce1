"""The allow-list: which names a commands file may use, what they stand for, and their legal arguments.

Everything that becomes an object goes through `find_entry`; a name that is not listed here cannot be reached
from a file. The list itself is data (`catalog.json`, written by `scripts/make_catalog.py` from the installed
libraries), so that a faulty file is answered without importing torch.

Roles: layer, criterion, optimizer, scheduler, transform, image_op, model.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class Argument:
    """One keyword argument of an entry.

    Attributes:
        kinds: What JSON may hold: int, float, bool, str, list, null, layer, layers, schedulers, transforms, any.
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
        module_name, _, attribute = self.target.rpartition(".")
        loaded = getattr(importlib.import_module(module_name), attribute, None)
        if loaded is None:
            library = module_name.partition(".")[0]
            raise CommandsError([Fault(self.role, f"{self.name} is not in the installed version of {library}")])
        return loaded


@functools.cache
def _read_catalog() -> Mapping[str, Mapping[str, Any]]:
    text = (files("mlmeta") / "catalog.json").read_text(encoding="utf-8")
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
def _get_entry(role: str, name: str) -> Entry | None:
    record = _read_catalog()[role].get(name)
    if record is None:
        return None
    arguments = {
        key: Argument(
            kinds=tuple(value["kinds"]),
            required=value.get("required", False),
            default=value.get("default"),
            choices=tuple(value.get("choices", ())),
        )
        for key, value in record["arguments"].items()
    }
    return Entry(role=role, name=name, target=record["target"], arguments=arguments)


def explain_unknown(role: str, name: object, *, path: str = "") -> Fault:
    """Return the fault for a name that the catalog does not have."""
    kind = role.replace("_", " ")
    if not isinstance(name, str):
        return Fault(path, f"the {kind}'s name must be a string", came=shorten(name))
    reason = list_unsupported(role).get(name)
    if reason:
        return Fault(path, f"{kind} {name} cannot be used: it {reason}", came=shorten(name))
    nearest = nearest_name(name, list_names(role))
    return Fault(path, f"unknown {kind}", came=shorten(name), nearest=nearest)


def find_entry(role: str, name: str, *, path: str = "") -> Entry:
    """Return the entry of a name.

    Raises:
        CommandsError: If the name is not on the list; says why it is not, or which name is nearest.
    """
    entry = _get_entry(role, name) if isinstance(name, str) else None
    if entry is None:
        raise CommandsError([explain_unknown(role, name, path=path or role)])
    return entry


def check_arguments(entry: Entry, given: Mapping[str, Any]) -> Iterator[tuple[str, Fault]]:
    """Yield (argument, fault) for every argument that is unknown, missing or of the wrong kind."""
    for key, value in given.items():
        argument = entry.arguments.get(key)
        if argument is None:
            allowed = ", ".join(entry.arguments) or "none"
            nearest = nearest_name(str(key), entry.arguments)
            yield (
                key,
                Fault("", f"{entry.name} has no such argument; it has: {allowed}", shorten(value), nearest),
            )
        elif message := explain_value(argument, value, is_auto=key in AUTO_ARGUMENTS):
            nearest = nearest_name(value, argument.choices) if isinstance(value, str) else ""
            yield key, Fault("", message, shorten(value), nearest)
    for key, argument in entry.arguments.items():
        if argument.required and key not in given:
            yield key, Fault("", f"{entry.name} needs this argument ({describe_kinds(argument)})")


def describe_kinds(argument: Argument) -> str:
    """Return in words what an argument may be."""
    if argument.choices:
        return "one of " + ", ".join(repr(choice) for choice in argument.choices)
    words = {
        "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string",
        "list": "a list", "null": "null", "layer": "a layer", "layers": "a list of layers",
        "schedulers": "a list of schedulers", "transforms": "a list of transforms", "any": "a value",
    }  # fmt: skip
    kinds = [kind for kind in argument.kinds if not (kind == "int" and "float" in argument.kinds)]
    return " or ".join(words[kind] for kind in kinds)


def explain_value(argument: Argument, value: object, *, is_auto: bool = False) -> str:
    """Return why a value is not of an argument's kind, or an empty string where it is."""
    if "any" in argument.kinds:
        return ""
    if isinstance(value, str) and _is_placeholder(argument, value, is_auto=is_auto):
        return ""
    if _matches(argument, value):
        return ""
    also = ' or "auto"' if is_auto else ""
    return f"must be {describe_kinds(argument)}{also}"


def _is_placeholder(argument: Argument, value: str, *, is_auto: bool) -> bool:
    return (value == "auto" and is_auto) or (value == "n_labels" and "int" in argument.kinds)


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
        return bool({"list", "layers", "schedulers", "transforms"} & set(kinds))
    return isinstance(value, Mapping) and bool({"layer", "transforms"} & set(kinds))
