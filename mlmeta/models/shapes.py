"""What arrives at each layer: fills in "auto", sums up sizes, refuses what no machine could hold.

A batch of two pictures is sent through the layers one by one on torch's ``meta`` device: shapes are computed, no
number is, and no memory is taken. Two pictures, because batch normalisation needs more than one value; whether a model
can do with one is asked by sending that.

What this machine can hold is checked in the same way, before any memory is taken.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlmeta.commands import catalog
from mlmeta.commands.catalog import read_value
from mlmeta.errors import BadInputError, CommandsError, Fault, shorten
from mlmeta.models.arguments import (
    REFUSALS,
    check_arriving,
    explain_alone,
    explain_misfit,
    explain_refusal,
    fill_arguments,
    format_shape,
)
from mlmeta.models.layers import Chain, Concat, PoolingIndices, Residual, apply_layer, make_projection

Spec = Mapping[str, Any]
PROBE = 2
_COMPOSITES = ("Sequential", "Residual", "Concat")
# Layers of their own that are applied one after the other: one of them tells the shape.
_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)
FLOAT_BYTES = 4
# Weights, gradients, two moments of the optimizer, and the copy of the best epoch.
TRAINING_COPIES = 5
# Where a container's own limit stands (cgroup v2, then v1); "max" or a huge number means none.
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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
    """What sending pictures through the layers showed.

    Attributes:
        n_labels: The number of labels.
        n_pictures: How many were sent.
        training: Whether as in training.
        rows: One a layer, in the order in which they run.
        n_numbers: Parameters and buffers so far.
        kept_bytes: Outputs of layers with parameters so far, for one picture: what a training keeps at the least.
    """

    n_labels: int
    n_pictures: int = PROBE
    training: bool = True
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
    layers: Sequence[Spec],
    *,
    n_labels: int,
    input_shape: Sequence[int],
    n_pictures: int = PROBE,
    training: bool = True,
) -> tuple[list[dict[str, Any]], ShapeTrace]:
    """Send pictures through the layers and fill in what the shapes decide.

    Args:
        layers: Layer specs as in the commands.
        n_labels: Number of labels; the value of "n_labels".
        input_shape: (channels, height, width) of a picture.
        n_pictures: How many are sent together; 1 only after 2 have passed.
        training: Whether layers do what they do in training.

    Returns:
        The layers with every argument concrete, and the trace with its table. torch's random numbers are left as
        they were.

    Raises:
        CommandsError: If torch refuses a layer, or shapes do not fit; names the layer and what arrived.
    """
    trace = ShapeTrace(n_labels, n_pictures, training)
    # Whatever torch warns of, it says again where the model itself is made.
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.empty((n_pictures, *input_shape), device="meta")
        concrete, output = _trace_chain(layers, x, "model.layers", trace)
    if tuple(output.shape) != (n_pictures, n_labels):
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
    layer = construct_layer(name, arguments, path, device="meta").train(trace.training)
    trace.weigh(path, name, layer)
    n_parameters = sum(p.numel() for p in layer.parameters())
    output = _run(layer, x, pooled, name=name, arguments=arguments, path=path)
    trace.add(path, name, output, n_parameters)
    return {"name": name, **arguments}, output


def _run(layer: nn.Module, x: Tensor, pooled: PoolingIndices, *, name: str, arguments: Spec, path: str) -> Tensor:
    try:
        with SizeGuard(path, name, n_pictures=len(x)):
            output = _apply_shortened(layer, x, pooled)
        if not isinstance(output, Tensor):
            raise TypeError(f"it gives {type(output).__name__}, not a tensor")
    except REFUSALS as error:
        misfit = explain_alone(name, x.shape) if len(x) == 1 else explain_misfit(name, arguments, x.shape, error)
        raise CommandsError([Fault(path, misfit)]) from None
    if output.ndim < 2 or len(output) != len(x) or not output.numel():
        message = f"{name} must give something for each picture; it gives {tuple(output.shape)} for {len(x)} pictures"
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
        with SizeGuard(path, "Concat", n_pictures=len(x)):
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


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's where that is less.

    It is ``$MLMETA_MEMORY_BYTES`` where that is set, and 64 GiB where the system does not say.
    """
    if given := os.environ.get("MLMETA_MEMORY_BYTES"):
        if not given.isdecimal():
            raise BadInputError(f"MLMETA_MEMORY_BYTES: must be a whole number of bytes; got {shorten(given)}")
        return int(given)
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = 64 * 2**30
    return min([physical, *(limit for file in _LIMIT_FILES if (limit := _read_limit(file)))])


