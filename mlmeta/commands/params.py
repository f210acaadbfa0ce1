"""An attempt as MLflow's params and tags: dotted keys, text values, and back.

What a network looks like in a few numbers (params ``arch.*``) is read from the commands, so that unlike networks can be
compared and nothing has to be built; a torchvision model gives its own leaf layers. The tag `CURVE_TAG` holds the
training losses, thin enough for MLflow.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlmeta.commands.search_space import TRAINING_KEYS
from mlmeta.commands.validation import count_repeats

if TYPE_CHECKING:
    import pandas as pd

MAX_KEY = 250
MAX_VALUE = 6000
MAX_TAG = 8000
# The beginnings of the names of layers with weights.
_WEIGHTED = ("Conv", "Linear", "RNN", "LSTM", "GRU", "Bilinear", "Embedding", "MultiheadAttention", "Transformer",
             "LazyConv", "LazyLinear")  # fmt: skip
_WIDTHS = ("out_channels", "out_features", "hidden_size", "embed_dim", "embedding_dim", "d_model")
# Layers that hold one other layer, under this key, and repeat it: it counts in their place.
_STACKS = {"TransformerEncoder": "encoder_layer", "TransformerDecoder": "decoder_layer"}
_ACTIVATIONS = frozenset(
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU "
    "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold".split()
)
CURVE_TAG = "mlmeta.training_losses"
# The tags of mlmeta and MLflow that are true of an attempt wherever it lies; their others are of one store or machine.
_MOVING_TAGS = (
    "mlflow.note.content", "mlmeta.data_account", "mlmeta.device", "mlmeta.error", "mlmeta.kept_epoch",
    "mlmeta.stop_reason",
)  # fmt: skip
_PART = re.compile(rf"(?:params\.)?((?:{'|'.join(TRAINING_KEYS)})(?:\..+)?)")


def flatten_params(document: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Return a document as params: ``optimizer.lr``, ``model.layers.0.name``.

    A list of scalars is one param, as JSON; a list with objects in it goes on by index. What is null or empty
    is left out, but for an object: ``{}`` is how an operation without arguments is written. Where a key would be
    longer than MLflow's 250 characters, all that lies below is one param, as JSON. Values longer than MLflow's
    6,000 characters are cut and end in "…".
    """
    return dict(_flatten(document, prefix))


def _flatten(value: Any, key: str) -> Iterator[tuple[str, str]]:
    below = {f"{key}.{name}" if key else str(name): item for name, item in _children(value)}
    if below and max(map(len, below)) <= MAX_KEY:
        for name, item in below.items():
            yield from _flatten(item, name)
    elif key and value is not None and value != "" and value != []:
        text = format_param(value)
        yield key, text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return what of a value has params of its own: the items of an object, and of a list with objects in it."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return enumerate(value)
    return ()


def format_param(value: Any) -> str:
    """Return one param's text: strings as they are, all else as JSON (``true``, ``0.001``, ``[5, 5]``)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def walk_layers(layers: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (class name, arguments) of all layers of the commands, those inside others too, in order."""
    for layer in layers:
        name = layer["name"]
        if name in _STACKS:
            repeats = _read_int(layer, "num_layers", 1)
            yield from walk_layers([{**layer[_STACKS[name]], "num_layers": repeats}])
        else:
            yield name, layer
        yield from walk_layers(layer.get("layers", ()))


def describe_architecture(layers: Iterable[tuple[str, Mapping[str, Any]]], *, n_parameters: int) -> dict[str, Any]:
    """Return the params ``arch.*`` of layers, given as (class name, arguments) in order.

    Returns:
        n_parameters (trainable numbers of the built model); depth (layers with weights, repeated ones each time,
        normalisation not counted); width (the widest of them but the last); batch_norm (whether there is any); dropout
        (the largest probability, 0.0 for none); activation and pooling (the most frequent class, "none"); hidden (width
        of the last Linear before the last layer with weights, 0 for none).
    """
    seen = list(layers)
    weighted = [(name, arguments) for name, arguments in seen if name.startswith(_WEIGHTED)]
    before_output = [(name, _read_width(arguments)) for name, arguments in weighted[:-1]]
    return {
        "n_parameters": n_parameters,
        "depth": sum(count_repeats(arguments) for _, arguments in weighted),
        "width": max((width for _, width in before_output), default=0),
        "batch_norm": any("BatchNorm" in name for name, _ in seen),
        "dropout": max((_read_dropout(name, arguments) for name, arguments in seen), default=0.0),
        "activation": _most_frequent(name for name, _ in seen if name in _ACTIVATIONS),
        "pooling": _most_frequent(name for name, _ in seen if "Pool" in name and "Unpool" not in name),
        "hidden": next((width for name, width in reversed(before_output) if name.endswith("Linear")), 0),
    }


