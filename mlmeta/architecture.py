"""What a network looks like in a few numbers (params ``arch.*``), so that unlike networks can be compared.

The layers are read from the commands, so nothing has to be built; a torchvision model gives its own leaf layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_WEIGHTED = ("Conv", "Linear", "RNN", "LSTM", "GRU", "Bilinear", "MultiheadAttention", "Transformer", "LazyConv",
             "LazyLinear")  # fmt: skip
_WIDTHS = ("out_channels", "out_features", "hidden_size", "embed_dim", "d_model")
_ACTIVATIONS = frozenset(
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU RReLU ReLU ReLU6 SELU "
    "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink Threshold".split()
)


def walk_layers(layers: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (class name, arguments) of all layers of the commands, those inside others too, in order."""
    for layer in layers:
        yield layer["name"], layer
        yield from walk_layers(layer.get("layers", ()))


def describe_architecture(layers: Iterable[tuple[str, Mapping[str, Any]]], *, n_parameters: int) -> dict[str, Any]:
    """Return the params ``arch.*``.

    Args:
        layers: (class name, arguments) in order.
        n_parameters: Trainable numbers of the built model.

    Returns:
        n_parameters; depth (layers with weights, normalisation not counted); width (the widest of them but the
        last); batch_norm (whether there is any); dropout (the largest probability, 0.0 for none); activation and
        pooling (the most frequent class, "none"); hidden (width of the last Linear before the output, 0 for none).
    """
    seen = list(layers)
    weighted = [(name, _read_width(arguments)) for name, arguments in seen if name.startswith(_WEIGHTED)]
    linear = [width for name, width in weighted if name.endswith("Linear")]
    return {
        "n_parameters": n_parameters,
        "depth": len(weighted),
        "width": max((width for _, width in weighted[:-1]), default=0),
        "batch_norm": any("BatchNorm" in name for name, _ in seen),
        "dropout": max((_read_dropout(arguments) for name, arguments in seen if "Dropout" in name), default=0.0),
        "activation": _most_frequent(name for name, _ in seen if name in _ACTIVATIONS),
        "pooling": _most_frequent(name for name, _ in seen if "Pool" in name and "Unpool" not in name),
        "hidden": linear[-2] if len(linear) > 1 else 0,
    }


def _read_width(arguments: Mapping[str, Any]) -> int:
    for key in _WIDTHS:
        value = arguments.get(key)
        if isinstance(value, int):
            return value
    return 0


def _read_dropout(arguments: Mapping[str, Any]) -> float:
    p = arguments.get("p", 0.5)
    return float(p) if isinstance(p, int | float) else 0.5


def _most_frequent(names: Iterable[str]) -> str:
    counted = Counter(names).most_common(1)
    return counted[0][0] if counted else "none"
