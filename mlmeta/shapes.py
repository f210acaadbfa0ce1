"""What arrives at each layer: fills in "auto", sums up sizes, refuses what no machine could hold.

A batch of two pictures is sent through the layers one by one on torch's ``meta`` device: shapes are computed, no
number is, and no memory is taken. Two pictures, because batch normalisation needs more than one value.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlmeta.commands import catalog
from mlmeta.commands.catalog import read_value
from mlmeta.errors import CommandsError, Fault
from mlmeta.fitting import check_arriving, explain_misfit, fill_arguments, format_shape
from mlmeta.layers import Chain, Concat, PoolingIndices, Residual, apply_layer, make_projection
from mlmeta.refusals import REFUSALS, explain_refusal
from mlmeta.sizes import FLOAT_BYTES, SizeGuard, count_numbers, refuse_outputs, refuse_weights

Spec = Mapping[str, Any]
_PROBE = 2
_COMPOSITES = ("Sequential", "Residual", "Concat")
# Layers of their own that are applied one after the other: one of them tells the shape.
_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)


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
    """What sending two pictures through the layers showed.

    Attributes:
        n_labels: The number of labels.
        rows: One a layer, in the order in which they run.
        n_numbers: Parameters and buffers so far.
        kept_bytes: Outputs of layers with parameters so far, for one picture: what a training keeps at the least.
    """

    n_labels: int
    rows: list[LayerRow] = field(default_factory=list)
    n_numbers: int = 0
    kept_bytes: int = 0

    @property
    def n_parameters(self) -> int:
        """The sum over all layers."""
        return sum(row.n_parameters for row in self.rows)

    def weigh(self, path: str, name: str, layer: nn.Module) -> None:
        """Count a layer's weights, before it is run.

        Raises:
            CommandsError: If the weights so far are more than the memory could train.
        """
        self.n_numbers += count_numbers(layer)
        refuse_weights(path, name, self.n_numbers)

    def add(self, path: str, name: str, output: Tensor, n_parameters: int) -> None:
        """Add a row.

        Raises:
            CommandsError: If the outputs for one picture are larger than the memory.
        """
        n_bytes = output.numel() // len(output) * FLOAT_BYTES
        self.rows.append(LayerRow(path, name, tuple(output.shape[1:]), n_parameters, n_bytes))
        self.kept_bytes += n_bytes if n_parameters else 0
        refuse_outputs(path, name, max(n_bytes, self.kept_bytes))


def trace_layers(
    layers: Sequence[Spec], *, n_labels: int, input_shape: Sequence[int]
) -> tuple[list[dict[str, Any]], ShapeTrace]:
    """Send two pictures through the layers and fill in what the shapes decide.

    Args:
        layers: Layer specs as in the commands.
        n_labels: Number of labels; the value of "n_labels".
        input_shape: (channels, height, width) of a picture.

    Returns:
        The layers with every argument concrete, and the trace with its table. torch's random numbers are left as
        they were.

    Raises:
        CommandsError: If torch refuses a layer, or shapes do not fit; names the layer and what arrived.
    """
    trace = ShapeTrace(n_labels)
    # Whatever torch warns of, it says again where the model itself is made.
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.empty((_PROBE, *input_shape), device="meta")
        concrete, output = _trace_chain(layers, x, "model.layers", trace)
    if tuple(output.shape) != (_PROBE, n_labels):
        raise CommandsError([Fault(f"model.layers.{len(layers) - 1}", _explain_output(output.shape, n_labels))])
    return concrete, trace


def _explain_output(shape: Sequence[int], n_labels: int) -> str:
    message = f"the last layer must give one number a label, (n, {n_labels}); it gives {format_shape(shape)}"
    if len(shape) > 2:
        return f'{message}; put {{"name": "Flatten"}} before the last Linear'
    return f'{message}; write "n_labels" for its out_features'


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
    name, arguments = fill_arguments(spec, x.shape, n_labels=trace.n_labels, path=path)
    check_arriving(name, arguments, x.shape, path=path)
    layer = construct_layer(name, arguments, path, device="meta")
    trace.weigh(path, name, layer)
    n_parameters = sum(p.numel() for p in layer.parameters())
    output = _run(layer, x, pooled, name=name, arguments=arguments, path=path)
    trace.add(path, name, output, n_parameters)
    return {"name": name, **arguments}, output


def _run(layer: nn.Module, x: Tensor, pooled: PoolingIndices, *, name: str, arguments: Spec, path: str) -> Tensor:
    try:
        with SizeGuard(path, name, n_pictures=_PROBE):
            output = _apply_shortened(layer, x, pooled)
        if not isinstance(output, Tensor):
            raise TypeError(f"it gives {type(output).__name__}, not a tensor")
    except REFUSALS as error:
        raise CommandsError([Fault(path, explain_misfit(name, arguments, x.shape, error))]) from None
    if output.ndim < 2 or len(output) != _PROBE or not output.numel():
        message = f"{name} must give something for each picture; it gives {tuple(output.shape)} for {_PROBE} pictures"
        raise CommandsError([Fault(path, f"{message} where {format_shape(x.shape)} arrives")])
    return output


def _apply_shortened(layer: nn.Module, x: Tensor, pooled: PoolingIndices) -> Tensor:
    """Apply a layer on ``meta``, where what repeats is run once: rows of a recurrent layer, layers of a stack."""
    if isinstance(layer, nn.RNNBase):
        first = apply_layer(layer, x[:, :1], pooled)
        return first.expand(-1, x.shape[1], -1)
    for stack in layer.modules():
        if isinstance(stack, _STACKS):
            stack.layers = stack.layers[:1]
    return apply_layer(layer, x, pooled)


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
        layer, output = _trace_layer(branch, x, f"{path}.layers.{index}", trace, PoolingIndices())
        branches.append(layer)
        outputs.append(output)
    dim = read_value(spec.get("dim", 1))
    dim = trace.n_labels if dim == "n_labels" else dim
    try:
        with SizeGuard(path, "Concat", n_pictures=_PROBE):
            joined = torch.cat(outputs, dim=dim)
    except REFUSALS:
        shapes = ", ".join(format_shape(output.shape) for output in outputs)
        message = f"Concat does not fit: its branches give {shapes}, which cannot be joined along dimension {dim}"
        raise CommandsError([Fault(path, message)]) from None
    if dim in (0, -joined.ndim):
        message = f"Concat along dimension {dim} would join pictures; the dimension must be from 1 on"
        raise CommandsError([Fault(path, message)])
    return {"name": "Concat", "layers": branches, "dim": dim}, joined


def construct_layer(name: str, arguments: Spec, path: str, *, device: str) -> nn.Module:
    """Make a layer from concrete arguments; layers inside it are made too.

    Raises:
        CommandsError: If torch refuses the arguments; in torch's words.
    """
    if name in _COMPOSITES:
        return _construct_composite(name, arguments, path, device=device)
    cls = catalog.find_entry("layer", name, path=path).load()
    made = {
        key: _construct(value, f"{path}.{key}", device=device) if isinstance(value, Mapping) else value
        for key, value in arguments.items()
    }
    try:
        with torch.device(device), warnings.catch_warnings():
            # A Transformer asks for what only padded batches use, and warns where it cannot be.
            warnings.filterwarnings("ignore", message="enable_nested_tensor")
            layer: nn.Module = cls(**made)
    except REFUSALS as error:
        raise explain_refusal(name, arguments, error, path=path) from None
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
