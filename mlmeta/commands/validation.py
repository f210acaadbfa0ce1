"""The rules for the parts of a document that name an object: layers, criterion, optimizer, transforms.

Each rule takes the part as JSON gave it and yields (location, fault), where the location is a tuple of keys and
indices relative to the part. Nothing is built here and no library is imported: see `mlmeta.commands.catalog`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from mlmeta.commands import catalog
from mlmeta.commands.catalog import read_value
from mlmeta.errors import CommandsError, Fault, nearest_name, shorten

Location: TypeAlias = tuple[str | int, ...]
Located: TypeAlias = tuple[Location, Fault]

# No part of a document needs more; it keeps hostile documents away from everything that recurses.
MAX_NESTING = 64
MAX_LAYERS = 2_000
MAX_DEPTH = 20
# Picture operations, transforms or schedulers in one list.
MAX_STEPS = 500
# Numbers beyond this are no sizes or counts of a network that a machine could hold.
MAX_INTEGER = 2**40
# A count of repeated layers is a loop in torch: it must be small before torch sees it.
MAX_REPEATS = 1_000
REPEATS = ("num_layers", "num_encoder_layers", "num_decoder_layers")
# Sizes and counts of a layer: a layer with none of them is refused by no version of torch, but is a slip.
_AT_LEAST_ONE = frozenset(
    "in_channels out_channels in_features out_features in1_features in2_features num_features num_channels "
    "num_embeddings embedding_dim hidden_size input_size embed_dim d_model nhead num_heads kernel_size stride "
    "dilation groups num_groups num_layers dim_feedforward upscale_factor downscale_factor".split()
)
# torch repeats these layers, so that others inside would multiply.
_REPEATED = {"encoder_layer": "TransformerEncoderLayer", "decoder_layer": "TransformerDecoderLayer"}
_NESTED_KINDS = frozenset({"layer", "layers", "schedulers", "transforms"})
_EXAMPLES = {"layer": "ReLU", "criterion": "CrossEntropyLoss", "optimizer": "Adam", "scheduler": "StepLR"}
# What breaks a line, ends a string in C or steers a terminal.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MODEL_KEYS = ("name", "layers", "weights")


def check_plain(value: object) -> Iterator[Located]:
    """Check what holds for all parts: plain JSON, of a depth that can be walked through, with text that can be written.

    The other rules recurse; they are for values that passed this one.
    """
    level = [value]
    for _ in range(MAX_NESTING + 1):
        for item in level:
            if message := _explain_item(item):
                yield (), Fault("", message, came=shorten(item))
                return
        level = [child for item in level if isinstance(item, Mapping | list | tuple) for child in _children(item)]
        if not level:
            return
    yield (), Fault("", f"lists and objects lie in each other more than {MAX_NESTING} deep")


def _children(item: Mapping[Any, Any] | Sequence[Any]) -> Iterator[Any]:
    if isinstance(item, Mapping):
        yield from item.keys()
        yield from item.values()
    else:
        yield from item


def _explain_item(item: object) -> str:
    if isinstance(item, str):
        return "" if item.isascii() or can_be_written(item) else "holds text that is not Unicode"
    is_plain = item is None or isinstance(item, int | float | Mapping | list | tuple)
    return "" if is_plain else "holds a value that JSON does not have"


def can_be_written(text: str) -> bool:
    """Say whether a string is Unicode text; JSON can also hold the half of a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_named(role: str, spec: object) -> Iterator[Located]:
    """Check ``{"name": …, argument: …}`` against the entry of that name in a role of `mlmeta.commands.catalog`."""
    if not isinstance(spec, Mapping):
        known = spec if isinstance(spec, str) and spec in catalog.list_names(role) else ""
        verb = "write" if known else "must be an object such as"
        yield (), Fault("", f'{verb} {{"name": "{known or _EXAMPLES[role]}"}}', came=shorten(spec))
    elif "name" not in spec:
        yield (), Fault("", f'needs a "name", such as {{"name": "{_EXAMPLES[role]}"}}', came=shorten(spec))
    else:
        arguments = {key: value for key, value in spec.items() if key != "name"}
        for location, fault in _check_call(role, spec["name"], arguments):
            yield location or ("name",), fault


def _check_call(role: str, name: Any, arguments: Mapping[str, Any]) -> Iterator[Located]:
    """Check a name and its arguments; a fault of the name itself is at ()."""
    try:
        entry = catalog.find_entry(role, name)
    except CommandsError:
        yield (), catalog.explain_unknown(role, name)
        return
    given = {key: read_value(value) for key, value in arguments.items()}
    faulty = set()
    for argument, fault in catalog.check_arguments(entry, given):
        faulty.add(argument)
        yield (argument,), fault
    for argument in (key for key in given if key not in faulty and key in entry.arguments):
        kinds = entry.arguments[argument].kinds
        if not _NESTED_KINDS & set(kinds):
            yield from _check_numbers((argument,), given[argument], layer=name if role == "layer" else "")
        elif given[argument] is not None:
            yield from _below(argument, _check_nested(argument, arguments[argument], kinds))


