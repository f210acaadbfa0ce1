"""What arrives at each layer: fills in "auto", sums up sizes, refuses what no machine could hold.

A batch of two pictures is sent through the layers one by one on torch's ``meta`` device: shapes are computed, no
number is, and no memory is taken. Two pictures, because batch normalisation needs more than one value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlmeta import catalog
from mlmeta.errors import CommandsError, Fault, shorten
from mlmeta.layers import Chain, Concat, PoolingIndices, Residual, apply_layer, make_projection
from mlmeta.values import read_value

Spec = Mapping[str, Any]
_PROBE = 2
_FLOAT_BYTES = 4
# Weights, gradients, two moments of the optimizer, and the copy of the best epoch.
_TRAINING_COPIES = 5
_RECURRENT = ("RNN", "LSTM", "GRU", "MultiheadAttention", "Transformer")
_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, AssertionError, ArithmeticError, KeyError)


@dataclass(frozen=True)
class LayerRow:
    """One line of a model's table.

    Attributes:
        path: Where the layer stands in the commands.
        name: Its class.
        output_shape: Of one picture, without the batch's dimension.
        n_parameters: Its own parameters.
        output_bytes: Of one picture's output, float32.
    """

    path: str
    name: str
    output_shape: tuple[int, ...]
    n_parameters: int
    output_bytes: int


@dataclass
class ShapeTrace:
    """What sending two pictures through the layers showed."""

    n_labels: int
    rows: list[LayerRow] = field(default_factory=list)

    @property
    def n_parameters(self) -> int:
        """The sum over all layers."""
        return sum(row.n_parameters for row in self.rows)

    def add(self, path: str, name: str, output: Tensor, n_parameters: int) -> None:
        """Add a row, and refuse what would not fit into this machine's memory.

        Raises:
            CommandsError: If weights or one picture's outputs are larger than the memory.
        """
        shape = tuple(output.shape[1:])
        n_bytes = output.numel() // _PROBE * _FLOAT_BYTES
        self.rows.append(LayerRow(path, name, shape, n_parameters, n_bytes))
        refuse_oversize(path, name, n_parameters=self.n_parameters, activation_bytes=n_bytes)


def memory_bytes() -> int:
    """Return this machine's memory; 64 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 * 2**30


def refuse_oversize(path: str, name: str, *, n_parameters: int, activation_bytes: int = 0) -> None:
    """Refuse a model that this machine could not train.

    Raises:
        CommandsError: If its weights with gradients and optimizer, or one picture's output, exceed the memory.
    """
    limit = memory_bytes()
    needed = n_parameters * _FLOAT_BYTES * _TRAINING_COPIES
    if needed > limit:
        message = (
            f"the model has {n_parameters:,} parameters up to {name} and would need {format_bytes(needed)} "
            f"to train; this machine has {format_bytes(limit)}"
        )
        raise CommandsError([Fault(path, message)])
    if activation_bytes > limit:
        message = f"the output of {name} for one picture takes {format_bytes(activation_bytes)}"
        raise CommandsError([Fault(path, f"{message}; this machine has {format_bytes(limit)}")])


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes for people, such as ``4.0 KiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} bytes" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"


def trace_layers(
    layers: Sequence[Spec], *, n_labels: int, input_shape: Sequence[int]
) -> tuple[list[dict[str, Any]], ShapeTrace]:
    """Send two pictures through the layers and fill in what the shapes decide.

    Args:
        layers: Layer specs as in the commands.
        n_labels: Number of labels; the value of "n_labels".
        input_shape: (channels, height, width) of a picture.

    Returns:
        The layers with every argument concrete, and the trace with its table.

    Raises:
        CommandsError: If torch refuses a layer, or shapes do not fit; names the layer and what arrived.
    """
    trace = ShapeTrace(n_labels)
    x = torch.empty((_PROBE, *input_shape), device="meta")
    concrete, output = _trace_chain(layers, x, "model.layers", trace)
    if tuple(output.shape) != (_PROBE, n_labels):
        path = f"model.layers.{len(layers) - 1}"
        message = (
            f"the last layer must give one number a label, shape ({n_labels},) for a picture; "
            f"it gives {tuple(output.shape[1:])}"
        )
        raise CommandsError([Fault(path, message)])
    return concrete, trace


