"""What a layer takes: "auto" filled in, the dimensions it wants, and the message where it does not fit.

A batch's first dimension is the pictures'. torch takes some inputs without it, and would then read the pictures as
channels or as rows of one sequence: such inputs are refused, since one picture's output must not depend on another.

Where torch refuses an argument, `explain_refusal` makes of it the one clear message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlmeta.commands import catalog
from mlmeta.commands.catalog import read_value
from mlmeta.errors import CommandsError, Fault, shorten

Spec = Mapping[str, Any]
_MAPS = {1: "(n, channels, length)", 2: "(n, channels, height, width)", 3: "(n, channels, depth, height, width)"}
_ROWS = "(n, rows, features)"
_FEATURES = "(n, features)"
_SPATIAL = re.compile(r"(Conv|ConvTranspose|InstanceNorm|BatchNorm|Dropout|\w*Pool|MaxUnpool|Upsampling\w+)([123])d")
# Dimensions with the pictures' own, and what they are called.
_DIMENSIONS: Mapping[str, tuple[tuple[int, ...], str]] = {
    **dict.fromkeys(("RNN", "LSTM", "GRU", "MultiheadAttention", "Transformer"), ((3,), _ROWS)),
    **{f"Transformer{part}{layer}": ((3,), _ROWS) for part in ("Encoder", "Decoder") for layer in ("", "Layer")},
    **dict.fromkeys(("RNNCell", "LSTMCell", "GRUCell", "EmbeddingBag"), ((2,), _FEATURES)),
    **dict.fromkeys(("Softmax2d", "PixelShuffle", "PixelUnshuffle", "CrossMapLRN2d", "Unfold"), ((4,), _MAPS[2])),
    "Fold": ((3,), "(n, channels × kernel, blocks)"),
    "BatchNorm1d": ((2, 3), f"{_FEATURES} or {_MAPS[1]}"),
    # torch takes features here too, with a warning that it is then a plain Dropout.
    "Dropout2d": ((2, 3, 4), _MAPS[2]),
}
_BATCH_FIRST = frozenset(name for name, (_, words) in _DIMENSIONS.items() if words == _ROWS) - {
    "TransformerEncoder",
    "TransformerDecoder",
}
_GEOMETRY = ("kernel_size", "stride", "padding", "output_padding", "dilation")
# What a transposed convolution's output padding depends on, with the defaults.
_TRANSPOSED = (("output_padding", 0), ("stride", 1), ("dilation", 1))
# What torch's kernels count with; larger numbers are no fault before they compute.
_MAX_SIZE = 2**31 - 1
_SOFTMAXES = ("Softmax", "Softmin", "LogSoftmax")
# Layers inside a layer: which classes may stand there; a norm may be any of those named here.
_NORMS = ("LayerNorm", "RMSNorm", "Identity")
_NESTED = {"encoder_layer": ("TransformerEncoderLayer",), "decoder_layer": ("TransformerDecoderLayer",), "norm": _NORMS}
# What constructors and forward passes of torch raise where an argument or a shape does not suit them. OverflowError
# and ZeroDivisionError are ArithmeticErrors, NotImplementedError (an unknown mode) is a RuntimeError.
REFUSALS = (
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)
# Arguments that come from the program; a message shows what the file gave.
_NOT_SHOWN = ("params", "optimizer", "schedulers", "batch_first")


def fill_arguments(spec: Spec, shape: Sequence[int], *, n_labels: int, path: str) -> tuple[str, dict[str, Any]]:
    """Return a layer's class and its arguments, with "auto", "n_labels" and older values read.

    A lazy layer of torch is the plain one with its size filled in and the lazy one's defaults. Recurrent and
    attention layers are told that pictures come first; a softmax without ``dim`` runs over dimension 1.

    Args:
        spec: The layer as in the commands; layers inside it are filled in too.
        shape: Of the batch that arrives, pictures first.
        n_labels: The number of labels.
        path: Where the layer stands in the commands.

    Raises:
        CommandsError: If a layer inside it is of a class that cannot stand there.
    """
    name = spec["name"]
    arguments = {key: read_value(value) for key, value in spec.items() if key not in ("name", *catalog.SETTLED)}
    if name.startswith("Lazy"):
        name, arguments = _make_plain(name, arguments)
    if name in _SOFTMAXES and arguments.get("dim") is None:
        arguments["dim"] = 1
    if name in _BATCH_FIRST:
        arguments["batch_first"] = True
    for key, value in arguments.items():
        if isinstance(value, Mapping):
            _check_nested(name, key, value, path=f"{path}.{key}")
            inner, filled = fill_arguments(value, shape, n_labels=n_labels, path=f"{path}.{key}")
            arguments[key] = {"name": inner, **filled}
        elif value == "auto" and key in catalog.AUTO_ARGUMENTS:
            arguments[key] = arriving_size(key, shape)
        else:
            arguments[key] = _fill_labels(value, n_labels)
    return name, arguments


def _make_plain(name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    plain = name.removeprefix("Lazy")
    defaults = {key: a.default for key, a in catalog.find_entry("layer", name).arguments.items() if not a.required}
    auto = {key: "auto" for key in catalog.find_entry("layer", plain).arguments if key in catalog.AUTO_ARGUMENTS}
    return plain, {**auto, **defaults, **arguments}


def _fill_labels(value: Any, n_labels: int) -> Any:
    if isinstance(value, list):
        return [_fill_labels(item, n_labels) for item in value]
    return n_labels if value == "n_labels" else value


def _check_nested(name: str, key: str, value: Spec, *, path: str) -> None:
    allowed = _NESTED.get(key, ())
    if value.get("name") not in allowed:
        message = f"{key} of {name} must be one of: {', '.join(allowed) or 'no layer'}"
        raise CommandsError([Fault(path, message, came=shorten(value.get("name")))])


def arriving_size(argument: str, shape: Sequence[int]) -> int | list[int]:
    """Return what "auto" stands for: the size of the dimension that an argument counts.

    ``normalized_shape`` is the last dimension of rows, and all but the pictures' of maps and features.

    Args:
        argument: One of `mlmeta.commands.catalog.AUTO_ARGUMENTS`.
        shape: Of the batch that arrives, pictures first; two dimensions or more.
    """
    if argument in ("in_channels", "num_features", "num_channels", "num_parameters"):
        return shape[1]
    if argument == "normalized_shape":
        return list(shape[-1:] if len(shape) == 3 else shape[1:])
    return shape[-1]


def check_arriving(name: str, arguments: Spec, shape: Sequence[int], *, path: str) -> None:
    """Refuse what torch would take but would not read as a batch of pictures, or read across pictures.

    Args:
        name: The layer's class.
        arguments: Concrete, as `fill_arguments` gives them.
        shape: Of the batch that arrives, pictures first.
        path: Where the layer stands in the commands.

    Raises:
        CommandsError: Says what arrived and what the layer wants.
    """
    faults = [Fault(path, f"{name} does not fit: {message}") for message in _find_misfits(name, arguments, shape)]
    if faults:
        raise CommandsError(faults)


def _find_misfits(name: str, arguments: Spec, shape: Sequence[int]) -> Iterator[str]:
    n_dims, words = wanted_dimensions(name)
    if n_dims and len(shape) not in n_dims:
        yield f"{format_shape(shape)} arrives, it wants {words}{_advise(words, len(shape))}"
    normalized = arguments.get("normalized_shape")
    if isinstance(normalized, list | tuple) and len(normalized) >= len(shape):
        wanted = f"normalized_shape has at most {len(shape) - 1} sizes"
        yield f"{format_shape(shape)} arrives, so {wanted}, not {shorten(normalized)}"
    yield from _find_wrong_dims(arguments, len(shape))
    for key in _GEOMETRY:
        if any(abs(size) > _MAX_SIZE for size in _read_sizes(arguments.get(key))):
            yield f"{key} must lie between -{_MAX_SIZE} and {_MAX_SIZE}"
    if n_dims and "Conv" in name:
        yield from _find_conv_misfits(name, arguments, shape, n_dims[0] - 2)


def _read_sizes(value: Any) -> list[int]:
    return [size for size in (value if isinstance(value, list | tuple) else [value]) if isinstance(size, int)]


def _find_wrong_dims(arguments: Spec, n_dims: int) -> Iterator[str]:
    for key in ("dim", "start_dim"):
        dim = arguments.get(key)
        if dim in (0, -n_dims):
            yield f"{key} {dim} is the pictures' own dimension, and pictures must stay apart"
        elif isinstance(dim, int) and not -n_dims < dim < n_dims:
            yield f"{key} must lie between 1 and {n_dims - 1}, or between {1 - n_dims} and -1; it is {dim}"


def _find_conv_misfits(name: str, arguments: Spec, shape: Sequence[int], n: int) -> Iterator[str]:
    """Yield what torch finds wrong with a convolution only when it computes numbers."""
    for key in _GEOMETRY:
        value = arguments.get(key)
        if isinstance(value, list | tuple) and len(value) != n:
            yield f"{key} must be a whole number or a list of {n}, not {shorten(value)}"
    for key in ("padding", "output_padding"):
        if any(size < 0 for size in _read_sizes(arguments.get(key))):
            yield f"{key} must be 0 or above, not {shorten(arguments[key])}"
    padding, stride, dilation = ((_read_sizes(arguments.get(key, d)) * n)[:n] for key, d in _TRANSPOSED)
    if "Transpose" in name and any(p >= max(s, d) for p, s, d in zip(padding, stride, dilation, strict=False)):
        yield f"output_padding must be smaller than stride or dilation, not {shorten(arguments['output_padding'])}"
    if len(shape) == n + 2 and arguments.get("in_channels") != shape[1]:
        yield _explain_size(shape, "in_channels", arguments.get("in_channels"))


def _explain_size(shape: Sequence[int], argument: str, given: Any) -> str:
    size = arriving_size(argument, shape)
    return (
        f"{format_shape(shape)} arrives, so {argument} would have to be {size}, not {given} "
        f'(write "auto" to have it filled in)'
    )


def wanted_dimensions(name: str) -> tuple[tuple[int, ...], str]:
    """Return how many dimensions a layer's input may have, pictures' own included, and what they are called.

    Empty where a layer takes any input of two dimensions or more, or torch itself says so clearly.
    """
    if name in _DIMENSIONS:
        return _DIMENSIONS[name]
    spatial = _SPATIAL.fullmatch(name)
    if not spatial:
        return (), ""
    n = int(spatial.group(2))
    # A pooling runs over each channel by itself, so that (n, length) is read right too.
    return (n + 1, n + 2) if "Pool" in name else (n + 2,), _MAPS[n]


def _advise(words: str, n_dims: int) -> str:
    if words in (_ROWS, _FEATURES) and n_dims == 4:
        end = ', "end_dim": 2' if words == _ROWS else ""
        return f'; put {{"name": "Flatten"{end}}} before it'
    if words in _MAPS.values() and n_dims == 2:
        return "; put it before Flatten, or an Unflatten before it"
    return ""


def format_shape(shape: Sequence[int]) -> str:
    """Return a batch's shape for people: ``(n, 3, 16, 16)``."""
    return f"({', '.join(['n', *(str(size) for size in shape[1:])])})"