def _check_nested(argument: str, value: Any, kinds: Sequence[str]) -> Iterator[Located]:
    if "layers" in kinds:
        yield from check_layers(value)
    elif "transforms" in kinds:
        yield from check_transform(value)
    elif "schedulers" in kinds:
        yield from _check_list(value, partial(check_named, "scheduler"), what="schedulers")
    elif (wanted := _REPEATED.get(argument)) and value.get("name", wanted) != wanted:
        yield ("name",), Fault("", f"must be {wanted}", came=shorten(value["name"]))
    else:
        yield from check_named("layer", value)


def _check_numbers(location: Location, value: Any, *, layer: str = "") -> Iterator[Located]:
    if isinstance(value, list | tuple | Mapping):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _check_numbers((*location, key), item, layer=layer)
    elif message := _explain_number(location[0], value, layer=layer):
        yield location, Fault("", message, shorten(value))


def _explain_number(argument: str | int, value: Any, *, layer: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, bool) or not isinstance(value, int):
        return ""
    if abs(value) > MAX_INTEGER:
        return f"must lie between -{MAX_INTEGER:,} and {MAX_INTEGER:,}"
    if layer and argument in REPEATS and value > MAX_REPEATS:
        return f"must be at most {MAX_REPEATS:,}"
    return f"must be 1 or above for {layer}" if layer and argument in _AT_LEAST_ONE and value < 1 else ""


def _below(key: str | int, located: Iterator[Located]) -> Iterator[Located]:
    for location, fault in located:
        yield (key, *location), fault


def _check_list(items: Sequence[Any], check: Callable[[Any], Iterator[Located]], *, what: str) -> Iterator[Located]:
    if len(items) > MAX_STEPS:
        yield (), Fault("", f"there may be at most {MAX_STEPS} {what}", came=f"{len(items):,}")
        return
    for index, item in enumerate(items):
        yield from _below(index, check(item))


def check_layers(layers: object) -> Iterator[Located]:
    """Check a list of layers, and the lists inside them."""
    if not isinstance(layers, list) or not layers:
        yield (), Fault("", "must be a list of layers, at least one", came=shorten(layers))
        return
    depth, count = _measure(layers)
    if depth > MAX_DEPTH:
        yield (), Fault("", f"layers lie in each other more than {MAX_DEPTH} deep")
        return
    if count > MAX_LAYERS:
        yield (), Fault("", f"there may be at most {MAX_LAYERS:,} layers", came=f"{count:,} layers")
        return
    for index, layer in enumerate(layers):
        yield from _below(index, check_named("layer", layer))


def _measure(layers: list[Any]) -> tuple[int, int]:
    """Return how deep layers lie in each other, and how many there are, repeated ones each time."""
    depth, count = 0, 0
    level = [layer for layer in layers if isinstance(layer, Mapping)]
    while level and depth <= MAX_DEPTH:
        depth += 1
        count += sum(map(count_repeats, level))
        values = [value for layer in level for value in layer.values()]
        level = [item for value in values for item in (value if isinstance(value, list) else [value])
                 if isinstance(item, Mapping)]  # fmt: skip
    return depth, count


def count_repeats(layer: Mapping[str, Any]) -> int:
    """Return how many layers torch makes of one; a number that is no count is refused elsewhere."""
    repeats = [read_value(layer.get(key, 0)) for key in REPEATS]
    return max(1, sum(n for n in repeats if isinstance(n, int) and 0 < n <= MAX_REPEATS))


def check_transform(transform: object) -> Iterator[Located]:
    """Check a transform: ``{"Name": true | {arguments}}`` or a list of such objects and of names."""
    if isinstance(transform, Mapping):
        for name, arguments in transform.items():
            yield from _check_step_call("transform", name, arguments)
    elif isinstance(transform, list):
        yield from _check_list(transform, partial(_check_step, "transform"), what="transforms")
    else:
        message = 'must be an object such as {"ToTensor": true}, or a list of such objects'
        yield (), Fault("", message, came=shorten(transform))


def check_image_ops(image_ops: object) -> Iterator[Located]:
    """Check the picture operations: a list of ``{"method": true | {arguments}}``, one method each."""
    if isinstance(image_ops, list):
        yield from _check_list(image_ops, partial(_check_step, "image_op"), what="image ops")
    else:
        message = 'must be a list, because their order counts, such as [{"convert": {"mode": "RGB"}}]'
        yield (), Fault("", message, came=shorten(image_ops))


