"""The rules for the parts of a document that name an object: layers, criterion, optimizer, transforms.

Each rule takes the part as JSON gave it and yields (location, fault), where the location is a tuple of keys and
indices relative to the part. Nothing is built here and no library is imported: see `mlmeta.catalog`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from mlmeta import catalog
from mlmeta.errors import CommandsError, Fault, nearest_name, shorten
from mlmeta.values import read_value

Location: TypeAlias = tuple[str | int, ...]
Located: TypeAlias = tuple[Location, Fault]

MAX_LAYERS = 2_000
MAX_DEPTH = 20
# Numbers beyond this are no sizes or counts of a network that a machine could hold.
MAX_INTEGER = 2**40
# A count of repeated layers is a loop in torch: it must be small before torch sees it.
MAX_REPEATS = 1_000
REPEATS = ("num_layers", "num_encoder_layers", "num_decoder_layers")


def check_named(role: str, spec: object, *, extra: Sequence[str] = ()) -> Iterator[Located]:
    """Check ``{"name": …, argument: …}`` against the catalog's entry of that name.

    Args:
        role: A role of `mlmeta.catalog`.
        spec: The part of the document.
        extra: Keys beside the arguments that the caller reads itself.
    """
    if not isinstance(spec, Mapping):
        example = f'{{"name": "{catalog.list_names(role)[0]}", …}}'
        yield (), Fault("", f"must be an object such as {example}", came=shorten(spec))
        return
    name = spec.get("name")
    try:
        entry = catalog.find_entry(role, name)  # type: ignore[arg-type]  # find_entry explains other types
    except CommandsError as error:
        fault = error.faults[0]
        where = ("name",) if "name" in spec else ()
        message = fault.message if "name" in spec else f'needs a "name": the {role} to use'
        yield where, Fault("", message, fault.came if "name" in spec else "", fault.nearest)
        return
    given = {key: read_value(value) for key, value in spec.items() if key != "name" and key not in extra}
    for argument, fault in catalog.check_arguments(entry, given):
        yield (argument,), fault
    for argument, value in given.items():
        if argument in entry.arguments:
            yield from _check_nested(argument, value, entry.arguments[argument].kinds)
            yield from _check_numbers((argument,), value)


def _check_nested(argument: str, value: Any, kinds: Sequence[str]) -> Iterator[Located]:
    if "layers" in kinds and isinstance(value, list):
        yield from _below(argument, check_layers(value))
    elif "layer" in kinds and isinstance(value, Mapping):
        yield from _below(argument, check_named("layer", value))
    elif "schedulers" in kinds and isinstance(value, list):
        for index, scheduler in enumerate(value):
            yield from _below(argument, _below(index, check_named("scheduler", scheduler)))
    elif "transforms" in kinds:
        yield from _below(argument, check_transform(value))


def _check_numbers(location: Location, value: Any) -> Iterator[Located]:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _check_numbers((*location, index), item)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield location, Fault("", f"must lie between -{MAX_INTEGER} and {MAX_INTEGER}", shorten(value))
    elif isinstance(value, int) and location[-1] in REPEATS and value > MAX_REPEATS:
        yield location, Fault("", f"must be at most {MAX_REPEATS}", shorten(value))


def _below(key: str | int, located: Iterator[Located]) -> Iterator[Located]:
    for location, fault in located:
        yield (key, *location), fault


def check_layers(layers: object) -> Iterator[Located]:
    """Check a list of layers, and the lists inside them."""
    if not isinstance(layers, list) or not layers:
        yield (), Fault("", "must be a list of layers, at least one", came=shorten(layers))
        return
    depth, count = _measure(layers)
    if depth > MAX_DEPTH:
        yield (), Fault("", f"layers lie in each other at most {MAX_DEPTH} deep", came=f"{depth} deep")
        return
    if count > MAX_LAYERS:
        yield (), Fault("", f"there may be at most {MAX_LAYERS} layers", came=f"{count} layers")
        return
    for index, layer in enumerate(layers):
        yield from _below(index, check_named("layer", layer))


def _measure(layers: object) -> tuple[int, int]:
    """Return how deep lists of layers lie in each other, and how many layers there are, without recursion."""
    depth, count, level = 0, 0, [layers]
    while level and depth <= MAX_DEPTH:
        depth += 1
        layers_here = [layer for item in level if isinstance(item, list) for layer in item]
        count += len(layers_here)
        level = [
            value if isinstance(value, list) else [value]
            for layer in layers_here
            if isinstance(layer, Mapping)
            for value in layer.values()
            if isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping))
        ]
    return depth, count


def check_transform(transform: object) -> Iterator[Located]:
    """Check a transform: ``{"Name": true | {arguments}}`` or a list of such objects and of names."""
    if isinstance(transform, Mapping):
        yield from _check_calls("transform", transform)
    elif isinstance(transform, list):
        for index, step in enumerate(transform):
            if isinstance(step, str):
                yield from _below(index, _check_calls("transform", {step: True}))
            else:
                yield from _below(index, _check_step("transform", step))
    else:
        yield (), Fault("", "must be an object or a list of transforms", came=shorten(transform))


def check_image_ops(image_ops: object) -> Iterator[Located]:
    """Check the picture operations: a list of ``{"method": true | {arguments}}``, one method each."""
    if not isinstance(image_ops, list):
        yield (), Fault("", 'must be a list such as [{"convert": {"mode": "RGB"}}]', came=shorten(image_ops))
        return
    for index, step in enumerate(image_ops):
        yield from _below(index, _check_step("image_op", step))


def _check_step(role: str, step: object) -> Iterator[Located]:
    if isinstance(step, Mapping) and len(step) == 1:
        yield from _check_calls(role, step)
    else:
        kind = role.replace("_", " ")
        yield (), Fault("", f"must be an object with one key, the {kind}'s name", came=shorten(step))


def _check_calls(role: str, calls: Mapping[str, Any]) -> Iterator[Located]:
    for name, arguments in calls.items():
        if arguments is True or arguments is None:
            arguments = {}
        if name == "filter" and role == "image_op":
            # A filter has a short form, its name or its own object; mlmeta.image_ops reads and checks it.
            if not isinstance(arguments, str | Mapping):
                yield (name,), Fault("", "must be a filter's name or an object", came=shorten(arguments))
            continue
        if not isinstance(arguments, Mapping):
            message = "must be true or an object of arguments"
            yield (name,), Fault("", message, came=shorten(arguments))
            continue
        yield from _check_call(role, name, arguments)


def _check_call(role: str, name: str, arguments: Mapping[str, Any]) -> Iterator[Located]:
    if "name" in arguments:
        yield (name, "name"), Fault("", "is not an argument", came=shorten(arguments["name"]))
        return
    for location, fault in check_named(role, {"name": name, **arguments}):
        yield (name, *(location if location != ("name",) else ())), fault


def check_model(model: object) -> Iterator[Located]:
    """Check the model: layers of its own, or the name of a torchvision builder."""
    if not isinstance(model, Mapping):
        yield (), Fault("", 'must be an object with "layers" or a "name"', came=shorten(model))
        return
    for key in model.keys() - {"name", "layers", "weights"}:
        nearest = nearest_name(str(key), ("name", "layers", "weights"))
        yield (
            (key,),
            Fault("", "unknown key; a model has: name, layers, weights", shorten(model[key]), nearest),
        )
    name, layers, weights = model.get("name", ""), model.get("layers"), model.get("weights")
    if name and layers:
        yield ("name",), Fault("", "must be empty where there are layers", came=shorten(name))
    elif name:
        yield from (_at("name", located) for located in check_named("model", {"name": name}))
    else:
        yield from _below("layers", check_layers(layers))
    if weights is not None and not (name and isinstance(weights, str)):
        yield ("weights",), Fault("", "must be a file's path, for a model with a name", came=shorten(weights))


def _at(key: str, located: Located) -> Located:
    return (key,), located[1]


def check_optimizer(optimizer: object) -> Iterator[Located]:
    """Check the optimizer, and that its rates are numbers an optimizer can use."""
    yield from check_named("optimizer", optimizer)
    if not isinstance(optimizer, Mapping):
        return
    lr = read_value(optimizer.get("lr", 1.0))
    if isinstance(lr, int | float) and not isinstance(lr, bool) and not 0 < lr < float("inf"):
        yield ("lr",), Fault("", "must be a number above 0", came=shorten(lr))
    for key in ("weight_decay", "momentum"):
        value = read_value(optimizer.get(key, 0.0))
        if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value < float("inf"):
            yield (key,), Fault("", "must be a number of 0 or above", came=shorten(value))


def check_role(role: str) -> Callable[[object], Iterator[Located]]:
    """Return the rule for a part that is one named object of a role."""
    return lambda spec: check_named(role, spec)