def explain_misfit(name: str, arguments: Spec, shape: Sequence[int], error: Exception) -> str:
    """Return the message for a layer that what arrives does not fit: what came, what it wanted."""
    declared = catalog.find_entry("layer", name).arguments
    for key in sorted(catalog.AUTO_ARGUMENTS & declared.keys() - {"num_parameters", "normalized_shape"}):
        given = arguments.get(key, declared[key].default)
        if given != arriving_size(key, shape):
            return f"{name} does not fit: {_explain_size(shape, key, given)}"
    return f"{name} does not fit: {format_shape(shape)} arrives. torch says: {quote_torch(error)}"


def explain_alone(name: str, shape: Sequence[int]) -> str:
    """Return the message for a layer that takes several pictures and refuses one by itself."""
    return f"{name} needs more than one picture at a time where {format_shape(shape)} arrives"


def quote_torch(error: Exception) -> str:
    """Return an error's text on one line of at most 300 characters; its class where it has no text."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def explain_refusal(name: str, arguments: Mapping[str, Any], error: Exception, *, path: str) -> CommandsError:
    """Return the error for arguments that a class refused, in torch's own words."""
    shown = {key: value for key, value in arguments.items() if key not in _NOT_SHOWN}
    return CommandsError([Fault(path, f"{name} refuses its arguments: {quote_torch(error)}", shorten(shown, 200))])


def make_named(role: str, name: str, arguments: Mapping[str, Any], *, path: str) -> Any:
    """Make the object of a name in the catalog.

    Args:
        role: A role of `mlmeta.commands.catalog`.
        name: The name.
        arguments: Keyword arguments with their values read.
        path: Where it stands in the commands.

    Raises:
        CommandsError: If the name is not on the list, or its class refuses the arguments.
    """
    cls = catalog.find_entry(role, name, path=path).load()
    try:
        return cls(**arguments)
    except REFUSALS as error:
        raise explain_refusal(name, arguments, error, path=path) from None
