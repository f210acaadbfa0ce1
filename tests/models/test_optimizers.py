from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlmeta.commands import catalog
from mlmeta.errors import CommandsError
from mlmeta.models.optimizers import build_optimizer, build_scheduler, steps_per_batch

Spec = dict[str, Any]
OPTIMIZERS = catalog.list_names("optimizer")
SCHEDULERS = catalog.list_names("scheduler")
# Two arguments of each optimizer that are not its defaults.
CHANGED: dict[str, Spec] = {
    "ASGD": {"lr": 0.05, "t0": 10.0},
    "Adadelta": {"lr": 2.0, "rho": 0.5},
    "Adafactor": {"lr": 0.05, "eps": [None, 0.01]},
    "Adagrad": {"lr": 0.1, "initial_accumulator_value": 0.1},
    "Adam": {"betas": [0.8, 0.9], "amsgrad": True},
    "AdamW": {"betas": "(0.8, 0.9)", "weight_decay": 0.1},
    "Adamax": {"lr": 0.1, "betas": [0.8, 0.9]},
    "LBFGS": {"max_iter": 3, "line_search_fn": "strong_wolfe"},
    "NAdam": {"momentum_decay": 0.01, "decoupled_weight_decay": True},
    "RAdam": {"betas": [0.5, 0.5], "weight_decay": 0.01},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Rprop": {"etas": [0.4, 1.5], "step_sizes": [1e-5, 1]},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Two labels apart by the sign of a feature, and a small network for them."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    pictures = torch.randn(32, 4)
    return model, pictures, (pictures[:, 0] > 0).long()


def train(optimizer: Optimizer, model: nn.Module, pictures: Tensor, labels: Tensor, *, n_steps: int) -> list[float]:
    losses: list[float] = []

    def compute_loss() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pictures), labels)
        loss.backward()
        return loss

    for _ in range(n_steps):
        losses.append(torch.as_tensor(optimizer.step(compute_loss)).item())  # type: ignore[arg-type]
    return [*losses, compute_loss().item()]


@pytest.mark.parametrize("changed", [False, True], ids=["defaults", "two arguments"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_steps_as_torchs_own_and_the_loss_falls(name: str, changed: bool) -> None:
    model, pictures, labels = make_problem()
    by_hand = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    by_hand.load_state_dict(model.state_dict())
    given = CHANGED[name] if changed else {}
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    arguments |= {"betas": (0.8, 0.9)} if isinstance(given.get("betas"), str) else {}

    losses = train(build_optimizer({"name": name, **given}, model.parameters()), model, pictures, labels, n_steps=3)
    reference = getattr(torch.optim, name)(by_hand.parameters(), **arguments)
    assert losses == train(reference, by_hand, pictures, labels, n_steps=3)
    assert losses[-1] < losses[0]


def test_the_changed_arguments_are_not_the_defaults() -> None:
    assert CHANGED.keys() == set(OPTIMIZERS)
    declared = {name: catalog.find_entry("optimizer", name).arguments for name in OPTIMIZERS}
    assert all(len(given) == 2 for given in CHANGED.values())
    assert all(declared[n][key].default != value for n, given in CHANGED.items() for key, value in given.items())


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"name": "Adam", "lr": 0.1, "betas": [2, 3]}, "Adam refuses its arguments: Invalid beta parameter at index 0"),
        ({"name": "Adam", "betas": [0.9]}, "Adam refuses its arguments"),
        ({"name": "NAdam", "betas": [0.9, 0.99, 0.999]}, "NAdam refuses its arguments: too many values to unpack"),
        ({"name": "Adam", "betas": 0.9}, "Adam refuses its arguments"),
        ({"name": "SGD", "lr": 0.1, "nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ({"name": "SGD", "foreach": True, "fused": True}, "SGD refuses its arguments"),
        ({"name": "Rprop", "etas": [2, 3]}, "Invalid eta values"),
        ({"name": "LBFGS", "line_search_fn": "brent"}, "only 'strong_wolfe' is supported"),
        ({"name": "Adagrad", "unknown": 1}, "Adagrad refuses its arguments: .*unknown"),
    ],
)
def test_refused_arguments_are_told_in_torchs_words(optimizer: Spec, said: str) -> None:
    with pytest.raises(CommandsError, match=said) as caught:
        build_optimizer(optimizer, nn.Linear(2, 2).parameters())
    assert [fault.path for fault in caught.value.faults] == ["optimizer"]
    assert caught.value.faults[0].came


@pytest.mark.parametrize("size", [0, 10**12])
def test_a_history_that_would_fill_the_memory_is_refused(size: int) -> None:
    with pytest.raises(CommandsError, match=r"optimizer.history_size: must lie between 1 and 10,000"):
        build_optimizer({"name": "LBFGS", "history_size": size}, nn.Linear(2, 2).parameters())


def test_a_model_without_weights_has_nothing_to_train() -> None:
    with pytest.raises(CommandsError, match="model: has no parameters, so there is nothing to train"):
        build_optimizer({"name": "SGD"}, nn.Flatten().parameters())


