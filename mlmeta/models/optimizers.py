"""The optimizer and the scheduler of its learning rate, made and tried out.

torch checks some arguments only when they are used: betas of the wrong length in the first step, a step size of 0 in
the second epoch. Both are therefore tried on a few numbers before the training starts.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from mlmeta.commands.catalog import read_value
from mlmeta.commands.validation import explain_watched
from mlmeta.errors import CommandsError, Fault, shorten
from mlmeta.models.arguments import REFUSALS, explain_refusal, make_named

Spec = Mapping[str, Any]
_PER_BATCH = ("CyclicLR", "OneCycleLR")
_TRIED_STEPS = 1_000
# LBFGS keeps that many pairs of vectors as long as the model, and makes a list of that length in each step.
_MAX_HISTORY = 10_000
# It looks at one batch that many times, and where its tolerances are never met, all of them.
_MAX_ITERATIONS = 1_000
# Each is stepped a thousand times to try it.
_MAX_SCHEDULERS = 100


def read_arguments(spec: Spec) -> dict[str, Any]:
    """Return the arguments of a named object, without its name and with older values read."""
    return {key: read_value(value) for key, value in spec.items() if key != "name"}


def build_optimizer(optimizer: Spec, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build the optimizer over a model's parameters.

    Args:
        optimizer: ``{"name": "SGD", "lr": 0.001, …}``.
        parameters: What it trains.

    Raises:
        CommandsError: If torch refuses an argument, or there is no parameter to train.
    """
    trainable = list(parameters)
    if not trainable:
        raise CommandsError([Fault("model", "has no parameters, so there is nothing to train")])
    name, arguments = optimizer["name"], _tuples(read_arguments(optimizer))
    for key, limit in (("history_size", _MAX_HISTORY), ("max_iter", _MAX_ITERATIONS)):
        number = arguments.get(key)
        if isinstance(number, int) and not 1 <= number <= limit:
            raise CommandsError([Fault(f"optimizer.{key}", f"must lie between 1 and {limit:,}", shorten(number))])
    _try_optimizer(name, arguments, trainable[0].device)
    return cast(Optimizer, make_named("optimizer", name, {"params": trainable, **arguments}, path="optimizer"))