def _check_step(role: str, step: object) -> Iterator[Located]:
    kind = role.replace("_", " ")
    if isinstance(step, str) and role == "transform":
        yield from _check_step_call(role, step, True)
    elif isinstance(step, str) and step in catalog.list_names(role):
        yield (), Fault("", f'write {{"{step}": true}}, or an object of arguments in place of true', shorten(step))
    elif isinstance(step, Mapping) and len(step) == 1:
        [(name, arguments)] = step.items()
        yield from _check_step_call(role, name, arguments)
    elif isinstance(step, Mapping) and isinstance(step.get("name"), str):
        yield (), Fault("", f'the {kind}\'s name is the key: write {{"{step["name"][:50]}": {{…}}}}', shorten(step))
    else:
        yield (), Fault("", f"must be an object with one key, the {kind}'s name", came=shorten(step))


def _check_step_call(role: str, name: str, arguments: object) -> Iterator[Located]:
    given = {} if arguments is True or arguments is None else arguments
    if role == "image_op" and name == "filter":
        yield from _below(name, _check_filter(given))
    elif name in catalog.list_names(role) and not isinstance(given, Mapping):
        leave_out = "; leave it out to do without it" if given is False else ""
        message = f"must be true or an object of arguments{leave_out}"
        yield (name,), Fault("", message, came=shorten(given))
    else:
        yield from _below(name, _check_call(role, name, given if isinstance(given, Mapping) else {}))


def _check_filter(given: object) -> Iterator[Located]:
    """Check that a filter is named; it has a short form, so `mlmeta.data.image_ops` reads and checks which."""
    if isinstance(given, Mapping) and given.keys() & {"name", "filter"}:
        yield from _check_numbers((), given)
    elif not isinstance(given, str):
        message = 'must name a filter, such as "BLUR" or {"name": "GaussianBlur", "radius": 2}'
        yield (), Fault("", message, came=shorten(given))


def check_model(model: object) -> Iterator[Located]:
    """Check the model: layers of its own, or the name of a torchvision builder."""
    if not isinstance(model, Mapping):
        known = isinstance(model, str) and model in catalog.list_names("model")
        message = f'write {{"name": "{model}"}}' if known else 'must be an object with "layers" or a "name"'
        yield (), Fault("", message, came=shorten(model))
        return
    for key in model:
        if key not in _MODEL_KEYS:
            message = f"unknown key; a model has: {', '.join(_MODEL_KEYS)}"
            yield (key,), Fault("", message, shorten(model[key]), nearest_name(str(key), _MODEL_KEYS))
    name, layers = model.get("name", ""), model.get("layers")
    if name:
        yield from _below("name", _check_call("model", name, {}))
    elif not isinstance(name, str):
        yield ("name",), Fault("", "must be a string; empty where there are layers", came=shorten(name))
    if name and layers:
        yield ("name",), Fault("", "must be empty where there are layers", came=shorten(name))
    if layers is None and not name:
        yield (), Fault("", 'needs "layers", or the "name" of a torchvision model')
    elif layers or not name:
        yield from _below("layers", check_layers(layers))
    yield from _below("weights", _check_weights(model.get("weights"), has_name=bool(name)))


def _check_weights(weights: object, *, has_name: bool) -> Iterator[Located]:
    if weights is None:
        return
    if not isinstance(weights, str) or not weights or CONTROL.search(weights):
        yield (), Fault("", "must be a file's path", came=shorten(weights))
    elif not has_name:
        yield (), Fault("", "are for a model with a name; one of layers has none", came=shorten(weights))


def check_optimizer(optimizer: object) -> Iterator[Located]:
    """Check the optimizer, and that its rates are numbers an optimizer can use."""
    yield from check_named("optimizer", optimizer)
    if not isinstance(optimizer, Mapping):
        return
    for key in ("lr", "weight_decay", "momentum"):
        value = read_value(optimizer.get(key, 1.0))
        if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
            continue
        if value < 0 or (key == "lr" and value == 0):
            yield (key,), Fault("", f"must be {'a number above 0' if key == 'lr' else '0 or above'}", shorten(value))


def check_scheduler(scheduler: object) -> Iterator[Located]:
    """Check a scheduler that is to train; what was recorded of one that may not can still be read by `check_named`."""
    yield from check_named("scheduler", scheduler)
    if isinstance(scheduler, Mapping) and (message := explain_watched(scheduler)):
        yield ("mode",), Fault("", message, shorten(scheduler["mode"]))


def explain_watched(scheduler: Mapping[str, Any]) -> str:
    """Return why a scheduler may not watch what it is given, which is always the training loss; empty where it may."""
    if scheduler.get("name") != "ReduceLROnPlateau" or read_value(scheduler.get("mode", "min")) != "max":
        return ""
    return (
        "must be 'min', since ReduceLROnPlateau watches the training loss: with 'max' it would lower the learning rate "
        "while the loss falls"
    )
