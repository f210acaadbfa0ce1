"""What a model gets right: loss and accuracy of a validation, all figures and files of a test.

The test set is read here and nowhere else, once, for the report.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlmeta.commands.parsing import make_test_commands
from mlmeta.data.batches import Batches, use_channels_last
from mlmeta.data.pictures import choose_pictures
from mlmeta.data.task import Task
from mlmeta.errors import PicturesError
from mlmeta.models.criteria import Criterion
from mlmeta.models.layers import forward_pictures
from mlmeta.models.weights import StateDict
from mlmeta.reports.attempt_files import count_confusions, score_labels, write_test_report
from mlmeta.spec_builder import output_form
from mlmeta.status import Status
from mlmeta.training.preparation import Prepared
from mlmeta.training.progress import Recorder


@dataclass(frozen=True)
class Measured:
    """A model's answers for some pictures.

    Attributes:
        outputs: float32 (n, n_labels), as the model gives them.
        labels: int64 (n,), the true class indices.
        loss: Mean of the criterion over pictures.
    """

    outputs: Tensor
    labels: Tensor
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of pictures whose greatest output is that of their label, 0 to 1."""
        return float((self.outputs.argmax(dim=1) == self.labels).float().mean())

    @property
    def n_predicted(self) -> int:
        """How many labels the pictures are taken for."""
        return len(set(self.outputs.argmax(dim=1).tolist()))


@torch.inference_mode()
def measure_model(model: nn.Module, criterion: Criterion, batches: Batches) -> Measured:
    """Run a model over pictures without training it.

    Args:
        model: On the batches' device.
        criterion: Likewise.
        batches: At least one picture.
    """
    model.eval()
    outputs, labels = [], []
    total = torch.zeros((), device=batches.device)
    for pictures, truth in batches.in_order():
        given = forward_pictures(model, pictures).float()
        total += criterion.batch_sum(criterion(given, truth), len(truth))
        outputs.append(given.cpu())
        labels.append(truth.cpu())
    return Measured(torch.cat(outputs), torch.cat(labels), float(total) / len(batches))


def score_probabilities(outputs: Tensor, form: str) -> npt.NDArray[np.float64]:
    """Return the share of each label, (n, n_labels), rows adding up to 1, from outputs of any form."""
    given = outputs.double()
    if form == "probabilities":
        given = given.clamp_min(1e-12).log()
    return torch.softmax(given, dim=1).numpy()


def compute_metrics(measured: Measured, shares: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return accuracy, test_loss, macro_f1 and, for more than five labels, top5_accuracy.

    macro_f1 is the mean over the labels that occur among the true ones. Of equal shares the later label counts as the
    likelier, as in scikit-learn.
    """
    truth, n_labels = measured.labels.numpy(), shares.shape[1]
    matrix = count_confusions(truth, measured.outputs.argmax(dim=1).numpy(), n_labels=n_labels)
    _, _, f1 = score_labels(matrix)
    metrics = {
        "accuracy": float(matrix.trace() / len(truth)),
        "test_loss": measured.loss,
        "macro_f1": float(f1[matrix.any(axis=1)].mean()),
    }
    if n_labels > 5:
        likeliest = np.argsort(np.nan_to_num(shares, nan=0.0), axis=1, kind="stable")[:, -5:]
        metrics["top5_accuracy"] = float((likeliest == truth[:, None]).any(axis=1).mean())
    return metrics


@dataclass(frozen=True)
class TestPlan:
    """What a test runs on, beside the model: draw and batch."""

    __test__ = False  # not a test case, whatever its name says to pytest

    limit: int
    ids: tuple[str, ...]
    seed: int
    batch_size: int


def test_model(
    model: nn.Module,
    criterion: Criterion,
    task: Task,
    plan: TestPlan,
    *,
    form: str,
    recorder: Recorder,
    name: str,
) -> dict[str, float]:
    """Test a model on the test part of a task and record all that a test gives.

    Args:
        model: With its weights, on the device to test on.
        criterion: Gives test_loss.
        task: The pictures.
        plan: Which of them.
        form: What the model's outputs are, see `mlmeta.spec_builder.output_form`.
        recorder: Takes metrics, params ``test.*``, tables and plots.
        name: Of the attempt, for titles.

    Returns:
        The metrics.

    Raises:
        PicturesError: If there is no picture to test on.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    chosen = task.decoded.select(choose_pictures(task.pictures, limit=plan.limit, ids=plan.ids, seed=plan.seed))
    if not chosen.pictures:
        raise PicturesError("data: none of the pictures to test on can be read")
    recorder.set_status(Status.TESTING)
    batches = task.batches(
        chosen, batch_size=plan.batch_size, device=device, channels_last=use_channels_last(model, device)
    )
    measured = measure_model(model, criterion, batches)
    shares = score_probabilities(measured.outputs, form)
    metrics = compute_metrics(measured, shares)
    recorder.log_data(name=f"{name} test", digest=task.pictures.digest, source=task.pictures.source, context="test")
    recorder.log_params(
        {f"test.{key}": value for key, value in
         {"limit": plan.limit, "seed": plan.seed, "n_pictures": len(chosen.pictures)}.items()}
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_test_report(Path(folder), chosen, measured.labels.numpy(), shares, task.pictures.label_names, title=name)
        recorder.log_files(Path(folder))
    recorder.log_metrics({key: value for key, value in metrics.items() if math.isfinite(value)})
    recorder.set_status(Status.COMPLETE)
    return metrics


def check_test(prepared: Prepared) -> None:
    """Refuse a test without pictures before hours of training.

    Raises:
        PicturesError: If the commands' section ``test`` chooses none.
    """
    section = prepared.commands.test
    choose_pictures(prepared.task.pictures, limit=section.limit, ids=section.ids, seed=prepared.commands.seed)


def test_trained(prepared: Prepared, state: StateDict, recorder: Recorder) -> dict[str, float]:
    """Test the weights of a training as its commands' section ``test`` says; return the metrics.

    Raises:
        PicturesError: If there is no picture to test on.
    """
    commands = prepared.commands
    recorder.log_document("test_commands.json", make_test_commands(commands).document())
    prepared.model.load_state_dict(state)
    plan = TestPlan(commands.test.limit, tuple(commands.test.ids), commands.seed, commands.batch_size)
    return test_model(
        prepared.model, prepared.criterion, prepared.task, plan,
        form=output_form(commands.model), recorder=recorder, name=commands.model_name,
    )  # fmt: skip


# Not test cases, whatever their names say to pytest.
test_model.__test__ = False  # type: ignore[attr-defined]
test_trained.__test__ = False  # type: ignore[attr-defined]
