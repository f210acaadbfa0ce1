"""The JSON Schema of the commands: what editors complete and check by.

pydantic writes the fields; this module adds, from the catalog, every name with its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import WithJsonSchema

from mlmeta.commands import catalog
from mlmeta.commands.search_space import MAX_CHOICES, MAX_PATHS, OPEN, REST, TRAINING_KEYS

# Documents of the older tool write values as strings: "'RGB'", "(0.9, 0.999)", "True"; see `mlmeta.commands.catalog`.
_OLDER_VALUE = {"type": "string", "pattern": r"^\s*(['\"(\[]|(True|False|None)\s*$)"}
_TYPES: dict[str, dict[str, Any]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "str": {"type": "string"},
    "null": {"type": "null"},
    "layer": {"$ref": "#/$defs/layer"},
    "layers": {"type": "array", "items": {"$ref": "#/$defs/layer"}},
    "schedulers": {"type": "array", "items": {"$ref": "#/$defs/scheduler"}},
    "transforms": {"$ref": "#/$defs/transform"},
    "any": {},
}
_MARK = "x-mlmeta-role"
_ONE_KEY = {"minProperties": 1, "maxProperties": 1}


def _object(properties: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the schema of an object that has no other keys."""
    needed = {"required": [*required]} if required else {}
    return {"type": "object", "properties": properties, **needed, "additionalProperties": False}


_RANGE = _object(
    {"low": {"type": "number"}, "high": {"type": "number"}, "log": {"type": "boolean", "default": False}},
    required=["low", "high"],
)
_CHOICES = _object(
    {"choices": {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES}},
    required=["choices"],
)
SPACE_SCHEMA = WithJsonSchema(
    {
        "type": "object",
        "properties": {REST: {"const": OPEN}},
        "patternProperties": {rf"^({'|'.join(TRAINING_KEYS)})(\.|$)": {"anyOf": [_RANGE, _CHOICES]}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": MAX_PATHS,
    }
)
# Roles whose definition is an object with a name; the others' keys are names.
_NAMED_ROLES = ("layer", "criterion", "optimizer", "scheduler")


def named_schema(role: str) -> WithJsonSchema:
    """Return the annotation that `complete_schema` turns into a reference to a role's definition.

    A reference itself would be looked up by pydantic among its own definitions, where a role's is not.
    """
    mark = {_MARK: role}
    return WithJsonSchema({"type": "array", "items": mark} if role == "image_op" else mark)


def _argument_schema(entry: catalog.Entry, name: str) -> dict[str, Any]:
    argument = entry.arguments[name]
    kinds = argument.kinds
    options = [_TYPES[kind] for kind in kinds if kind != "list" and not (kind == "str" and argument.choices)]
    if "list" in kinds:
        options.append({"type": "array", "minItems": 1, "items": _items_schema(argument)})
    words = [*argument.choices, *catalog.list_placeholders(entry, name)]
    if words:
        options.append({"enum": words})
    schema = {} if "any" in kinds else {"anyOf": [*options, _OLDER_VALUE]}
    return schema if argument.default is None else {**schema, "default": argument.default}


def _items_schema(argument: catalog.Argument) -> dict[str, Any]:
    if not {"int", "float"} & set(argument.kinds):
        return {"type": ["number", "array"]}
    number = "integer" if "float" not in argument.kinds else "number"
    return {"type": [number, "null"] if "null" in argument.kinds else number}


def _arguments_schema(entry: catalog.Entry) -> dict[str, Any]:
    settled = catalog.SETTLED if entry.role == "layer" else {}
    arguments = {name: _argument_schema(entry, name) for name in entry.arguments}
    return arguments | {name: {"enum": list(values)} for name, values in settled.items()}


def _required(entry: catalog.Entry) -> list[str]:
    return [name for name, argument in entry.arguments.items() if argument.required]


def _named_definition(role: str) -> dict[str, Any]:
    options = []
    for entry in _entries(role):
        properties = {"name": {"const": entry.name}, **_arguments_schema(entry)}
        options.append({"title": entry.name, **_object(properties, ["name", *_required(entry)])})
    return {"anyOf": options}


def _called_definition(role: str) -> dict[str, Any]:
    properties = {}
    for entry in _entries(role):
        required = _required(entry)
        arguments = _object(_arguments_schema(entry), required)
        properties[entry.name] = {"anyOf": [arguments] if required else [{"enum": [True, None]}, arguments]}
    if role == "image_op":
        properties["filter"] = _filter_schema()
    return _object(properties)


def _filter_schema() -> dict[str, Any]:
    """Return what a filter may be: its name, or an object that names it."""
    named = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    names = [{"type": "string"}, named]
    return {"anyOf": [*names, _object({"filter": {"anyOf": names}}, ["filter"])]}


def _entries(role: str) -> list[catalog.Entry]:
    return [catalog.find_entry(role, name) for name in catalog.list_names(role)]


def _transform_definition() -> dict[str, Any]:
    calls = _called_definition("transform")
    names = [name for name in catalog.list_names("transform") if not _required(catalog.find_entry("transform", name))]
    steps = {"type": "array", "items": {"anyOf": [{**calls, **_ONE_KEY}, {"enum": names}]}}
    return {"anyOf": [calls, steps]}


def _model_definition() -> dict[str, Any]:
    layers = {"type": "array", "items": {"$ref": "#/$defs/layer"}, "minItems": 1}
    own = {"name": {"const": ""}, "layers": layers, "weights": {"type": "null"}}
    named = {
        "name": {"enum": catalog.list_names("model")},
        "layers": {"enum": [[], None]},
        "weights": {"type": ["string", "null"]},
    }
    return {"anyOf": [_object(own, ["layers"]), _object(named, ["name"])]}


def complete_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON Schema made by pydantic with the catalog's definitions put in."""
    definitions = {
        "model": _model_definition(),
        "transform": _transform_definition(),
        "image_op": {**_called_definition("image_op"), **_ONE_KEY},
        **{role: _named_definition(role) for role in _NAMED_ROLES},
    }
    completed: dict[str, Any] = _put_references(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **completed,
        "$defs": {**completed.get("$defs", {}), **definitions},
    }


def _put_references(schema: Any) -> Any:
    """Return a schema with a reference wherever `named_schema` left its mark."""
    if isinstance(schema, list):
        return [_put_references(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _put_references(value) for key, value in schema.items() if key != _MARK}
    return {"$ref": f"#/$defs/{schema[_MARK]}", **kept} if _MARK in schema else kept
