"""The test of an attempt: figures against scikit-learn, the child run, weights that are checked."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mlmeta.commands.parsing import parse_test_commands, parse_train_commands
from mlmeta.errors import CommandsError, NotFoundError, PicturesError, WeightsError
from mlmeta.evaluate import evaluate_attempt
from mlmeta.reports.attempt_files import count_confusions, score_labels
from mlmeta.train import run_attempt
from mlmeta.training.evaluation import Measured, compute_metrics, score_probabilities


@pytest.fixture
def attempt(store: str, toy_document: dict[str, Any]) -> str:
    commands = parse_train_commands({**toy_document, "n_epoch": 2, "optimizer": {"name": "SGD", "lr": 0.05}})
    return run_attempt(commands, base_dir=Path())[0]


def evaluate(document: dict[str, Any]) -> tuple[str, dict[str, float]]:
    return evaluate_attempt(parse_test_commands(document), base_dir=Path())


def read_rows(run_id: str, name: str, folder: Path) -> list[dict[str, str]]:
    file = MlflowClient().download_artifacts(run_id, name, str(folder))
    with Path(file).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_test_alone_gives_the_figures_of_the_test_after_training(attempt: str) -> None:
    before = MlflowClient().get_run(attempt).data.metrics
    _, metrics = evaluate({"run_id": attempt})
    assert metrics == pytest.approx({key: before[key] for key in metrics}, rel=1e-6)


def test_a_test_alone_is_a_child_run_that_also_writes_to_the_attempt(attempt: str) -> None:
    run_id, metrics = evaluate({"model_name": "colours", "limit": 5})
    child, parent = MlflowClient().get_run(run_id), MlflowClient().get_run(attempt)
    assert child.data.tags["mlflow.parentRunId"] == attempt
    assert child.data.params["limit"] == "5"
    assert child.data.params["test.n_pictures"] == "5"
    assert child.info.status == "FINISHED"
    assert child.data.metrics["accuracy"] == parent.data.metrics["accuracy"] == metrics["accuracy"]
    assert parent.data.tags["mlmeta.status"] == "Complete"
    assert parent.info.status == "FINISHED"


def test_an_attempt_trained_only_is_complete_after_its_test(store: str, toy_document: dict[str, Any]) -> None:
    run_id, _, metrics = run_attempt(parse_train_commands(toy_document), base_dir=Path(), test=False)
    assert metrics == {}
    assert MlflowClient().get_run(run_id).data.tags["mlmeta.status"] == "Trained"
    evaluate({"model_name": "colours"})
    assert MlflowClient().get_run(run_id).data.tags["mlmeta.status"] == "Complete"


def test_tables_agree_with_scikit_learn(attempt: str, tmp_path: Path) -> None:
    metrics = MlflowClient().get_run(attempt).data.metrics
    predictions = read_rows(attempt, "predictions.csv", tmp_path)
    truth = [row["label"] for row in predictions]
    predicted = [row["predicted"] for row in predictions]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", labels=sorted(set(truth))))
    assert [row["correct"] == "1" for row in predictions] == [a == b for a, b in zip(truth, predicted, strict=True)]
    per_class = read_rows(attempt, "per_class.csv", tmp_path)
    assert sum(int(row["n_pictures"]) for row in per_class) == len(predictions)
    matrix = read_rows(attempt, "confusion_matrix.csv", tmp_path)
    assert sum(int(row[row["true label"]]) for row in matrix) == sum(row["correct"] == "1" for row in predictions)


@pytest.mark.parametrize("n_labels", [3, 6, 9])
def test_metrics_of_outputs_agree_with_scikit_learn(n_labels: int) -> None:
    generator = torch.Generator().manual_seed(n_labels)
    # Rounded, so that labels tie; the last two labels are never the true one.
    outputs = torch.randn(200, n_labels, generator=generator).round(decimals=1)
    labels = torch.randint(0, n_labels - 2, (200,), generator=generator)
    shares = score_probabilities(outputs, "logits")
    truth, predicted = labels.numpy(), outputs.argmax(1).numpy()
    loss = float(torch.nn.functional.cross_entropy(outputs, labels))
    assert loss == pytest.approx(log_loss(truth, shares, labels=range(n_labels)), rel=1e-5)
    expected = {
        "accuracy": accuracy_score(truth, predicted),
        "test_loss": loss,
        "macro_f1": f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0),
    }
    if n_labels > 5:
        expected["top5_accuracy"] = top_k_accuracy_score(truth, shares, k=5, labels=np.arange(n_labels))
    assert compute_metrics(Measured(outputs, labels, loss), shares) == expected


def test_scores_of_labels_agree_with_scikit_learn() -> None:
    truth, predicted = np.random.default_rng(0).integers(0, [[4], [5]], (2, 50))
    matrix = count_confusions(truth, predicted, n_labels=6)
    assert np.array_equal(matrix, confusion_matrix(truth, predicted, labels=range(6)))
    *expected, _ = precision_recall_fscore_support(truth, predicted, labels=range(6), zero_division=0)
    np.testing.assert_array_equal(score_labels(matrix), expected)


@pytest.mark.parametrize("form", ["logits", "probabilities", "log_probabilities"])
def test_shares_are_probabilities_whatever_the_outputs_are(form: str) -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    outputs = {"logits": logits, "probabilities": logits.softmax(1), "log_probabilities": logits.log_softmax(1)}[form]
    shares = score_probabilities(outputs, form)
    assert shares == pytest.approx(logits.double().softmax(1).numpy(), abs=1e-6)


def test_other_pictures_may_be_tested_on(attempt: str, colours: Path) -> None:
    _, metrics = evaluate({"run_id": attempt, "data": {"source": "folder", "path": str(colours), "test_fraction": 0.9}})
    assert metrics["accuracy"] > 0


def test_pictures_may_be_named(attempt: str, tmp_path: Path) -> None:
    run_id, _ = evaluate({"run_id": attempt, "ids": ["red/00.png", "blue/01.png"]})
    assert {row["id"] for row in read_rows(run_id, "predictions.csv", tmp_path)} == {"red/00.png", "blue/01.png"}


def test_labels_in_another_order_are_still_the_attempts_own(attempt: str) -> None:
    _, metrics = evaluate({"run_id": attempt})
    _, reordered = evaluate({"run_id": attempt, "label_names": ["blue", "red", "green"]})
    assert reordered["accuracy"] == metrics["accuracy"]


def test_some_labels_may_be_tested_alone(attempt: str, tmp_path: Path) -> None:
    run_id, _ = evaluate({"run_id": attempt, "label_names": ["blue", "red"]})
    assert {row["label"] for row in read_rows(run_id, "predictions.csv", tmp_path)} == {"blue", "red"}


def test_an_unknown_label_is_named_with_the_nearest(attempt: str) -> None:
    with pytest.raises(CommandsError, match="Did you mean 'blue'"):
        evaluate({"run_id": attempt, "label_names": ["blu", "red"]})


def test_an_unknown_picture_is_named_with_the_nearest(attempt: str) -> None:
    with pytest.raises(PicturesError, match=r"red/000\.png"):
        evaluate({"run_id": attempt, "ids": ["red/000.png"]})


def weights_file(run_id: str) -> Path:
    uri = MlflowClient().get_run(run_id).info.artifact_uri
    return Path(str(uri).removeprefix("file://")) / "models" / "colours.pt"


def test_weights_that_were_changed_are_refused(attempt: str) -> None:
    file = weights_file(attempt)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="SHA-256"):
        evaluate({"run_id": attempt})


def test_weights_of_another_network_are_refused(attempt: str) -> None:
    layers = [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": 7},
              {"name": "LazyLinear", "out_features": "n_labels"}]  # fmt: skip
    with pytest.raises(WeightsError, match="does not fit the model"):
        evaluate({"run_id": attempt, "model": {"layers": layers}})


def test_weights_that_are_gone_are_not_found(attempt: str) -> None:
    weights_file(attempt).unlink()
    with pytest.raises(NotFoundError, match=r"models/colours\.pt"):
        evaluate({"run_id": attempt})


def test_a_test_that_fails_leaves_the_attempt_as_it_was(attempt: str) -> None:
    before = MlflowClient().get_run(attempt).data
    with pytest.raises(PicturesError):
        evaluate({"run_id": attempt, "ids": ["nothing.png"]})
    after = MlflowClient().get_run(attempt).data
    assert (after.metrics, after.tags) == (before.metrics, before.tags)


def test_the_attempts_own_relative_paths_hold_wherever_the_test_starts(
    store: str, toy_document: dict[str, Any], colours: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = {**toy_document, "data": {"source": "folder", "path": colours.name}}
    run_attempt(parse_train_commands(document), base_dir=colours.parent)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate({"model_name": "colours"})[1]["accuracy"] > 0


def test_train_commands_are_also_test_commands(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    commands = parse_train_commands({**toy_document, "test": {"limit": 7}})
    run_attempt(commands, base_dir=Path())
    run_id, _ = evaluate({**toy_document, "test": {"limit": 7}})
    assert MlflowClient().get_run(run_id).data.params["limit"] == "7"