def _read_limit(file: str) -> int:
    try:
        text = Path(file).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdecimal() else 0


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes for people, such as ``4.0 KiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} bytes" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"


def count_numbers(module: nn.Module) -> int:
    """Return how many numbers a module holds, its buffers too."""
    return sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers())


def refuse_weights(path: str, name: str, n_numbers: int) -> None:
    """Refuse a model whose weights alone this machine could not train.

    Args:
        path: The layer that was added last.
        name: Its class.
        n_numbers: Parameters and buffers of the model up to there.

    Raises:
        CommandsError: If the weights with gradients, two moments and a copy (20 bytes a number) exceed the memory.
    """
    limit, needed = memory_bytes(), n_numbers * FLOAT_BYTES * TRAINING_COPIES
    if needed > limit:
        message = (
            f"the model has {n_numbers:,} parameters up to {name} and would need {format_bytes(needed)} "
            f"to train; this machine has {format_bytes(limit)}"
        )
        raise CommandsError([Fault(path, message)])


def refuse_outputs(path: str, name: str, n_bytes: int) -> None:
    """Refuse a model whose outputs for a single picture this machine could not keep for the backward pass.

    Args:
        path: The layer that was added last.
        name: Its class.
        n_bytes: What the outputs up to there take for one picture.

    Raises:
        CommandsError: If they exceed the memory.
    """
    limit = memory_bytes()
    if n_bytes > limit:
        message = f"the outputs up to {name} take {format_bytes(n_bytes)} for one picture"
        raise CommandsError([Fault(path, f"{message}; this machine has {format_bytes(limit)}")])


def refuse_batch(input_shape: Sequence[int], n_pictures: int, *, kept_bytes: int = 0) -> None:
    """Refuse a batch that this machine could not hold, before any of it is made.

    Args:
        input_shape: (channels, height, width) of a picture as the model gets it, float32.
        n_pictures: In a batch.
        kept_bytes: What a training keeps of each picture on its way through the model, at the least.

    Raises:
        CommandsError: If they exceed the memory; says which batch size would not.
    """
    limit, each = memory_bytes(), math.prod(input_shape) * FLOAT_BYTES + kept_bytes
    if each * n_pictures > limit:
        shape = "×".join(f"{size:,}" for size in input_shape)
        message = (
            f"a batch of {n_pictures:,} pictures of {shape} numbers takes at least {format_bytes(each * n_pictures)}"
        )
        advice = f"at most {limit // each:,} would fit" if each <= limit else "make the pictures smaller by image_ops"
        raise CommandsError([Fault("batch_size", f"{message}; this machine has {format_bytes(limit)}; {advice}")])


class SizeGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses a tensor that this machine could not hold as soon as an operation on ``meta`` makes it.

    A layer's output may be small and what it makes on the way huge (a LocalResponseNorm of size 10^12).

    Args:
        path: Where the layer stands in the commands.
        name: Its class.
        n_pictures: Pictures in the batch; the size of one counts.
    """

    def __init__(self, path: str, name: str, *, n_pictures: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = path
        self.name = name
        self.n_pictures = n_pictures
        self.limit = memory_bytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at the sizes of what it made.

        Raises:
            CommandsError: If one of them exceeds the memory.
        """
        output = func(*args, **(kwargs or {}))
        for made in tree_leaves(output):
            if isinstance(made, Tensor):
                self._check(made)
        return output

    def _check(self, made: Tensor) -> None:
        n_bytes = made.numel() * made.element_size() // self.n_pictures
        if n_bytes > self.limit:
            shape = "×".join(f"{size:,}" for size in made.shape[1:]) or f"{made.numel():,}"
            message = f"{self.name} would make {shape} numbers of one picture, {format_bytes(n_bytes)}"
            raise CommandsError([Fault(self.path, f"{message}; this machine has {format_bytes(self.limit)}")])