def _trace_chain(
    layers: Sequence[Spec], x: Tensor, path: str, trace: ShapeTrace
) -> tuple[list[dict[str, Any]], Tensor]:
    concrete, pooled = [], PoolingIndices()
    for index, spec in enumerate(layers):
        layer, x = _trace_layer(spec, x, f"{path}.{index}", trace, pooled)
        concrete.append(layer)
    return concrete, x


def _trace_layer(
    spec: Spec, x: Tensor, path: str, trace: ShapeTrace, pooled: PoolingIndices
) -> tuple[dict[str, Any], Tensor]:
    name = spec["name"]
    if name == "Residual":
        return _trace_residual(spec, x, path, trace)
    if name == "Concat":
        return _trace_concat(spec, x, path, trace)
    if name == "Sequential":
        layers, output = _trace_chain(spec["layers"], x, f"{path}.layers", trace)
        return {"name": name, "layers": layers}, output
    name, arguments = fill_arguments(spec, tuple(x.shape), n_labels=trace.n_labels)
    arguments = {key: _fill_nested(value, x, trace.n_labels) for key, value in arguments.items()}
    layer = construct_layer(name, arguments, path, device="meta")
    output = _run(layer, x, pooled, name=name, arguments=arguments, path=path)
    trace.add(path, name, output, sum(p.numel() for p in layer.parameters()))
    return {"name": name, **arguments}, output


def _fill_nested(value: Any, x: Tensor, n_labels: int) -> Any:
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    name, arguments = fill_arguments(value, tuple(x.shape), n_labels=n_labels)
    return {"name": name, **arguments}


def _trace_residual(spec: Spec, x: Tensor, path: str, trace: ShapeTrace) -> tuple[dict[str, Any], Tensor]:
    body, output = _trace_chain(spec["layers"], x, f"{path}.layers", trace)
    try:
        projection = make_projection(x.shape[1:], output.shape[1:])
    except ValueError as error:
        raise CommandsError([Fault(path, f"Residual does not fit: {error}")]) from None
    projection, _ = _trace_chain(projection, x, f"{path}.projection", trace)
    return {"name": "Residual", "layers": body, "projection": projection}, output


def _trace_concat(spec: Spec, x: Tensor, path: str, trace: ShapeTrace) -> tuple[dict[str, Any], Tensor]:
    branches, outputs = [], []
    for index, branch in enumerate(spec["layers"]):
        layers, output = _trace_chain([branch], x, f"{path}.layers.{index}", trace)
        branches.append(layers[0])
        outputs.append(output)
    dim = spec.get("dim", 1)
    try:
        joined = torch.cat(outputs, dim=dim)
    except (RuntimeError, IndexError):
        shapes = ", ".join(str(tuple(output.shape[1:])) for output in outputs)
        message = f"Concat does not fit: its branches give {shapes}, which cannot be joined along dimension {dim}"
        raise CommandsError([Fault(path, message)]) from None
    return {"name": "Concat", "layers": branches, "dim": dim}, joined


def fill_arguments(spec: Spec, shape: tuple[int, ...], *, n_labels: int) -> tuple[str, dict[str, Any]]:
    """Return a layer's class and its arguments, with "auto", "n_labels" and older values read.

    A lazy layer of torch is the plain one with its size filled in.

    Args:
        spec: The layer as in the commands.
        shape: Of the batch that arrives, pictures first.
        n_labels: The number of labels.
    """
    name = spec["name"]
    arguments = {key: read_value(value) for key, value in spec.items() if key != "name"}
    if name.startswith("Lazy"):
        name = name.removeprefix("Lazy")
        plain = catalog.find_entry("layer", name).arguments
        arguments |= {key: "auto" for key in plain if key in catalog.AUTO_ARGUMENTS}
    for key, value in arguments.items():
        if value == "n_labels":
            arguments[key] = n_labels
        elif value == "auto" and key in catalog.AUTO_ARGUMENTS:
            arguments[key] = arriving_size(key, shape)
    if name.startswith(_RECURRENT) and not name.endswith("Cell") and name not in _CONTAINERS:
        arguments["batch_first"] = True
    return name, arguments


_CONTAINERS = ("TransformerEncoder", "TransformerDecoder")