def test_trying_an_optimizer_changes_neither_weights_nor_random_numbers() -> None:
    layer = nn.Linear(2, 2)
    before, state = layer.weight.detach().clone(), torch.get_rng_state()
    build_optimizer({"name": "Adam", "lr": 0.1}, layer.parameters())
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


# Schedulers


def make_optimizer(name: str = "SGD", **arguments: Any) -> Optimizer:
    return build_optimizer({"name": name, "lr": 0.1, **arguments}, [nn.Parameter(torch.zeros(1))])


def run(optimizer: Optimizer, scheduler: LRScheduler, *, n_steps: int = 5) -> list[float]:
    rates = []
    for step in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step([1.0, 0.9, 0.9, 0.9, 0.9][step])
        else:
            scheduler.step()
    return [*rates, optimizer.param_groups[0]["lr"]]


def make_sequential(optimizer: Optimizer) -> LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


def make_chained(optimizer: Optimizer) -> LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    return lr_scheduler.ChainedScheduler(parts)


PARTS = [{"name": "ConstantLR", "factor": 0.1, "total_iters": 2}, {"name": "ExponentialLR", "gamma": 0.5}]
BY_HAND = {"SequentialLR": make_sequential, "ChainedScheduler": make_chained}
ARGUMENTS: dict[str, Spec] = {
    "ChainedScheduler": {"schedulers": PARTS},
    "ConstantLR": {"factor": 0.5, "total_iters": 2},
    "CosineAnnealingLR": {"T_max": 4, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 2, "mode": "triangular2"},
    "ExponentialLR": {"gamma": 0.5},
    "LinearLR": {"start_factor": 0.5, "total_iters": 3},
    "MultiStepLR": {"milestones": [1, 3], "gamma": 0.3},
    "OneCycleLR": {"max_lr": 0.5, "total_steps": 6},
    "PolynomialLR": {"total_iters": 4, "power": 2.0},
    "ReduceLROnPlateau": {"patience": 1, "factor": 0.5},
    "SequentialLR": {"schedulers": PARTS, "milestones": [2]},
    "StepLR": {"step_size": 2, "gamma": 0.2},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_sets_the_rates_that_torchs_own_sets(name: str) -> None:
    optimizer, other = make_optimizer(momentum=0.9), make_optimizer(momentum=0.9)
    spec = {"name": name, **ARGUMENTS[name]}
    scheduler = build_scheduler(spec, optimizer, n_epoch=None if steps_per_batch(spec) else 5)
    make = BY_HAND.get(name, lambda made: getattr(lr_scheduler, name)(made, **ARGUMENTS[name]))
    assert type(scheduler) is getattr(lr_scheduler, name)
    rates = run(optimizer, scheduler)
    assert rates == run(other, make(other))
    assert len(set(rates)) > 1


DEFAULTS = {
    name for name in SCHEDULERS if not any(a.required for a in catalog.find_entry("scheduler", name).arguments.values())
}


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_a_scheduler_that_needs_no_argument_is_built_without_any(name: str) -> None:
    optimizer = make_optimizer()
    rates = run(optimizer, build_scheduler({"name": name}, optimizer, n_epoch=5, n_batches=1))
    assert all(0 <= rate <= 0.1 for rate in rates)


def test_the_period_of_cosine_annealing_is_the_attempts_length() -> None:
    optimizer, other = make_optimizer(), make_optimizer()
    rates = run(optimizer, build_scheduler({"name": "CosineAnnealingLR"}, optimizer, n_epoch=5, n_batches=7))
    assert rates == run(other, lr_scheduler.CosineAnnealingLR(other, 5))
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_period_of_cosine_annealing_after_a_warm_up_is_what_is_left() -> None:
    optimizer, other = make_optimizer(), make_optimizer()
    warm_up = {"name": "LinearLR", "total_iters": 2}
    spec = {"name": "SequentialLR", "schedulers": [warm_up, {"name": "CosineAnnealingLR"}], "milestones": [2]}
    parts: list[Any] = [lr_scheduler.LinearLR(other, total_iters=2), lr_scheduler.CosineAnnealingLR(other, 3)]
    rates = run(optimizer, build_scheduler(spec, optimizer, n_epoch=5))
    assert rates == run(other, lr_scheduler.SequentialLR(other, parts, [2]))


@pytest.mark.parametrize("length", [{}, {"total_steps": None}, {"epochs": 5, "steps_per_epoch": 3}])
def test_one_cycle_is_as_long_as_the_attempt_in_batches(length: Spec) -> None:
    optimizer, other = make_optimizer(), make_optimizer()
    spec = {"name": "OneCycleLR", "max_lr": 0.3, **length}
    rates = run(optimizer, build_scheduler(spec, optimizer, n_epoch=5, n_batches=3), n_steps=14)
    assert rates == run(other, lr_scheduler.OneCycleLR(other, 0.3, total_steps=15), n_steps=14)


def test_one_cycle_inside_another_counts_epochs() -> None:
    optimizer, other = make_optimizer(), make_optimizer()
    spec = {"name": "ChainedScheduler", "schedulers": [{"name": "OneCycleLR", "max_lr": 0.3}]}
    rates = run(optimizer, build_scheduler(spec, optimizer, n_epoch=6, n_batches=100))
    assert rates == run(other, lr_scheduler.OneCycleLR(other, 0.3, total_steps=6))


@pytest.mark.parametrize(
    "spec",
    [{"name": "CyclicLR", "base_lr": 0.01, "max_lr": 0.2, "step_size_up": 2}, {"name": "OneCycleLR", "max_lr": 0.3}],
)
@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad", "ASGD", "RMSprop", "LBFGS"])
def test_a_cycle_moves_momentum_only_where_the_optimizer_has_any(name: str, spec: Spec) -> None:
    optimizer = make_optimizer(name)
    has_any = {"momentum", "betas"} & optimizer.defaults.keys()
    key = "momentum" if "momentum" in has_any else "betas"
    scheduler = build_scheduler(spec, optimizer, n_epoch=4, n_batches=2)
    seen = set()
    for _ in range(5):
        seen.add(optimizer.param_groups[0].get(key))
        optimizer.step(lambda: 0.0)
        scheduler.step()
    assert (len(seen) > 1) == bool(has_any)


@pytest.mark.parametrize(
    ("spec", "path", "said"),
    [
        ({"name": "CosineAnnealingLR"}, "scheduler.T_max", "CosineAnnealingLR needs it, since how long the attempt is"),
        ({"name": "OneCycleLR", "max_lr": 0.1}, "scheduler.total_steps", "OneCycleLR needs it"),
        (
            {"name": "ChainedScheduler", "schedulers": [PARTS[0], {"name": "CosineAnnealingLR"}]},
            "scheduler.schedulers.1.T_max",
            "needs it",
        ),
    ],
)
def test_a_length_that_is_left_out_and_not_known_is_asked_for(spec: Spec, path: str, said: str) -> None:
    with pytest.raises(CommandsError, match=said) as caught:
        build_scheduler(spec, make_optimizer())
    assert [fault.path for fault in caught.value.faults] == [path]


NESTED_STEP = {"name": "StepLR", "step_size": "two"}


@pytest.mark.parametrize(
    ("spec", "path", "said"),
    [
        ({"name": "StepLR", "step_size": 0}, "scheduler", "StepLR refuses its arguments: .*zero"),
        ({"name": "CosineAnnealingLR", "T_max": 0}, "scheduler", "CosineAnnealingLR refuses its arguments"),
        ({"name": "ConstantLR", "factor": 2.0}, "scheduler", "factor expected to be between 0 and 1"),
        ({"name": "MultiStepLR", "milestones": 3}, "scheduler", "MultiStepLR refuses its arguments"),
        ({"name": "ReduceLROnPlateau", "factor": 1.5}, "scheduler", "Factor should be < 1.0"),
        ({"name": "ReduceLROnPlateau", "mode": "max"}, "scheduler.mode", "must be 'min', since .*; got 'max'"),
        (
            {"name": "ChainedScheduler", "schedulers": [PARTS[0], {"name": "ReduceLROnPlateau", "mode": "max"}]},
            "scheduler.schedulers.1.mode",
            "must be 'min'",
        ),
        ({"name": "ExponentialLR", "gamma": -1.0}, "scheduler", "the learning rate would be -0.1 after 1 steps"),
        ({"name": "ExponentialLR", "gamma": 1e30}, "scheduler", r"the learning rate would be 1e\+59 after 2 steps"),
        (
            {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 49},
            "scheduler",
            "OneCycleLR ends after 49 steps, and there are 50; leave its length out",
        ),
        ({"name": "SequentialLR", "schedulers": PARTS, "milestones": []}, "scheduler", "SequentialLR refuses"),
        (
            {"name": "SequentialLR", "schedulers": [{"name": "ReduceLROnPlateau"}, PARTS[1]], "milestones": [1]},
            "scheduler",
            "SequentialLR refuses its arguments: .*ReduceLROnPlateau",
        ),
        (
            {"name": "ChainedScheduler", "schedulers": [PARTS[0], {**PARTS[0], "factor": 7.0}]},
            "scheduler.schedulers.1",
            "ConstantLR refuses its arguments",
        ),
    ],
)
def test_a_scheduler_that_torch_refuses_now_or_later_is_refused_at_once(spec: Spec, path: str, said: str) -> None:
    optimizer = make_optimizer()
    with pytest.raises(CommandsError, match=said) as caught:
        build_scheduler(spec, optimizer, n_epoch=10, n_batches=5)
    assert [fault.path for fault in caught.value.faults] == [path]
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "initial_lr" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [(None, False), ({"name": "StepLR"}, False), ({"name": "OneCycleLR"}, True), ({"name": "CyclicLR"}, True)],
)
def test_cycles_count_batches_and_the_rest_epochs(spec: Spec | None, expected: bool) -> None:
    assert steps_per_batch(spec) == expected
