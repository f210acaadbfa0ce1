"""Scores of frozen features: beside scikit-learn, and where a model's head is."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import BadInputError
from mlmeta.spec_builder import build_model
from mlmeta.training import transferability
from mlmeta.training.preparation import prepare_training
from mlmeta.training.transferability import (
    draw_pictures,
    find_head,
    find_margin,
    is_better,
    make_probe,
    read_features,
    score_neighbours,
)

SHAPE = (3, 16, 16)
CONV = {"name": "Conv2d", "in_channels": "auto", "out_channels": 4, "kernel_size": 3, "padding": 1}
LINEAR = {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}


def draw_features(seed: int, *, n: int, n_labels: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, n)
    centres = rng.normal(0, 1, (n_labels, 6))
    return torch.tensor(centres[labels] + rng.normal(0, 1, (n, 6))).float(), torch.tensor(labels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_two_labels_score_as_scikit_learn_leaving_one_out(seed: int, k: int) -> None:
    """With one neighbour, and with two labels and an odd number, there are no equal votes to decide."""
    features, labels = draw_features(seed, n=60, n_labels=2)
    ours = score_neighbours(features, labels, k=k)
    k = 1 if k == 2 else k  # of two votes for two labels the nearer one counts
    classifier = KNeighborsClassifier(n_neighbors=k, metric="cosine")
    assert ours == pytest.approx(cross_val_score(classifier, features, labels, cv=LeaveOneOut()).mean())


@pytest.mark.parametrize("seed", range(4))
def test_many_labels_score_as_scikit_learn_where_votes_are_not_equal(seed: int) -> None:
    features, labels = draw_features(seed, n=80, n_labels=6)
    nearest = KNeighborsClassifier(n_neighbors=5, metric="cosine").fit(features, labels)
    places = nearest.kneighbors(return_distance=False)  # each row left out of its own neighbours
    right = 0
    for row, others in enumerate(places):
        votes = Counter(labels[others].tolist())
        tied = [label for label, n in votes.items() if n == max(votes.values())]
        # The nearer neighbours decide: the larger sum of cosines among the labels with equal votes.
        unit = nn.functional.normalize(features.double(), dim=1)
        sums = {one: sum(float(unit[row] @ unit[i]) for i in others if int(labels[i]) == one) for one in tied}
        right += max(sums, key=sums.__getitem__) == int(labels[row])
    assert score_neighbours(features, labels) == pytest.approx(right / len(labels))


def test_the_size_of_features_does_not_matter() -> None:
    features, labels = draw_features(0, n=50, n_labels=3)
    scaled = features * torch.linspace(0.1, 100, 50)[:, None]
    assert score_neighbours(features, labels) == score_neighbours(scaled, labels)


def test_features_that_say_nothing_score_as_chance_does() -> None:
    features = torch.tensor(np.random.default_rng(0).normal(size=(400, 8)))
    assert score_neighbours(features, torch.arange(400) % 4) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_features_that_are_not_finite_score_nothing(odd: float) -> None:
    features = torch.eye(4)
    features[0, 0] = odd
    assert score_neighbours(features, torch.zeros(4, dtype=torch.int64)) == 0.0


def test_a_few_pictures_are_scored_too() -> None:
    assert score_neighbours(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64)) == 0.0
    assert score_neighbours(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)) == 1.0
    assert score_neighbours(torch.ones(2, 3), torch.arange(2)) == 0.0


@pytest.mark.parametrize(("untrained", "n"), [(0.2, 100), (0.5, 500), (0.9, 50)])
def test_the_margin_is_two_standard_errors_of_the_untrained_share(untrained: float, n: int) -> None:
    spread = np.random.default_rng(0).binomial(n, untrained, 200_000).std() / n
    assert find_margin(untrained, n) == pytest.approx(2 * spread, rel=0.02)
    assert is_better(untrained + find_margin(untrained, n) + 0.001, untrained, n)
    assert not is_better(untrained + find_margin(untrained, n) - 0.001, untrained, n)


def test_an_equal_score_is_never_better() -> None:
    """Also at 0 and at 1, where the standard error is nothing."""
    assert not any(is_better(score, score, 100) for score in (0.0, 0.5, 1.0))


def build(*layers: dict[str, Any]) -> nn.Module:
    return build_model({"layers": list(layers)}, n_labels=5, input_shape=SHAPE)


def test_the_head_of_a_list_of_layers_is_its_last_layer_with_weights() -> None:
    model = build(CONV, {"name": "ReLU"}, {"name": "Flatten"}, LINEAR, {"name": "LogSoftmax"})
    head = find_head(model, SHAPE)
    assert head.layer is dict(model.named_modules())["3"]
    assert head.keys == {"3.weight", "3.bias"}
    assert head.n_features == 4 * 16 * 16


def test_a_norm_behind_the_head_belongs_to_it() -> None:
    model = build({"name": "Flatten"}, LINEAR, {"name": "BatchNorm1d", "num_features": "auto"})
    assert {key.partition(".")[0] for key in find_head(model, SHAPE).keys} == {"1", "2"}


def test_a_head_inside_a_sequential_is_found() -> None:
    model = build(CONV, {"name": "Flatten"}, {"name": "Sequential", "layers": [{"name": "ReLU"}, LINEAR]})
    assert find_head(model, SHAPE).keys == {"2.1.weight", "2.1.bias"}


def test_a_residual_at_the_end_is_the_head_as_a_whole() -> None:
    inner = {**LINEAR, "out_features": 8}
    model = build({"name": "Flatten"}, inner, {"name": "Residual", "layers": [inner, {"name": "ReLU"}, LINEAR]})
    head = find_head(model, SHAPE)
    assert head.keys == {key for key in model.state_dict() if key.startswith("2.")}
    assert head.n_features == 8


def test_a_residual_in_the_middle_is_no_head() -> None:
    model = build({"name": "Residual", "layers": [CONV, CONV]}, {"name": "Flatten"}, LINEAR)
    assert find_head(model, SHAPE).keys == {"2.weight", "2.bias"}


def test_a_convolution_as_head_gives_the_mean_over_its_pixels(toy_document: dict[str, Any]) -> None:
    last = {**CONV, "out_channels": "n_labels"}
    layers = [CONV, last, {"name": "AdaptiveAvgPool2d", "output_size": 1}, {"name": "Flatten"}]
    prepared = prepare_training(parse_train_commands({**toy_document, "model": {"layers": layers}}), base_dir=Path())
    head = find_head(prepared.model, prepared.task.input_shape)
    features = read_features(prepared.model, head, prepared.validation)
    pictures = torch.cat([pictures for pictures, _ in prepared.validation.in_order()])
    expected = prepared.model[0](pictures).mean(dim=(2, 3))  # type: ignore[index]
    assert torch.allclose(features, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc."),
        ("mobilenet_v3_small", "classifier.3."),
        ("squeezenet1_1", "classifier.1."),
        ("vit_b_16", "heads.head."),
    ],
)
def test_the_head_of_a_model_of_torchvision_is_the_layer_that_gives_the_labels(name: str, head: str) -> None:
    shape = (3, 224, 224) if name == "vit_b_16" else (3, 64, 64)
    model = build_model({"name": name}, n_labels=5, input_shape=shape)
    assert find_head(model, shape).keys == {f"{head}weight", f"{head}bias"}


def test_the_head_behind_attention_is_found_though_evaluation_takes_a_short_way() -> None:
    encoder = {"name": "TransformerEncoderLayer", "d_model": "auto", "nhead": 1, "dim_feedforward": 8}
    model = build({"name": "Flatten", "end_dim": 2}, encoder, {"name": "Flatten"}, LINEAR)
    assert find_head(model, SHAPE).keys == {"3.weight", "3.bias"}


def test_a_model_without_weights_has_no_head() -> None:
    with pytest.raises(BadInputError, match="no layer has weights"):
        find_head(nn.Sequential(nn.Flatten(), nn.ReLU()), SHAPE)


def test_finding_the_head_leaves_no_hook_and_no_number_changed() -> None:
    model = build(CONV, {"name": "BatchNorm2d", "num_features": "auto"}, {"name": "Flatten"}, LINEAR)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    find_head(model, SHAPE)
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_pictures_are_drawn_in_the_labels_shares_the_same_each_time(toy_document: dict[str, Any]) -> None:
    task = prepare_training(parse_train_commands(toy_document), base_dir=Path()).task
    drawn = draw_pictures(task, seed=3, n=30)
    whole = Counter(task.select("train").labels.tolist())
    for label, n in Counter(drawn.labels.tolist()).items():
        assert n == pytest.approx(30 * whole[label] / whole.total(), abs=1)
    training = {picture.id for picture in task.select("train").pictures}
    assert len({picture.id for picture in drawn.pictures} & training) == 30
    assert [p.id for p in draw_pictures(task, seed=3, n=30).pictures] == [p.id for p in drawn.pictures]
    assert [p.id for p in draw_pictures(task, seed=4, n=30).pictures] != [p.id for p in drawn.pictures]


def test_features_that_would_fill_the_memory_are_read_of_fewer_pictures(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_training(parse_train_commands(toy_document), base_dir=Path())
    head = find_head(prepared.model, prepared.task.input_shape)
    monkeypatch.setattr(transferability, "MAX_NUMBERS", 10 * head.n_features)
    assert make_probe(prepared.model, head, prepared.task, batch_size=8, seed=0).n == 10


def test_a_trained_network_scores_more_than_an_untrained_one_on_its_pictures(toy_document: dict[str, Any]) -> None:
    from conftest import MemoryRecorder

    from mlmeta.training.loop import train_attempt

    prepared = prepare_training(parse_train_commands(toy_document), base_dir=Path())
    head = find_head(prepared.model, prepared.task.input_shape)
    probe = make_probe(prepared.model, head, prepared.task, batch_size=8, seed=0)
    untrained = probe.score()
    train_attempt(prepared, MemoryRecorder())
    assert is_better(probe.score(), untrained, probe.n)