def arriving_size(argument: str, shape: tuple[int, ...]) -> int | list[int]:
    """Return what "auto" stands for: the size of the dimension that an argument counts."""
    if argument in ("in_channels", "num_features", "num_channels", "num_parameters"):
        return shape[1]
    if argument == "normalized_shape":
        return list(shape[-1:] if len(shape) == 3 else shape[1:])
    return shape[-1]


def construct_layer(name: str, arguments: Spec, path: str, *, device: str) -> nn.Module:
    """Make a layer from concrete arguments; nested layer specs are made too.

    Raises:
        CommandsError: If torch refuses the arguments; in torch's words.
    """
    if name in ("Sequential", "Residual", "Concat"):
        return _construct_composite(name, arguments, path, device=device)
    cls = catalog.find_entry("layer", name, path=path).load()
    made = {
        key: construct_layer(value["name"], {k: v for k, v in value.items() if k != "name"}, path, device=device)
        if isinstance(value, Mapping)
        else value
        for key, value in arguments.items()
    }
    try:
        with torch.device(device):
            layer: nn.Module = cls(**made)
    except _REFUSALS as error:
        given = {key: value for key, value in arguments.items() if key != "batch_first"}
        raise CommandsError([Fault(path, f"{name} refuses its arguments: {error}", shorten(given, 200))]) from None
    return layer


def _construct_composite(name: str, arguments: Spec, path: str, *, device: str) -> nn.Module:
    if name == "Residual":
        body = construct_chain(arguments["layers"], f"{path}.layers", device=device)
        projection = construct_chain(arguments["projection"], f"{path}.projection", device=device)
        return Residual(body, projection if len(projection) else None)
    if name == "Concat":
        layers = [_construct(spec, f"{path}.layers.{i}", device=device) for i, spec in enumerate(arguments["layers"])]
        return Concat([Chain(layer) for layer in layers], dim=arguments["dim"])
    return construct_chain(arguments["layers"], f"{path}.layers", device=device)


def _construct(spec: Spec, path: str, *, device: str) -> nn.Module:
    arguments = {key: value for key, value in spec.items() if key != "name"}
    return construct_layer(spec["name"], arguments, path, device=device)


def construct_chain(layers: Sequence[Spec], path: str, *, device: str) -> Chain:
    """Make a `Chain` of layers with concrete arguments, as `trace_layers` gives them."""
    return Chain(*[_construct(spec, f"{path}.{index}", device=device) for index, spec in enumerate(layers)])


def _run(layer: nn.Module, x: Tensor, pooled: PoolingIndices, *, name: str, arguments: Spec, path: str) -> Tensor:
    try:
        try:
            output = apply_layer(layer, x, pooled)
        except NotImplementedError:
            output = _run_for_real(name, arguments, x, pooled, path=path)
        if not isinstance(output, Tensor):
            raise TypeError(f"it gave {type(output).__name__}, not a tensor")
    except _REFUSALS as error:
        raise CommandsError([Fault(path, explain_misfit(name, arguments, tuple(x.shape), error))]) from None
    return output


def _run_for_real(name: str, arguments: Spec, x: Tensor, pooled: PoolingIndices, *, path: str) -> Tensor:
    """Run a layer that torch cannot trace without numbers on zeros, after a look at its size."""
    refuse_oversize(path, name, n_parameters=0, activation_bytes=x.numel() * _FLOAT_BYTES)
    layer = construct_layer(name, arguments, path, device="cpu")
    real = [(torch.zeros(indices.shape, dtype=indices.dtype), shape) for indices, shape in pooled]
    output = apply_layer(layer, torch.zeros(x.shape, dtype=x.dtype), real)
    pooled[:] = [(indices.to("meta"), shape) for indices, shape in real]
    return output.to("meta")


def explain_misfit(name: str, arguments: Spec, shape: tuple[int, ...], error: Exception) -> str:
    """Return the message for a layer that what arrives does not fit: what came, what it wanted."""
    arrived = f"(n, {', '.join(str(size) for size in shape[1:])})"
    for key in sorted(catalog.AUTO_ARGUMENTS & arguments.keys()):
        size = arriving_size(key, shape)
        if arguments[key] != size and key not in ("num_parameters", "normalized_shape"):
            return (
                f"{name} does not fit: {arrived} arrives, so {key} would have to be {size}, not {arguments[key]} "
                f'(write "auto" to have it filled in)'
            )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} does not fit: {arrived} arrives. torch says: {reason[:300]}"
