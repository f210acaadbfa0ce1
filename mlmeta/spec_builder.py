"""From commands to torch objects: the model, its criterion, optimizer, scheduler and the pictures' operations.

Every name goes through the allow-list of `mlmeta.catalog`; a value that torch refuses becomes one clear message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlmeta import catalog
from mlmeta.criteria import Criterion, make_criterion
from mlmeta.errors import CommandsError, Fault, shorten
from mlmeta.image_ops import build_image_ops
from mlmeta.layers import first_tensor
from mlmeta.shapes import LayerRow, ShapeTrace, construct_chain, refuse_oversize, trace_layers
from mlmeta.transforms import build_target_transform, build_transform
from mlmeta.values import read_value

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
_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, AssertionError, ArithmeticError, AttributeError)
# What the last layer's outputs are, where they are not logits.
_OUTPUT_FORMS = {
    "Sigmoid": "probabilities",
    "Softmax": "probabilities",
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
        drawn with torch's global generator, on torch's default device.

    Raises:
        CommandsError: If a layer is refused, does not fit what arrives, or the model would not fit in memory.
    """
    if model.get("name"):
        summarize_model(model, n_labels=n_labels, input_shape=input_shape)
        return _build_named(model["name"], n_labels=n_labels, input_shape=input_shape)
    layers, _ = trace_layers(model["layers"], n_labels=n_labels, input_shape=input_shape)
    return construct_chain(layers, "model.layers", device="cpu")


def summarize_model(model: Spec, *, n_labels: int, input_shape: Sequence[int]) -> list[LayerRow]:
    """Return the model's table, a row a layer, without computing anything or taking memory.

    Raises:
        CommandsError: As `build_model`.
    """
    if not model.get("name"):
        return trace_layers(model["layers"], n_labels=n_labels, input_shape=input_shape)[1].rows
    with torch.device("meta"):
        network = _build_named(model["name"], n_labels=n_labels, input_shape=input_shape)
    trace = ShapeTrace(n_labels)
    for name, child in network.named_children():
        child.register_forward_hook(_row_hook(trace, name))
    n_parameters = sum(p.numel() for p in network.parameters())
    refuse_oversize("model.name", model["name"], n_parameters=n_parameters)
    try:
        output = first_tensor(network(torch.empty((2, *input_shape), device="meta")))
    except _REFUSALS as error:
        shape = "×".join(str(size) for size in input_shape)
        message = f"pictures of {shape} do not fit {model['name']}. torch says: {' '.join(str(error).split())[:300]}"
        raise CommandsError([Fault("model.name", message)]) from None
    own = n_parameters - trace.n_parameters
    if own:
        trace.add("model.name", "(own parameters)", output, own)
    return trace.rows


def _row_hook(trace: ShapeTrace, name: str) -> Callable[..., None]:
    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        n_parameters = sum(p.numel() for p in module.parameters())
        trace.add(f"model.{name}", type(module).__name__, first_tensor(output), n_parameters)

    return note


def _build_named(name: str, *, n_labels: int, input_shape: Sequence[int]) -> nn.Module:
    """Build a torchvision model with a head for the labels."""
    builder = catalog.find_entry("model", name, path="model.name").load()
    arguments: dict[str, Any] = {"num_classes": n_labels}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        arguments |= {"image_size": input_shape[-1]}
    try:
        return cast(nn.Module, builder(weights=None, **arguments))
    except _REFUSALS as error:
        raise CommandsError([Fault("model.name", f"{name} cannot be built: {error}")]) from None


def output_form(model: Spec) -> str:
    """Return what a model's outputs are: logits, probabilities or log_probabilities, by its last layer."""
    layers = model.get("layers") or [{"name": ""}]
    last = layers[-1]
    while last["name"] == "Sequential":
        last = last["layers"][-1]
    return _OUTPUT_FORMS.get(last["name"], "logits")


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
        CommandsError: If torch refuses an argument.
        BadInputError: If the loss cannot be used so, see `mlmeta.criteria.make_criterion`.
    """
    arguments = _read_arguments(criterion)
    for key in ("weight", "pos_weight"):
        if isinstance(arguments.get(key), list | tuple):
            arguments[key] = torch.tensor(arguments[key], dtype=torch.float32)
    loss = _make("criterion", criterion["name"], arguments, "criterion")
    return make_criterion(loss, n_labels=n_labels, outputs=outputs, targets=targets)


def build_optimizer(optimizer: Spec, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build the optimizer over a model's parameters.

    Raises:
        CommandsError: If torch refuses an argument, or there is no parameter to train.
    """
    trainable = list(parameters)
    if not trainable:
        raise CommandsError([Fault("model", "has no parameters, so there is nothing to train")])
    arguments = _tuples(_read_arguments(optimizer))
    return cast(Optimizer, _make("optimizer", optimizer["name"], {"params": trainable, **arguments}, "optimizer"))


def build_scheduler(
    scheduler: Spec, optimizer: Optimizer, *, n_epoch: int | None = None, n_batches: int | None = None
) -> LRScheduler:
    """Build the learning rate's scheduler.

    Args:
        scheduler: ``{"name": "StepLR", …}``; SequentialLR and ChainedScheduler hold ``schedulers``.
        optimizer: The optimizer whose rate it sets.
        n_epoch: Epochs of the attempt: fills in OneCycleLR's length and CosineAnnealingLR's ``T_max``.
        n_batches: Batches an epoch, likewise.

    Raises:
        CommandsError: If torch refuses an argument.
    """
    return _build_scheduler(scheduler, optimizer, "scheduler", n_epoch, n_batches)


def _build_scheduler(
    scheduler: Spec, optimizer: Optimizer, path: str, n_epoch: int | None, n_batches: int | None
) -> LRScheduler:
    name, arguments = scheduler["name"], _read_arguments(scheduler)
    if "schedulers" in arguments:
        arguments["schedulers"] = [
            _build_scheduler(child, optimizer, f"{path}.schedulers.{index}", n_epoch, n_batches)
            for index, child in enumerate(arguments["schedulers"])
        ]
    if name == "OneCycleLR" and n_epoch and n_batches and not arguments.keys() & {"total_steps", "epochs"}:
        arguments["total_steps"] = n_epoch * n_batches
    if name == "CyclicLR" and "cycle_momentum" not in arguments:
        arguments["cycle_momentum"] = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
    return cast(LRScheduler, _make("scheduler", name, {"optimizer": optimizer, **arguments}, path))


def steps_per_batch(scheduler: Spec | None) -> bool:
    """Return whether a scheduler counts batches (CyclicLR, OneCycleLR); the others count epochs."""
    return scheduler is not None and scheduler["name"] in ("CyclicLR", "OneCycleLR")


def _read_arguments(spec: Spec) -> dict[str, Any]:
    return {key: read_value(value) for key, value in spec.items() if key != "name"}


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with lists as tuples, as optimizers want their betas."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def _make(role: str, name: str, arguments: Spec, path: str) -> Any:
    """Make the object of a name.

    Raises:
        CommandsError: If its class refuses the arguments; in its own words.
    """
    cls = catalog.find_entry(role, name, path=path).load()
    try:
        return cls(**arguments)
    except _REFUSALS as error:
        shown = {key: value for key, value in arguments.items() if key not in ("params", "optimizer", "schedulers")}
        message = f"{name} refuses its arguments: {' '.join(str(error).split())[:300]}"
        raise CommandsError([Fault(path, message, shorten(shown, 200))]) from None