def _tuples(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with lists as tuples, as optimizers want their betas."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def _try_optimizer(name: str, arguments: dict[str, Any], device: torch.device) -> None:
    """Take two steps on four numbers, since some arguments are checked only there."""
    numbers = nn.Parameter(torch.ones(2, 2, device=device))
    few = {key: min(value, 2) if key == "max_iter" else value for key, value in arguments.items()}
    optimizer = make_named("optimizer", name, {"params": [numbers], **few}, path="optimizer")

    def compute_loss() -> Tensor:
        optimizer.zero_grad()
        loss = numbers.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    try:
        for _ in range(2):
            optimizer.step(compute_loss)
    except REFUSALS as error:
        raise explain_refusal(name, arguments, error, path="optimizer") from None


def build_scheduler(
    scheduler: Spec, optimizer: Optimizer, *, n_epoch: int | None = None, n_batches: int | None = None
) -> LRScheduler:
    """Build the learning rate's scheduler.

    Args:
        scheduler: ``{"name": "StepLR", …}``; SequentialLR and ChainedScheduler hold ``schedulers``.
        optimizer: The optimizer whose rate it sets.
        n_epoch: Epochs of the attempt; fills in the ``T_max`` of CosineAnnealingLR and the length of OneCycleLR.
        n_batches: Batches an epoch; fills in the length of OneCycleLR, which counts batches.

    Returns:
        The scheduler; it has set the first rate. Inside others each scheduler counts epochs, and in a SequentialLR
        the length that is filled in is that of its own part.

    Raises:
        CommandsError: If torch refuses an argument, at once or in one of the first 1,000 steps; if a length is
            left out and not known; if a OneCycleLR ends before the attempt; if a ReduceLROnPlateau waits for a rise.
    """
    if (count := _count_schedulers(scheduler)) > _MAX_SCHEDULERS:
        message = f"there may be at most {_MAX_SCHEDULERS} schedulers, those inside others too"
        raise CommandsError([Fault("scheduler", message, f"{count:,}")])
    per_batch = steps_per_batch(scheduler)
    n_steps = n_epoch * n_batches if per_batch and n_epoch and n_batches else None if per_batch else n_epoch
    _try_scheduler(scheduler, optimizer, n_steps)
    return _build_scheduler(scheduler, optimizer, "scheduler", n_steps)


def _count_schedulers(scheduler: Spec) -> int:
    return 1 + sum(map(_count_schedulers, scheduler.get("schedulers", ())))


def steps_per_batch(scheduler: Spec | None) -> bool:
    """Return whether a scheduler counts batches (CyclicLR, OneCycleLR); the others count epochs."""
    return scheduler is not None and scheduler["name"] in _PER_BATCH


def _build_scheduler(scheduler: Spec, optimizer: Optimizer, path: str, n_steps: int | None) -> LRScheduler:
    name, arguments = scheduler["name"], read_arguments(scheduler)
    if message := explain_watched(scheduler):
        raise CommandsError([Fault(f"{path}.mode", message, shorten(arguments["mode"]))])
    if "schedulers" in arguments:
        parts = _part_lengths(name, arguments, n_steps)
        arguments["schedulers"] = [
            _build_scheduler(child, optimizer, f"{path}.schedulers.{index}", parts.get(index, n_steps))
            for index, child in enumerate(arguments["schedulers"])
        ]
    _fill_length(name, arguments, path, n_steps)
    if name in _PER_BATCH and "cycle_momentum" not in arguments:
        arguments["cycle_momentum"] = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
    built = make_named("scheduler", name, {"optimizer": optimizer, **arguments}, path=path)
    if isinstance(built, OneCycleLR) and n_steps and built.total_steps < n_steps:
        message = f"ends after {built.total_steps:,} steps, and there are {n_steps:,}; leave its length out"
        raise CommandsError([Fault(path, f"OneCycleLR {message}")])
    return cast(LRScheduler, built)


def _part_lengths(name: str, arguments: Spec, n_steps: int | None) -> dict[int, int]:
    """Return how many steps each scheduler of a SequentialLR runs for, where that is known."""
    milestones = arguments.get("milestones")
    if name != "SequentialLR" or n_steps is None or not isinstance(milestones, list | tuple):
        return {}
    if not all(isinstance(milestone, int) for milestone in milestones):
        return {}
    edges = [0, *milestones, n_steps]
    return {index: max(1, end - start) for index, (start, end) in enumerate(itertools.pairwise(edges))}


def _fill_length(name: str, arguments: dict[str, Any], path: str, n_steps: int | None) -> None:
    key = {"CosineAnnealingLR": "T_max", "OneCycleLR": "total_steps"}.get(name)
    if key is None or arguments.get(key) is not None or arguments.get("epochs") is not None:
        return
    if n_steps is None:
        message = f"{name} needs it, since how long the attempt is is not known here"
        raise CommandsError([Fault(f"{path}.{key}", message)])
    arguments[key] = n_steps


class _Still(Optimizer):
    """An optimizer that has the rates of another and changes nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's has three overloads
        """Do nothing."""


def _try_scheduler(scheduler: Spec, optimizer: Optimizer, n_steps: int | None) -> None:
    """Run the scheduler over the first steps on an optimizer of one number with the same rates."""
    probe = _Still([nn.Parameter(torch.zeros(1))], dict(optimizer.defaults))
    rates = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    probe.param_groups[0].update(rates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = _build_scheduler(scheduler, probe, "scheduler", n_steps)
        try:
            for step in range(min(n_steps or 3, _TRIED_STEPS)):
                probe.step()
                _check_rate(probe.param_groups[0]["lr"], step)
                _step(built, metric=1.0)
        except REFUSALS as error:
            raise explain_refusal(scheduler["name"], read_arguments(scheduler), error, path="scheduler") from None


def _step(scheduler: LRScheduler, *, metric: float) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(metric)
    else:
        scheduler.step()


def _check_rate(rate: Any, step: int) -> None:
    # An annealed rate may end a rounding error below 0; weights are float32, and so is what they are changed by.
    if not -1e-9 <= rate <= torch.finfo(torch.float32).max:
        raise ValueError(f"the learning rate would be {float(rate):g} after {step} steps")
