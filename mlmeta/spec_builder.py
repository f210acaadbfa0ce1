"""From commands to torch objects: the model, its criterion, optimizer, scheduler and the pictures' operations.

Every name goes through the allow-list of `mlmeta.commands.catalog`; a value that torch refuses becomes one clear
message. The optimizer and its scheduler are made in `mlmeta.models.optimizers`, layers in `mlmeta.models.shapes`.

What is recorded of an attempt's task and model, so that attempts can be compared: task.*, arch.*, meta-features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mlmeta.commands import catalog
from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import describe_architecture, walk_layers
from mlmeta.data.image_ops import build_image_ops
from mlmeta.data.transforms import build_target_transform, build_transform
from mlmeta.errors import BadInputError, CommandsError, Fault, shorten
from mlmeta.models.arguments import REFUSALS, explain_alone, make_named, quote_torch
from mlmeta.models.criteria import Criterion, make_criterion
from mlmeta.models.layers import first_tensor
from mlmeta.models.optimizers import build_optimizer, build_scheduler, read_arguments, steps_per_batch
from mlmeta.models.shapes import PROBE, LayerRow, ShapeTrace, construct_chain, trace_layers

__all__ = [
    "build_criterion",
    "build_image_ops",
    "build_model",
    "build_optimizer",
    "build_scheduler",
    "build_target_transform",
    "build_transform",
    "output_form",
    "steps_per_batch",
    "summarize_model",
]

Spec = Mapping[str, Any]
_PICTURE_CHANNELS = 3
# A criterion is tried on two pictures; some make K² numbers of them.
_TRIED_LABELS = 1_000
# What the last layer's outputs are, where they are not logits; these layers leave them what they are.
_KEEPS_FORM = ("Identity", "Flatten", "Unflatten")
_OUTPUT_FORMS = {
    "Sigmoid": "probabilities",
    "Hardsigmoid": "probabilities",
    "Softmax": "probabilities",
    "Softmax2d": "probabilities",
    "Softmin": "probabilities",
    "LogSoftmax": "log_probabilities",
    "LogSigmoid": "log_probabilities",
}


def build_model(model: Spec, *, n_labels: int, input_shape: Sequence[int]) -> nn.Module:
    """Build the network of the commands.

    Args:
        model: ``{"layers": [...]}`` or ``{"name": "resnet18"}``.
        n_labels: Number of labels, at least 2; the width of the output.
        input_shape: (channels, height, width) of a picture as the transforms give it.

    Returns:
        A module that maps float pictures (n, channels, height, width) to outputs (n, n_labels), its weights
        drawn with torch's global generator, on the CPU.

    Raises:
        CommandsError: If a layer is refused, does not fit what arrives, or the model would not fit in memory.
    """
    if model.get("name"):
        summarize_model(model, n_labels=n_labels, input_shape=input_shape)
        return _build_named(model["name"], n_labels=n_labels, input_shape=input_shape)
    layers, _ = trace_layers(model["layers"], n_labels=n_labels, input_shape=input_shape)
    return construct_chain(layers, "model.layers", device="cpu")


def summarize_model(
    model: Spec, *, n_labels: int, input_shape: Sequence[int], n_pictures: int = PROBE, training: bool = True
) -> list[LayerRow]:
    """Return the model's table, a row a layer, without computing anything or taking memory.

    A torchvision model has a row for each of its direct children.

    Args:
        model: As for `build_model`, with `n_labels` and `input_shape`.
        n_labels: Number of labels.
        input_shape: (channels, height, width) of a picture.
        n_pictures: How many are sent through it together.
        training: Whether layers do what they do in training.

    Raises:
        CommandsError: As `build_model`.
    """
    trace = ShapeTrace(n_labels, n_pictures, training)
    if model.get("name"):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _trace_named(model["name"], trace, input_shape=input_shape).rows
    return trace_layers(
        model["layers"], n_labels=n_labels, input_shape=input_shape, n_pictures=n_pictures, training=training
    )[1].rows


class _WeightsOnMeta(TorchFunctionMode):
    """Makes weights on ``meta`` and leaves a builder's own arithmetic, such as a RegNet's widths, real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, those that make weights with another device."""
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _trace_named(name: str, trace: ShapeTrace, *, input_shape: Sequence[int]) -> ShapeTrace:
    with _WeightsOnMeta():
        network = _build_named(name, n_labels=trace.n_labels, input_shape=input_shape).to("meta")
    network.train(trace.training)
    trace.weigh("model.name", name, network)
    for child_name, child in network.named_children():
        child.register_forward_hook(_row_hook(trace, child_name))
    begun: list[tuple[str, str, Sequence[int]]] = []
    for layer_name, layer in network.named_modules():
        layer.register_forward_pre_hook(partial(_note_begun, begun, layer_name))
    try:
        output = first_tensor(network(torch.empty((trace.n_pictures, *input_shape), device="meta")))
    except REFUSALS as error:
        if trace.n_pictures == 1:
            path, layer_class, shape = begun[-1]
            raise CommandsError([Fault(f"model.{path}", explain_alone(layer_class, shape))]) from None
        message = f"{_format(input_shape)} pictures do not fit {name}. torch says: {quote_torch(error)}"
        raise CommandsError([Fault("model.name", message)]) from None
    own = sum(p.numel() for p in network.parameters()) - trace.n_parameters
    if own:
        trace.add("model.name", "(own parameters)", output, own)
    return trace


def _note_begun(begun: list[tuple[str, str, Sequence[int]]], path: str, layer: nn.Module, inputs: Any) -> None:
    # What arrives at a layer of a DenseNet is a list.
    begun.append((path, type(layer).__name__, tree_leaves(inputs)[0].shape))


def _row_hook(trace: ShapeTrace, name: str) -> Callable[..., None]:
    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        n_parameters = sum(p.numel() for p in module.parameters())
        trace.add(f"model.{name}", type(module).__name__, first_tensor(output), n_parameters)

    return note


def _format(shape: Sequence[int]) -> str:
    return "×".join(str(size) for size in shape)


def _build_named(name: str, *, n_labels: int, input_shape: Sequence[int]) -> nn.Module:
    """Build a torchvision model with a head for the labels."""
    builder = catalog.find_entry("model", name, path="model.name").load()
    if input_shape[0] != _PICTURE_CHANNELS:
        message = (
            f"{name} takes pictures of {_PICTURE_CHANNELS} channels; {_format(input_shape)} arrives "
            f'(add {{"convert": {{"mode": "RGB"}}}} to image_ops)'
        )
        raise CommandsError([Fault("model.name", message)])
    arguments: dict[str, Any] = {"num_classes": n_labels}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        arguments |= {"image_size": input_shape[-1]}
    elif name.startswith("maxvit"):
        arguments |= {"input_size": tuple(input_shape[1:])}
    try:
        return cast(nn.Module, builder(weights=None, **arguments))
    except REFUSALS as error:
        message = f"{name} cannot be built for {_format(input_shape)} pictures. torch says: {quote_torch(error)}"
        raise CommandsError([Fault("model.name", message)]) from None


def output_form(model: Spec) -> str:
    """Return what a model's outputs are: logits, probabilities or log_probabilities, by its last layer."""
    names = [name for name in _names_in_order(model.get("layers") or ()) if name not in _KEEPS_FORM]
    return _OUTPUT_FORMS.get(names[-1], "logits") if names else "logits"


