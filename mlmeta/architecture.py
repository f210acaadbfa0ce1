"""What a network looks like in a few numbers (params ``arch.*``), so that unlike networks can be compared.

The layers are read from the commands, so nothing has to be built; a torchvision model gives its own leaf layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# The beginnings of the names of layers with weights.
_WEIGHTED = ("Conv", "Linear", "RNN", "LSTM", "GRU", "Bilinear", "Embedding", "MultiheadAttention", "Transformer",
             "LazyConv", "LazyLinear")  # fmt: skip
_WIDTHS = ("out_channels", "out_features", "hidden_size", "embed_dim", "embedding_dim", "d_model")
# Layers that hold one other layer, under this key, and repeat it: it counts in their place.
_STACKS = {"TransformerEncoder": "encoder_layer", "TransformerDecoder": "decoder_layer"}
_REPEATS = ("num_layers", "num_encoder_layers", "num_decoder_layers")
_ACTIVATIONS = frozenset(
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU "
    "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold".split()
)


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
    """Return the params ``arch.*``.

    Args:
        layers: (class name, arguments) in order.
        n_parameters: Trainable numbers of the built model.

    Returns:
        n_parameters; depth (layers with weights, repeated ones each time, normalisation not counted); width (the
        widest of them but the last); batch_norm (whether there is any); dropout (the largest probability, 0.0 for
        none); activation and pooling (the most frequent class, "none"); hidden (width of the last Linear before the
        last layer with weights, 0 for none).
    """
    seen = list(layers)
    weighted = [(name, arguments) for name, arguments in seen if name.startswith(_WEIGHTED)]
    before_output = [(name, _read_width(arguments)) for name, arguments in weighted[:-1]]
    return {
        "n_parameters": n_parameters,
        "depth": sum(_count_repeats(arguments) for _, arguments in weighted),
        "width": max((width for _, width in before_output), default=0),
        "batch_norm": any("BatchNorm" in name for name, _ in seen),
        "dropout": max((_read_dropout(name, arguments) for name, arguments in seen), default=0.0),
        "activation": _most_frequent(name for name, _ in seen if name in _ACTIVATIONS),
        "pooling": _most_frequent(name for name, _ in seen if "Pool" in name and "Unpool" not in name),
        "hidden": next((width for name, width in reversed(before_output) if name.endswith("Linear")), 0),
    }


def _read_width(arguments: Mapping[str, Any]) -> int:
    return next((_read_int(arguments, key, 0) for key in _WIDTHS if key in arguments), 0)


def _count_repeats(arguments: Mapping[str, Any]) -> int:
    return max(1, sum(_read_int(arguments, key, 0) for key in _REPEATS))


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
