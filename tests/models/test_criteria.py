from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from math import log, pi

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from mlmeta.errors import BadInputError
from mlmeta.models.criteria import SUPPORTED, UNSUPPORTED, Criterion, make_criterion

Array = npt.NDArray[np.float64]
K = 4
LABELS = torch.tensor([2, 0, 2, 1, 3])
WEIGHT = np.array([0.5, 2.0, 1.0, 3.0])
OUTPUTS = 1.5 * torch.randn(5, K, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
SOFT_ROWS = 0.7 * np.eye(K) + 0.1
TORCH_LOSSES = [name for name, value in vars(nn).items() if "Loss" in name and inspect.isclass(value)]
IN_BOTH = sorted(set(SUPPORTED) & set(TORCH_LOSSES))


def weights() -> Tensor:
    return torch.from_numpy(WEIGHT.copy())


def cosine_distance(left: Tensor, right: Tensor) -> Tensor:
    return 1 - nn.functional.cosine_similarity(left, right)


# The references: plain numpy, from the definitions; x (n, K) outputs, y (n,) labels.


def onehot(y: Array) -> Array:
    return np.eye(K)[y]


def log_softmax(x: Array) -> Array:
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def true_label(x: Array, y: Array) -> Array:
    return x[np.arange(len(y)), y]


def nll(x: Array, y: Array, weight: Array | None = None) -> float:
    w = np.ones(len(y)) if weight is None else weight[y]
    return -(w * true_label(log_softmax(x), y)).sum() / w.sum()


def smoothed_nll(x: Array, y: Array, smoothing: float) -> float:
    rows = (1 - smoothing) * onehot(y) + smoothing / K
    return -(rows * log_softmax(x)).sum() / len(y)


def binary(x: Array, t: Array, positive: Array | float = 1.0) -> Array:
    return -(positive * t * np.log(sigmoid(x)) + (1 - t) * np.log(1 - sigmoid(x)))


def hinges(x: Array, y: Array, margin: float = 1.0, p: int = 1) -> Array:
    """The (n, K) hinge of each label against the true one, 0 at the true one itself."""
    return np.maximum(0, margin - true_label(x, y)[:, None] + x) ** p * (1 - onehot(y))


def huber(error: Array, delta: float = 1.0) -> Array:
    return np.where(np.abs(error) < delta, error**2 / 2, delta * (np.abs(error) - delta / 2))


def poisson(rate: Array, log_rate: Array, t: Array) -> Array:
    return rate - t * log_rate


def hinge_embedding(x: Array, y: Array, margin: float = 1.0) -> Array:
    distance = -np.log(sigmoid(x))
    return np.where(onehot(y) == 1, distance, np.maximum(0, margin - distance))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def neighbours(x: Array, y: Array, i: int) -> tuple[list[Array], list[Array]]:
    """The other pictures and the prototypes: those of the label of picture i, and the rest."""
    points = [(x[m], y[m]) for m in range(len(y)) if m != i] + [(np.eye(K)[k], k) for k in range(K)]
    return [a for a, k in points if k == y[i]], [a for a, k in points if k != y[i]]


def cosine_pairs(x: Array, y: Array, margin: float = 0.0) -> list[float]:
    found = []
    for i, picture in enumerate(x):
        same, rest = neighbours(x, y, i)
        alike = [min(same, key=lambda point, z=picture: cosine(z, point)), np.eye(K)[y[i]]]
        unlike = [max(rest, key=lambda point, z=picture: cosine(z, point)), *np.delete(np.eye(K), y[i], 0)]
        found += [1 - cosine(picture, point) for point in alike]
        found += [max(0.0, cosine(picture, point) - margin) for point in unlike]
    return found


def euclid(a: Array, b: Array) -> float:
    return float(np.sqrt(((a - b + 1e-6) ** 2).sum()))


def manhattan(a: Array, b: Array) -> float:
    return float(np.abs(a - b + 1e-6).sum())


def cubic(a: Array, b: Array) -> float:
    return float((np.abs(a - b + 1e-6) ** 3).sum() ** (1 / 3))


def triplets(
    x: Array,
    y: Array,
    margin: float = 1.0,
    distance: Callable[[Array, Array], float] = euclid,
    swap: bool = False,
) -> list[float]:
    found = []
    for i, anchor in enumerate(x):
        same, rest = neighbours(x, y, i)
        far = max(same, key=lambda point, z=anchor: distance(z, point))
        near = min(rest, key=lambda point, z=anchor: distance(z, point))
        others = np.delete(np.eye(K), y[i], 0)
        for positive, negative in [(far, near), *[(np.eye(K)[y[i]], other) for other in others]]:
            away = distance(anchor, negative)
            away = min(away, distance(positive, negative)) if swap else away
            found.append(max(0.0, distance(anchor, positive) - away + margin))
    return found


Reference = Callable[[Array, Array], float]
REFERENCES: list[tuple[nn.Module, Reference]] = [
    (nn.CrossEntropyLoss(), lambda x, y: nll(x, y)),
    (nn.CrossEntropyLoss(weight=weights()), lambda x, y: nll(x, y, WEIGHT)),
    (nn.CrossEntropyLoss(label_smoothing=0.2), lambda x, y: smoothed_nll(x, y, 0.2)),
    (nn.CrossEntropyLoss(reduction="sum"), lambda x, y: len(y) * nll(x, y)),
    (nn.NLLLoss(), lambda x, y: nll(x, y)),
    (nn.NLLLoss(weight=weights()), lambda x, y: nll(x, y, WEIGHT)),
    (nn.NLLLoss(reduction="sum"), lambda x, y: len(y) * nll(x, y)),
    (nn.MultiMarginLoss(), lambda x, y: hinges(x, y).mean()),
    (nn.MultiMarginLoss(p=2), lambda x, y: hinges(x, y, p=2).mean()),
    (nn.MultiMarginLoss(margin=0.3), lambda x, y: hinges(x, y, 0.3).mean()),
    (
        nn.MultiMarginLoss(weight=weights()),
        lambda x, y: (WEIGHT[y][:, None] * hinges(x, y)).mean(),
    ),
    (nn.MultiMarginLoss(reduction="sum"), lambda x, y: hinges(x, y).sum() / K),
    (nn.BCEWithLogitsLoss(), lambda x, y: binary(x, onehot(y)).mean()),
    (nn.BCEWithLogitsLoss(weight=weights()), lambda x, y: (WEIGHT * binary(x, onehot(y))).mean()),
    (
        nn.BCEWithLogitsLoss(pos_weight=weights()),
        lambda x, y: binary(x, onehot(y), WEIGHT).mean(),
    ),
    (nn.BCEWithLogitsLoss(reduction="sum"), lambda x, y: binary(x, onehot(y)).sum()),
    (nn.BCELoss(), lambda x, y: binary(x, onehot(y)).mean()),
    (nn.BCELoss(weight=weights()), lambda x, y: (WEIGHT * binary(x, onehot(y))).mean()),
    (nn.BCELoss(reduction="sum"), lambda x, y: binary(x, onehot(y)).sum()),
    (nn.MultiLabelSoftMarginLoss(), lambda x, y: binary(x, onehot(y)).mean()),
    (
        nn.MultiLabelSoftMarginLoss(weight=weights()),
        lambda x, y: (WEIGHT * binary(x, onehot(y))).mean(),
    ),
    (nn.MultiLabelSoftMarginLoss(reduction="sum"), lambda x, y: binary(x, onehot(y)).sum() / K),
    (nn.MSELoss(), lambda x, y: ((x - onehot(y)) ** 2).mean()),
    (nn.MSELoss(reduction="sum"), lambda x, y: ((x - onehot(y)) ** 2).sum()),
    (nn.L1Loss(), lambda x, y: np.abs(x - onehot(y)).mean()),
    (nn.L1Loss(reduction="sum"), lambda x, y: np.abs(x - onehot(y)).sum()),
    (nn.SmoothL1Loss(), lambda x, y: huber(x - onehot(y)).mean()),
    (nn.SmoothL1Loss(beta=0.5), lambda x, y: (huber(x - onehot(y), 0.5) / 0.5).mean()),
    (nn.SmoothL1Loss(reduction="sum"), lambda x, y: huber(x - onehot(y)).sum()),
    (nn.HuberLoss(), lambda x, y: huber(x - onehot(y)).mean()),
    (nn.HuberLoss(delta=0.5), lambda x, y: huber(x - onehot(y), 0.5).mean()),
    (nn.HuberLoss(reduction="sum"), lambda x, y: huber(x - onehot(y)).sum()),
    (nn.KLDivLoss(), lambda x, y: nll(x, y)),
    (nn.KLDivLoss(reduction="batchmean"), lambda x, y: nll(x, y)),
    (nn.KLDivLoss(log_target=True), lambda x, y: nll(x, y)),
    (nn.KLDivLoss(reduction="sum"), lambda x, y: len(y) * nll(x, y)),
    (nn.PoissonNLLLoss(), lambda x, y: poisson(np.exp(x), x, onehot(y)).mean()),
    (
        nn.PoissonNLLLoss(log_input=False),
        lambda x, y: poisson(softplus(x), np.log(softplus(x) + 1e-8), onehot(y)).mean(),
    ),
    (nn.PoissonNLLLoss(full=True), lambda x, y: poisson(np.exp(x), x, onehot(y)).mean()),
    (nn.PoissonNLLLoss(reduction="sum"), lambda x, y: poisson(np.exp(x), x, onehot(y)).sum()),
    (nn.GaussianNLLLoss(), lambda x, y: ((x - onehot(y)) ** 2).mean() / 2),
    (
        nn.GaussianNLLLoss(full=True),
        lambda x, y: ((x - onehot(y)) ** 2).mean() / 2 + log(2 * pi) / 2,
    ),
    (nn.GaussianNLLLoss(reduction="sum"), lambda x, y: ((x - onehot(y)) ** 2).sum() / 2),
    (nn.SoftMarginLoss(), lambda x, y: softplus(-(2 * onehot(y) - 1) * x).mean()),
    (nn.SoftMarginLoss(reduction="sum"), lambda x, y: softplus(-(2 * onehot(y) - 1) * x).sum()),
    (nn.HingeEmbeddingLoss(), lambda x, y: hinge_embedding(x, y).mean()),
    (nn.HingeEmbeddingLoss(margin=3.0), lambda x, y: hinge_embedding(x, y, 3.0).mean()),
    (nn.HingeEmbeddingLoss(reduction="sum"), lambda x, y: hinge_embedding(x, y).sum()),
    (nn.MultiLabelMarginLoss(), lambda x, y: hinges(x, y).mean()),
    (nn.MultiLabelMarginLoss(reduction="sum"), lambda x, y: hinges(x, y).sum() / K),
    (nn.MarginRankingLoss(), lambda x, y: hinges(x, y, 0.0).sum() / len(y) / (K - 1)),
    (nn.MarginRankingLoss(margin=0.8), lambda x, y: hinges(x, y, 0.8).sum() / len(y) / (K - 1)),
    (nn.MarginRankingLoss(margin=0.8, reduction="sum"), lambda x, y: hinges(x, y, 0.8).sum()),
    (nn.CosineEmbeddingLoss(), lambda x, y: np.mean(cosine_pairs(x, y))),
    (nn.CosineEmbeddingLoss(margin=0.3), lambda x, y: np.mean(cosine_pairs(x, y, 0.3))),
    (nn.CosineEmbeddingLoss(reduction="sum"), lambda x, y: np.sum(cosine_pairs(x, y))),
    (nn.TripletMarginLoss(), lambda x, y: np.mean(triplets(x, y))),
    (nn.TripletMarginLoss(margin=0.3), lambda x, y: np.mean(triplets(x, y, 0.3))),
    (nn.TripletMarginLoss(p=1.0), lambda x, y: np.mean(triplets(sigmoid(x), y, distance=manhattan))),
    (nn.TripletMarginLoss(p=3.0), lambda x, y: np.mean(triplets(x, y, distance=cubic))),
    (nn.TripletMarginLoss(swap=True), lambda x, y: np.mean(triplets(x, y, swap=True))),
    (nn.TripletMarginLoss(reduction="sum"), lambda x, y: np.sum(triplets(x, y))),
    (nn.TripletMarginWithDistanceLoss(), lambda x, y: np.mean(triplets(x, y))),
    (
        nn.TripletMarginWithDistanceLoss(distance_function=cosine_distance, margin=0.5),
        lambda x, y: np.mean(triplets(x, y, 0.5, distance=lambda a, b: 1 - cosine(a, b))),
    ),
    (nn.TripletMarginWithDistanceLoss(reduction="sum"), lambda x, y: np.sum(triplets(x, y))),
]


def _spell_value(value: object) -> object:
    """Name a value the same in every process, so that tests can be shared out among several."""
    return "..." if torch.is_tensor(value) else getattr(value, "__name__", value)


def spell(loss: nn.Module) -> str:
    """Name a loss with the settings that are not torch's defaults."""
    changed = [
        name
        for name, parameter in inspect.signature(type(loss)).parameters.items()
        if getattr(loss, name, parameter.default) is not parameter.default
        and str(getattr(loss, name)) != str(parameter.default)
    ]
    values = [_spell_value(getattr(loss, name)) for name in changed]
    return f"{type(loss).__name__}({','.join(f'{n}={v}' for n, v in zip(changed, values, strict=True))})"


each_variant = pytest.mark.parametrize(("loss", "reference"), REFERENCES, ids=[spell(loss) for loss, _ in REFERENCES])
each_loss = pytest.mark.parametrize("name", IN_BOTH)


@pytest.mark.parametrize("name", TORCH_LOSSES)
def test_every_loss_of_torch_stands_in_exactly_one_table(name: str) -> None:
    assert (name in SUPPORTED) != (name in UNSUPPORTED)


def test_only_what_is_its_own_layer_or_for_sequences_or_an_alias_is_unsupported() -> None:
    assert set(UNSUPPORTED) == {
        "CTCLoss",
        "AdaptiveLogSoftmaxWithLoss",
        "LinearCrossEntropyLoss",
        "NLLLoss2d",
    }
    assert set(SUPPORTED) <= set(TORCH_LOSSES)


def test_every_supported_loss_has_a_reference() -> None:
    assert {type(loss).__name__ for loss, _ in REFERENCES} == set(SUPPORTED)


@each_variant
def test_value_equals_its_reference(loss: nn.Module, reference: Reference) -> None:
    got = make_criterion(loss, n_labels=K)(OUTPUTS, LABELS)
    assert got.shape == ()
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(reference(OUTPUTS.numpy(), LABELS.numpy()), rel=1e-7)


@each_variant
def test_value_of_one_picture_equals_its_reference(loss: nn.Module, reference: Reference) -> None:
    got = make_criterion(loss, n_labels=K)(OUTPUTS[1:2], LABELS[1:2])
    assert got.item() == pytest.approx(reference(OUTPUTS[1:2].numpy(), LABELS[1:2].numpy()), rel=1e-7)


@each_variant
def test_gradients_are_finite_and_not_all_zero(loss: nn.Module, reference: Reference) -> None:
    outputs = OUTPUTS.clone().requires_grad_()
    make_criterion(loss, n_labels=K)(outputs, LABELS).backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert outputs.grad.abs().sum() > 0


def teach(
    criterion: Criterion, last_layer: Callable[[Tensor], Tensor], n_steps: int = 150
) -> tuple[float, float, float]:
    """Return the loss before and after and the share of pictures whose argmax is their label."""
    torch.manual_seed(0)
    labels = torch.arange(12) % K
    free = torch.randn(12, K, requires_grad=True)
    assert (free.argmax(dim=1) == labels).float().mean() < 0.6
    optimizer = torch.optim.Adam([free], lr=0.1)
    first = criterion(last_layer(free), labels).item()
    for _ in range(n_steps):
        optimizer.zero_grad()
        criterion(last_layer(free), labels).backward()
        optimizer.step()
    outputs = last_layer(free)
    return first, criterion(outputs, labels).item(), (outputs.argmax(dim=1) == labels).float().mean().item()


@each_variant
def test_minimising_every_variant_teaches_the_argmax(loss: nn.Module, reference: Reference) -> None:
    first, last, accuracy = teach(make_criterion(deepcopy(loss).float(), n_labels=K), nn.Identity())
    assert last < first
    assert accuracy == 1.0


@pytest.mark.parametrize(
    ("last_layer", "outputs"),
    [
        (nn.Softmax(dim=1), "probabilities"),
        (nn.Sigmoid(), "probabilities"),
        (nn.LogSoftmax(dim=1), "log_probabilities"),
        (nn.LogSigmoid(), "log_probabilities"),
    ],
    ids=["Softmax", "Sigmoid", "LogSoftmax", "LogSigmoid"],
)
@each_loss
def test_minimising_teaches_the_argmax_after_any_last_layer(name: str, last_layer: nn.Module, outputs: str) -> None:
    criterion = make_criterion(getattr(nn, name)(), n_labels=K, outputs=outputs)
    first, last, accuracy = teach(criterion, last_layer)
    assert last < first
    assert accuracy == 1.0


@each_loss
def test_minimising_teaches_a_linear_layer_on_separable_features(name: str) -> None:
    torch.manual_seed(1)
    labels = torch.arange(40) % K
    features = 3 * torch.eye(K, 8)[labels] + 0.3 * torch.randn(40, 8)
    layer = nn.Linear(8, K)
    criterion = make_criterion(getattr(nn, name)(), n_labels=K)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    first = criterion(layer(features), labels).item()
    for _ in range(100):
        optimizer.zero_grad()
        criterion(layer(features), labels).backward()
        optimizer.step()
    assert criterion(layer(features), labels).item() < first
    assert (layer(features).argmax(dim=1) == labels).all()


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss", "KLDivLoss"])
@pytest.mark.parametrize("outputs", ["probabilities", "log_probabilities"])
def test_probabilities_that_do_not_sum_to_one_are_normalised_over_the_labels(name: str, outputs: str) -> None:
    p = OUTPUTS.sigmoid()
    given = p if outputs == "probabilities" else p.log()
    wanted = -np.log(true_label(p.numpy(), LABELS.numpy()) / p.numpy().sum(axis=1)).mean()
    got = make_criterion(getattr(nn, name)(), n_labels=K, outputs=outputs)(given, LABELS)
    assert got.item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss", "KLDivLoss"])
def test_loss_over_labels_is_the_same_whether_the_network_or_the_loss_takes_the_softmax(name: str) -> None:
    def value(outputs: Tensor, form: str) -> float:
        return make_criterion(getattr(nn, name)(), n_labels=K, outputs=form)(outputs, LABELS).item()

    wanted = pytest.approx(value(OUTPUTS, "logits"), rel=1e-9)
    assert value(OUTPUTS.softmax(dim=1), "probabilities") == wanted
    assert value(OUTPUTS.log_softmax(dim=1), "log_probabilities") == wanted


@pytest.mark.parametrize(
    "name",
    ["BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss", "SoftMarginLoss", "HingeEmbeddingLoss"],
)
def test_loss_of_each_label_is_the_same_whether_the_network_or_the_loss_takes_the_sigmoid(name: str) -> None:
    def value(outputs: Tensor, form: str) -> float:
        return make_criterion(getattr(nn, name)(), n_labels=K, outputs=form)(outputs, LABELS).item()

    wanted = pytest.approx(value(OUTPUTS, "logits"), rel=1e-9)
    assert value(OUTPUTS.sigmoid(), "probabilities") == wanted
    assert value(nn.functional.logsigmoid(OUTPUTS), "log_probabilities") == wanted


@pytest.mark.parametrize("name", ["MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "TripletMarginLoss"])
def test_values_and_embeddings_of_log_probabilities_are_their_probabilities(name: str) -> None:
    p = OUTPUTS.softmax(dim=1)
    of_p = make_criterion(getattr(nn, name)(), n_labels=K, outputs="probabilities")(p, LABELS)
    of_log_p = make_criterion(getattr(nn, name)(), n_labels=K, outputs="log_probabilities")(p.log(), LABELS)
    assert of_log_p.item() == pytest.approx(of_p.item(), rel=1e-9)
    assert of_p.item() == pytest.approx(make_criterion(getattr(nn, name)(), n_labels=K)(p, LABELS).item(), rel=1e-12)


@pytest.mark.parametrize("log_input", [True, False])
def test_poisson_rates_of_a_network_that_gives_probabilities_are_these(log_input: bool) -> None:
    p = OUTPUTS.softmax(dim=1)
    loss = nn.PoissonNLLLoss(log_input=log_input)
    wanted = pytest.approx(poisson(p.numpy(), p.log().numpy(), onehot(LABELS.numpy())).mean(), rel=1e-6)
    assert make_criterion(loss, n_labels=K, outputs="probabilities")(p, LABELS).item() == wanted
    assert make_criterion(loss, n_labels=K, outputs="log_probabilities")(p.log(), LABELS).item() == wanted


@pytest.mark.parametrize("outputs", ["probabilities", "log_probabilities"])
@each_loss
def test_saturated_probabilities_keep_loss_and_gradient_finite(name: str, outputs: str) -> None:
    p = torch.eye(K)[[0, 0, 1, 2]]
    given = (p if outputs == "probabilities" else p.log().clamp(min=-200)).requires_grad_()
    loss = make_criterion(getattr(nn, name)(), n_labels=K, outputs=outputs)(given, torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert loss.isfinite()
    assert given.grad is not None
    assert given.grad.isfinite().all()


@pytest.mark.parametrize("name", ["SoftMarginLoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "HingeEmbeddingLoss"])
def test_logits_that_are_very_wrong_keep_loss_and_gradient_finite(name: str) -> None:
    outputs = torch.tensor([[1000.0, 0.0, 0.0, -1000.0]], requires_grad=True)
    loss = make_criterion(getattr(nn, name)(reduction="sum"), n_labels=K)(outputs, torch.tensor([3]))
    loss.backward()
    assert 1000 <= loss.item() < 2010
    assert outputs.grad is not None
    assert outputs.grad[0, 3] == pytest.approx(-1.0)


@each_loss
def test_equal_outputs_keep_loss_and_gradient_finite(name: str) -> None:
    outputs = torch.zeros(3, K, requires_grad=True)
    loss = make_criterion(getattr(nn, name)(), n_labels=K)(outputs, torch.tensor([0, 0, 1]))
    loss.backward()
    assert loss.isfinite()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_loss
def test_half_precision_outputs_are_taken_in_float32_inside_autocast(name: str, dtype: torch.dtype) -> None:
    criterion = make_criterion(getattr(nn, name)(), n_labels=K)
    outputs = OUTPUTS.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(outputs, LABELS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(criterion(outputs.double(), LABELS).item(), rel=1e-4)


def test_weights_and_targets_move_with_the_criterion() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(K))
    criterion = make_criterion(loss, n_labels=K, targets=torch.eye(K)).double()
    assert criterion.loss.weight.dtype == torch.float64
    assert criterion.targets is not None
    assert criterion.targets.dtype == torch.float64
    assert set(criterion.state_dict()) == {"loss.weight"}


@pytest.mark.parametrize(
    ("name", "target_form"),
    [
        ("CrossEntropyLoss", "class_index"),
        ("MSELoss", "one_hot"),
        ("HingeEmbeddingLoss", "signed"),
        ("MultiLabelMarginLoss", "index_list"),
        ("MarginRankingLoss", "ranking"),
        ("CosineEmbeddingLoss", "pairs"),
        ("TripletMarginLoss", "triplets"),
    ],
)
def test_criterion_says_its_forms(name: str, target_form: str) -> None:
    loss = getattr(nn, name)()
    criterion = make_criterion(loss, n_labels=K, outputs="probabilities")
    assert criterion.loss is loss
    assert criterion.target_form == SUPPORTED[name].target_form == target_form
    assert criterion.outputs == "probabilities"


@pytest.mark.parametrize("name", [n for n, form in SUPPORTED.items() if form.target_form not in ("pairs", "triplets")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_batch_sums_of_parts_add_up_to_that_of_the_whole(name: str, reduction: str) -> None:
    criterion = make_criterion(getattr(nn, name)(reduction=reduction), n_labels=K)
    whole = criterion.batch_sum(criterion(OUTPUTS, LABELS), 5)
    parts = [
        criterion.batch_sum(criterion(OUTPUTS[:2], LABELS[:2]), 2),
        criterion.batch_sum(criterion(OUTPUTS[2:], LABELS[2:]), 3),
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-9)


def soft_cross_entropy(x: Array, y: Array) -> float:
    return -(SOFT_ROWS[y] * log_softmax(x)).sum() / len(y)


def soft_divergence(x: Array, y: Array) -> float:
    rows = SOFT_ROWS[y]
    return (rows * (np.log(rows) - log_softmax(x))).sum() / len(y)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (nn.CrossEntropyLoss(), soft_cross_entropy),
        (nn.KLDivLoss(), soft_divergence),
        (nn.KLDivLoss(log_target=True), soft_divergence),
        (nn.BCEWithLogitsLoss(), lambda x, y: binary(x, SOFT_ROWS[y]).mean()),
        (nn.BCELoss(), lambda x, y: binary(x, SOFT_ROWS[y]).mean()),
        (nn.MSELoss(), lambda x, y: ((x - SOFT_ROWS[y]) ** 2).mean()),
        (nn.GaussianNLLLoss(), lambda x, y: ((x - SOFT_ROWS[y]) ** 2).mean() / 2),
        (nn.PoissonNLLLoss(), lambda x, y: poisson(np.exp(x), x, SOFT_ROWS[y]).mean()),
        (nn.SoftMarginLoss(), lambda x, y: softplus(-(2 * SOFT_ROWS[y] - 1) * x).mean()),
    ],
    ids=lambda value: spell(value) if isinstance(value, nn.Module) else "",
)
def test_given_target_rows_take_the_place_of_one_hot_rows(loss: nn.Module, reference: Reference) -> None:
    criterion = make_criterion(loss, n_labels=K, targets=torch.from_numpy(SOFT_ROWS))
    wanted = reference(OUTPUTS.numpy(), LABELS.numpy())
    assert criterion(OUTPUTS, LABELS).item() == pytest.approx(wanted, rel=1e-7)
    assert teach(criterion, nn.Identity())[2] == 1.0


@pytest.mark.parametrize("name", [n for n, form in SUPPORTED.items() if form.target_range is not None])
def test_one_hot_target_rows_change_nothing(name: str) -> None:
    plain = make_criterion(getattr(nn, name)(), n_labels=K)
    given = make_criterion(getattr(nn, name)(), n_labels=K, targets=torch.eye(K))
    assert given(OUTPUTS, LABELS).item() == pytest.approx(plain(OUTPUTS, LABELS).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["SoftMarginLoss", "HingeEmbeddingLoss"])
def test_target_rows_that_are_signed_already_stay_so(name: str) -> None:
    plain = make_criterion(getattr(nn, name)(), n_labels=K)
    given = make_criterion(getattr(nn, name)(), n_labels=K, targets=2 * torch.eye(K) - 1)
    assert given(OUTPUTS, LABELS).item() == pytest.approx(plain(OUTPUTS, LABELS).item(), rel=1e-12)


def test_cross_entropy_with_target_rows_says_that_it_takes_class_probabilities() -> None:
    assert make_criterion(nn.CrossEntropyLoss(), n_labels=K, targets=torch.eye(K)).target_form == ("class_probability")


@pytest.mark.parametrize("name", [n for n, form in SUPPORTED.items() if form.target_range is None])
def test_loss_without_place_for_target_rows_says_so(name: str) -> None:
    with pytest.raises(BadInputError, match=f"{name}: it wants targets of the form .* target_transform"):
        make_criterion(getattr(nn, name)(), n_labels=K, targets=torch.eye(K))


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (nn.MSELoss(), torch.eye(3), r"float of shape \(4, 4\); got torch.float32 of shape \(3, 3\)"),
        (nn.MSELoss(), torch.eye(4, dtype=torch.int64), "got torch.int64"),
        (nn.MSELoss(), torch.eye(4) * torch.nan, "must be finite"),
        (nn.MSELoss(), torch.eye(4).flip(0), r"greatest at that label; it is not at \[0, 1, 2, 3\]"),
        (nn.MSELoss(), torch.ones(4, 4), "greatest at that label"),
        (nn.BCELoss(), 2 * torch.eye(4) - 1, r"in 0\.\.1; got -1\.\.1"),
        (nn.CrossEntropyLoss(), 2 * torch.eye(4), r"in 0\.\.1; got 0\.\.2"),
        (nn.PoissonNLLLoss(), 2 * torch.eye(4) - 1, r"in 0\.\.inf; got -1\.\.1"),
        (nn.HingeEmbeddingLoss(), 0.5 * torch.eye(4), "0 and 1, or -1 and 1"),
        (nn.CrossEntropyLoss(ignore_index=255), torch.eye(4), "ignore_index 255 does not go with targets"),
    ],
)
def test_target_rows_that_cannot_be_used_are_refused(loss: nn.Module, targets: Tensor, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make_criterion(loss, n_labels=K, targets=targets)


def takes(name: str, argument: str) -> bool:
    return argument in inspect.signature(getattr(nn, name).__init__).parameters


@pytest.mark.parametrize(
    ("name", "argument"),
    [(n, a) for n in IN_BOTH for a in ("weight", "pos_weight") if takes(n, a)],
)
def test_weights_that_are_not_one_for_each_label_are_refused(name: str, argument: str) -> None:
    loss = getattr(nn, name)(**{argument: torch.ones(3)})
    with pytest.raises(BadInputError, match=f"{name}: {argument} has 3 entries in shape .* 4 are wanted"):
        make_criterion(loss, n_labels=K)


def test_weights_in_another_shape_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"weight has 4 entries in shape \(4, 1\); 4 are wanted"):
        make_criterion(nn.BCELoss(weight=torch.ones(4, 1)), n_labels=K)


@each_loss
def test_reduction_none_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match=f"{name}: reduction must be mean or sum.*got 'none'"):
        make_criterion(getattr(nn, name)(reduction="none"), n_labels=K)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
@pytest.mark.parametrize("label", [0, K - 1])
def test_ignoring_a_label_is_refused(name: str, label: int) -> None:
    with pytest.raises(BadInputError, match=f"{name}: ignore_index {label} is a label"):
        make_criterion(getattr(nn, name)(ignore_index=label), n_labels=K)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_ignoring_what_is_no_label_is_allowed(name: str) -> None:
    plain, ignoring = getattr(nn, name)(), getattr(nn, name)(ignore_index=K)
    got = make_criterion(ignoring, n_labels=K)(OUTPUTS, LABELS)
    assert got.item() == make_criterion(plain, n_labels=K)(OUTPUTS, LABELS).item()


def test_all_faults_are_named_at_once() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3), reduction="none")
    with pytest.raises(BadInputError, match=r"outputs must be.*got 'logit'; reduction must.*; weight has 3"):
        make_criterion(loss, n_labels=K, outputs="logit")


def test_one_label_is_refused() -> None:
    with pytest.raises(BadInputError, match="at least 2 labels; got 1"):
        make_criterion(nn.CrossEntropyLoss(), n_labels=1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CTCLoss(), "CTCLoss cannot train a classifier. It aligns sequences"),
        (nn.AdaptiveLogSoftmaxWithLoss(8, 4, [2]), "itself the output layer"),
        (nn.Linear(2, 2), "Linear is not a loss of torch.nn; allowed: CrossEntropyLoss, "),
        (type("MSELos", (nn.MSELoss,), {})(), "Did you mean torch's 'MSELoss'"),
        (type("MSELoss", (nn.L1Loss,), {})(), "MSELoss is not a loss of torch.nn"),
    ],
    ids=["CTCLoss", "AdaptiveLogSoftmaxWithLoss", "Linear", "subclass", "namesake"],
)
def test_what_is_not_in_the_table_is_refused(loss: nn.Module, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make_criterion(loss, n_labels=K)


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (torch.zeros(5, 3), LABELS),
        (torch.zeros(5, K, 1), LABELS),
        (torch.zeros(K), LABELS),
        (torch.zeros(4, K), LABELS),
        (torch.zeros(5, K), torch.zeros(5, K, dtype=torch.int64)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(outputs: Tensor, labels: Tensor) -> None:
    with pytest.raises(BadInputError, match=r"\(n, 4\) and labels of shape \(n,\) are wanted; got"):
        make_criterion(nn.MSELoss(), n_labels=K)(outputs, labels)