def _names_in_order(layers: Sequence[Spec]) -> Iterator[str]:
    """Yield the classes of the layers that follow each other, those of a Sequential in its place."""
    for layer in layers:
        if layer["name"] == "Sequential":
            yield from _names_in_order(layer["layers"])
        else:
            yield layer["name"]


def build_criterion(
    criterion: Spec, *, n_labels: int, outputs: str = "logits", targets: Tensor | None = None
) -> Criterion:
    """Build the criterion: a callable on outputs (n, n_labels) and class indices (n,) that gives a scalar.

    Args:
        criterion: ``{"name": "CrossEntropyLoss", …}``.
        n_labels: Number of labels.
        outputs: What the model gives, see `output_form`.
        targets: (n_labels, n_labels) rows that replace the one-hot rows, see `build_target_transform`.

    Raises:
        CommandsError: If torch refuses an argument, or the loss cannot be used so, see
            `mlmeta.models.criteria.make_criterion`.
    """
    name, arguments = criterion["name"], read_arguments(criterion)
    for key in ("weight", "pos_weight"):
        if arguments.get(key) is not None:
            arguments[key] = _read_weights(arguments[key], f"criterion.{key}")
    loss = make_named("criterion", name, arguments, path="criterion")
    try:
        made = make_criterion(loss, n_labels=n_labels, outputs=outputs, targets=targets)
        if n_labels <= _TRIED_LABELS:
            # torch checks some arguments only where it computes.
            guess_loss(made, 2)
    except BadInputError as error:
        raise CommandsError([Fault("criterion", str(error))]) from None
    except REFUSALS as error:
        raise CommandsError([Fault("criterion", f"{name} refuses its arguments: {quote_torch(error)}")]) from None
    return made


def _read_weights(weights: Any, path: str) -> Tensor:
    """Return a list of numbers as float32 (n_labels,); what is no such list is refused."""
    numbers = isinstance(weights, list | tuple) and all(type(weight) in (int, float) for weight in weights)
    if not numbers or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        message = "must be a list of numbers of 0 or above, one for each label"
        raise CommandsError([Fault(path, message, shorten(weights))])
    return torch.tensor(weights, dtype=torch.float32)


@torch.no_grad()
def guess_loss(criterion: Criterion, n: int, *, device: torch.device | str = "cpu") -> float:
    """Return the mean loss of even outputs for one picture of each of the first n labels.

    Args:
        criterion: On the device.
        n: At most `n_labels` of the criterion; some make n · n_labels² numbers of so many pictures.
        device: The criterion's.
    """
    n_labels = criterion.n_labels
    even = {"logits": 0.0, "probabilities": 1 / n_labels, "log_probabilities": -math.log(n_labels)}
    outputs = torch.full((n, n_labels), even[criterion.outputs], device=device)
    return float(criterion.batch_sum(criterion(outputs, torch.arange(n, device=device)), n)) / n


def describe_model(commands: TrainCommands, model: nn.Module) -> dict[str, Any]:
    """Return the params ``arch.*`` of the built model."""
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if layers := commands.model.get("layers"):
        return describe_architecture(walk_layers(layers), n_parameters=n_parameters)
    leaves = [(type(m).__name__, vars(m)) for m in model.modules() if not list(m.children())]
    return describe_architecture(leaves, n_parameters=n_parameters)
