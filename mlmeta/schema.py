"""The JSON Schema of the commands: what editors complete and check by.

pydantic writes the fields; this module adds, from the catalog, every name with its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import WithJsonSchema

from mlmeta import catalog

_TYPES: dict[str, dict[str, Any]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "str": {"type": "string"},
    "list": {"type": "array"},
    "null": {"type": "null"},
    "layer": {"$ref": "#/$defs/layer"},
    "layers": {"type": "array", "items": {"$ref": "#/$defs/layer"}},
    "schedulers": {"type": "array", "items": {"$ref": "#/$defs/scheduler"}},
    "transforms": {"$ref": "#/$defs/transform"},
    "any": {},
}
# A role whose definition is an object with a name, and one whose definition is a name: arguments pair.
_NAMED_ROLES = ("layer", "criterion", "optimizer", "scheduler")
_CALLED_ROLES = ("transform", "image_op")


def named_schema(role: str) -> WithJsonSchema:
    """Return the annotation that puts a reference to a role's definition into the JSON Schema."""
    if role == "model":
        return WithJsonSchema({"$ref": "#/$defs/model"})
    if role == "image_op":
        return WithJsonSchema({"type": "array", "items": {"$ref": "#/$defs/image_op"}})
    return WithJsonSchema({"$ref": f"#/$defs/{role}"})


def _argument_schema(name: str, argument: catalog.Argument) -> dict[str, Any]:
    options = [_TYPES[kind] for kind in argument.kinds]
    if argument.choices:
        options = [{"enum": list(argument.choices)}, *[o for o in options if o.get("type") != "string"]]
    if name in catalog.AUTO_ARGUMENTS:
        options.append({"const": "auto"})
    if "int" in argument.kinds:
        options.append({"const": "n_labels"})
    # Older documents write values as strings: "'RGB'", "(0.9, 0.999)", "True".
    options.append({"type": "string", "pattern": r"^\s*(['\"(\[]|(True|False|None)\s*$)"})
    schema = options[0] if options[0] == {} else {"anyOf": options}
    return schema if argument.default is None else {**schema, "default": argument.default}


def _arguments_schema(entry: catalog.Entry) -> dict[str, Any]:
    return {name: _argument_schema(name, argument) for name, argument in entry.arguments.items()}


def _required(entry: catalog.Entry) -> list[str]:
    return [name for name, argument in entry.arguments.items() if argument.required]


def _named_definition(role: str) -> dict[str, Any]:
    options = []
    for entry in _entries(role):
        properties = {"name": {"const": entry.name}, **_arguments_schema(entry)}
        required = ["name", *_required(entry)]
        options.append(
            {"title": entry.name, "type": "object", "properties": properties, "required": required,
             "additionalProperties": False}
        )  # fmt: skip
    return {"anyOf": options}


def _called_definition(role: str) -> dict[str, Any]:
    properties = {}
    for entry in _entries(role):
        arguments = {"type": "object", "properties": _arguments_schema(entry), "additionalProperties": False}
        required = _required(entry)
        options = [{**arguments, "required": required}] if required else [{"const": True}, arguments]
        properties[entry.name] = {"anyOf": options}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _entries(role: str) -> list[catalog.Entry]:
    return [catalog.find_entry(role, name) for name in catalog.list_names(role)]


def _transform_definition() -> dict[str, Any]:
    calls = _called_definition("transform")
    name = {"enum": catalog.list_names("transform")}
    return {"anyOf": [calls, {"type": "array", "items": {"anyOf": [calls, name]}}]}


def _model_definition() -> dict[str, Any]:
    properties = {
        "name": {"enum": ["", *catalog.list_names("model")]},
        "layers": {"type": "array", "items": {"$ref": "#/$defs/layer"}, "minItems": 1},
        "weights": {"type": ["string", "null"]},
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def complete_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON Schema made by pydantic with the catalog's definitions put in."""
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "model": _model_definition,
        "transform": _transform_definition,
        "image_op": lambda: {**_called_definition("image_op"), "minProperties": 1, "maxProperties": 1},
    }
    definitions = {role: makers.get(role, lambda role=role: _named_definition(role))() for role in
                   (*_NAMED_ROLES, "model", *_CALLED_ROLES)}  # fmt: skip
    merged = {**schema.get("$defs", {}), **definitions}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": merged}