def _read_width(arguments: Mapping[str, Any]) -> int:
    return next((_read_int(arguments, key, 0) for key in _WIDTHS if key in arguments), 0)


def _read_int(arguments: Mapping[str, Any], key: str, default: int) -> int:
    """Return a number of the arguments; a word such as "n_labels" is the default."""
    value = arguments.get(key, default)
    return value if isinstance(value, int) else default


def _read_dropout(name: str, arguments: Mapping[str, Any]) -> float:
    """Return the probability of a dropout layer (torch's default 0.5) or inside another (0.1 in a Transformer)."""
    inside = arguments.get("dropout", 0.1 if name.startswith("Transformer") else 0.0)
    p = arguments.get("p", 0.5) if "Dropout" in name else inside
    return float(p) if isinstance(p, int | float) else 0.0


def _most_frequent(names: Iterable[str]) -> str:
    counted = Counter(names).most_common(1)
    return counted[0][0] if counted else "none"


def summarise_model(model: Mapping[str, Any]) -> str:
    """Return a network in a few words: its layers with weights, with their widths."""
    if model.get("name"):
        return str(model["name"])
    words = []
    for layer in model.get("layers", ()):
        width = layer.get("out_channels", layer.get("out_features"))
        if width is not None:
            words.append(f"{layer['name']} {width}")
        elif "Norm" in layer["name"] or "layers" in layer:
            words.append(layer["name"])
    return " · ".join(words)


def may_move(tag: str) -> bool:
    """Return whether a tag is true of an attempt in every store: the user's own, and some of mlmeta and MLflow."""
    return tag in _MOVING_TAGS or not tag.startswith(("mlmeta.", "mlflow."))


def write_curve(values: Sequence[float | None]) -> str:
    """Return losses as JSON short enough for a tag: every k-th value and the last; what is not finite is null."""
    rounded = [None if value is None or not math.isfinite(value) else float(f"{value:.6g}") for value in values]
    every = max(1, len(json.dumps(rounded)) // (MAX_TAG + 1))
    while len(text := json.dumps([*rounded[:-1:every], *rounded[-1:]])) > MAX_TAG:
        every += 1
    return text


def parse_curve(text: str) -> list[float] | None:
    """Return the losses of a tag, NaN where one is null; None for anything that is no list of numbers."""
    try:
        return [math.nan if value is None else float(value) for value in json.loads(text)]
    except (TypeError, ValueError, RecursionError):
        return None


def read_training(row: Mapping[str, Any] | pd.Series[Any], params: Iterable[str]) -> dict[str, Any]:
    """Return the training of a past attempt, a row of the history, from the columns that hold params."""
    document: dict[str, Any] = {}
    for column in params:
        match = _PART.fullmatch(column)
        value = row[column]
        if match and value is not None and not _is_missing(value):
            _put(document, match[1].split("."), _read(value))
    training = {key: make_lists(document[key]) for key in TRAINING_KEYS if key in document}
    # Params are complete but for null, and of the keys only the scheduler can be null.
    return training | {"scheduler": training.get("scheduler")}


def _is_missing(value: Any) -> bool:
    """Return whether a cell of a table is empty: NaN, or pandas' NA."""
    return type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))


def _put(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        below = document.setdefault(key, {})
        document = below if isinstance(below, dict) else {}
    document[path[-1]] = value


def _read(value: Any) -> Any:
    """Return a param's value: MLflow has texts, JSON but for strings."""
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, str):
        return plain
    try:
        return json.loads(plain)
    except (ValueError, RecursionError):
        return plain


def make_lists(value: Any) -> Any:
    """Return a value whose objects with the keys 0, 1, 2 … are lists, as ``model.layers.0.name`` means it."""
    if not isinstance(value, dict):
        return value
    made = {key: make_lists(item) for key, item in value.items()}
    numbers = [str(number) for number in range(len(made))]
    return [made[number] for number in numbers] if made and set(numbers) == made.keys() else made
