"""Finds attempts in MLflow, gives their documents and files back, and writes the note that people read first."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import NotFoundError, suggest
from mlmeta.status import Status
from mlmeta.tracking.store import explain_stale, list_experiments, open_client

# Holds the commands of an attempt until their artifact is there.
COMMANDS_TAG = "mlmeta.commands"


@dataclass(frozen=True)
class AttemptRecord:
    """An attempt as it stands in MLflow.

    Attributes:
        label_names: In the order of the model's outputs.
        commands_dir: What relative paths in its commands are relative to.
    """

    run_id: str
    name: str
    experiment_id: str
    commands: TrainCommands
    label_names: list[str]
    commands_dir: Path
    weights_sha256: str
    status: str


def find_attempt(*, name: str | None = None, run_id: str | None = None) -> AttemptRecord:
    """Return an attempt by its run id, or the newest one of a name that has weights.

    Raises:
        NotFoundError: If there is none, or it has no weights; names the nearest.
    """
    client = open_client()
    run = get_attempt_run(client, run_id) if run_id else newest_runs(client, str(name))[0]
    tags = run.data.tags
    if "mlmeta.weights_sha256" not in tags:
        raise NotFoundError(
            f"the attempt {run.info.run_name} ({run.info.run_id}) has no weights: its status is "
            f"{tags.get('mlmeta.status', 'unknown')}"
        )
    return AttemptRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment_id=run.info.experiment_id,
        commands=read_commands(client, run),
        label_names=json.loads(read_text(client, run.info.run_id, "label_names.json")),
        commands_dir=Path(tags["mlmeta.commands_dir"]),
        weights_sha256=tags["mlmeta.weights_sha256"],
        status=tags.get("mlmeta.status", ""),
    )


def read_commands(client: MlflowClient, run: Run) -> TrainCommands:
    """Return the train commands of an attempt.

    Raises:
        NotFoundError: If the run does not have them.
        CommandsError: If they are not valid.
    """
    run_id = run.info.run_id
    text = run.data.tags.get(COMMANDS_TAG) or read_text(client, run_id, "train_commands.json")
    return parse_train_commands(json.loads(text), source=f"train_commands.json of run {run_id}")


def get_attempt_run(client: MlflowClient, run_id: str) -> Run:
    """Return the run of an attempt.

    Raises:
        NotFoundError: If there is no such run, or it is no attempt.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise NotFoundError(f"run_id: the tracking store has no run {run_id!r}") from None
    if run.data.tags.get("mlmeta.kind") != "attempt":
        raise NotFoundError(f"run_id: the run {run_id} is no attempt of mlmeta")
    return run


def newest_runs(client: MlflowClient, name: str) -> list[Run]:
    """Return some attempts of a name: those with weights first, and the newest of them first.

    Raises:
        NotFoundError: If there is none; names the nearest.
    """
    filters = "tags.`mlmeta.kind` = 'attempt'"
    experiments = list_experiments(client)
    wanted = f"{filters} and attributes.run_name = '{name}'"
    runs = client.search_runs(experiments, wanted, order_by=["attributes.start_time DESC"], max_results=50)
    if runs:
        return sorted(runs, key=lambda run: "mlmeta.weights_sha256" not in run.data.tags)
    recent = client.search_runs(experiments, filters, order_by=["attributes.start_time DESC"], max_results=1000)
    hint = suggest(name, {run.info.run_name for run in recent}, f"; there are {len(recent)} attempts of other names")
    raise NotFoundError(f"model_name: there is no attempt named {name!r}{hint}")


def find_ended(run_ids: Iterable[str]) -> list[str]:
    """Return those of the runs whose attempt has ended for good: nothing will go on with it."""
    client, ended = open_client(), []
    for run_id in run_ids:
        with contextlib.suppress(MlflowException):
            status = client.get_run(run_id).data.tags.get("mlmeta.status")
            ended += [run_id] if status in (Status.COMPLETE, Status.DIVERGED) else []
    return ended


def read_text(client: MlflowClient, run_id: str, path: str) -> str:
    """Return a text artifact.

    Raises:
        NotFoundError: If the run does not have it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError) as error:
            stale = explain_stale(client, run_id)
            raise NotFoundError(f"the run {run_id} has no artifact {path}: {error}{stale}") from error


def download_weights(attempt: AttemptRecord, folder: Path) -> Path:
    """Fetch an attempt's .pt file into a folder.

    Raises:
        NotFoundError: If it is not there.
    """
    path = f"models/{attempt.commands.model_name}.pt"
    client = open_client()
    try:
        return Path(client.download_artifacts(attempt.run_id, path, str(folder)))
    except (MlflowException, OSError) as error:
        words = f"the attempt {attempt.name} ({attempt.run_id}) has no artifact {path}: {error}"
        raise NotFoundError(words + explain_stale(client, attempt.run_id)) from None


def write_document(client: MlflowClient, run_id: str) -> None:
    """Log the Attempt document of a run; see `make_document`."""
    document = make_document(run_id, client=client)
    client.log_text(run_id, json.dumps(document, indent=2, ensure_ascii=False), "attempt.json")


def make_document(run_id: str, *, client: MlflowClient | None = None) -> dict[str, Any]:
    """Return the Attempt document of a run: its commands unchanged, its curve, its result.

    Raises:
        NotFoundError: If the run has no commands.
    """
    client = client or open_client()
    run = client.get_run(run_id)
    train = json.loads(run.data.tags.get(COMMANDS_TAG) or read_text(client, run_id, "train_commands.json"))
    has_test = any(item.path == "test_commands.json" for item in client.list_artifacts(run_id))
    test = json.loads(read_text(client, run_id, "test_commands.json")) if has_test else None
    history = sorted(client.get_metric_history(run_id, "train_loss"), key=lambda metric: metric.step)
    return build_document(
        run_id, run.info.run_name, train=train, test=test, losses=[metric.value for metric in history],
        tags=run.data.tags, params=run.data.params, metrics=run.data.metrics,
    )  # fmt: skip


def build_document(
    run_id: str,
    name: str,
    *,
    train: Any,
    test: Any,
    losses: Sequence[float],
    tags: Mapping[str, str],
    params: Mapping[str, str],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Return the Attempt document of what a run holds: its commands, training losses by epoch, and last metrics.

    A loss that is not finite becomes null.
    """
    return {
        "id": run_id,
        "name": name,
        "training_commands": train,
        "training_losses": [loss if math.isfinite(loss) else None for loss in losses],
        "n_epoch": len(losses),
        "testing_commands": test,
        "accuracy": metrics.get("accuracy"),
        "status": tags.get("mlmeta.status", Status.INCOMPLETE),
        # The params are of the test that the train commands asked for; one by itself may have another limit.
        "limit": int((test or {}).get("limit", params.get("test.limit", 0))),
    }


def write_note(client: MlflowClient, run_id: str) -> None:
    """Log the short Markdown summary of a run, its result first, as the note that MLflow shows."""
    client.set_tag(run_id, "mlflow.note.content", _describe_run(client, client.get_run(run_id)))


def _describe_run(client: MlflowClient, run: Run) -> str:
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    status = tags.get("mlmeta.status", "")
    if "accuracy" in metrics:
        result = f"**{status}: accuracy {metrics['accuracy']:.1%}**, test loss {metrics.get('test_loss', math.nan):.4g}"
    elif "mlmeta.stop_reason" in tags:
        result = f"**{status}**: {tags['mlmeta.stop_reason']}"
    elif "train_loss" in metrics:
        result = f"**{status}**, training loss {metrics['train_loss']:.4g}"
    else:
        result = f"**{status}**: {tags.get('mlmeta.error', 'nothing was trained')}"
    if "mlmeta.attempt" in tags:
        return f"{result}\n\nA test of the attempt {tags['mlmeta.attempt']}."
    task = (
        f"{params.get('task.n_labels')} labels, {params.get('task.n_train')} training and {params.get('task.n_test')} "
        f"test pictures of {params.get('task.width')}×{params.get('task.height')}; "
        f"{int(params.get('arch.n_parameters', 0)):,} parameters"
    )
    # A server that made the run says where its pages are.
    page = f"\n\n[In mlmeta]({tags['mlmeta.page']}attempts/{run.info.run_id})" if "mlmeta.page" in tags else ""
    # Two blanks at the end of a line are a new line in Markdown.
    account = tags.get("mlmeta.data_account", "").replace("\n", "  \n")
    parts = (result, f"{task}.", account, _compare_with_incumbent(client, run))
    return "\n\n".join(filter(None, parts)) + page


def _compare_with_incumbent(client: MlflowClient, run: Run) -> str:
    """Return in words how a run differs from the best other attempt on its task."""
    digest = run.data.tags.get("mlmeta.task_digest")
    if not digest:
        return ""
    best = client.search_runs(
        list_experiments(client), f"tags.`mlmeta.task_digest` = '{digest}' and metrics.accuracy >= 0",
        order_by=["metrics.accuracy DESC"], max_results=2,
    )  # fmt: skip
    others = [other for other in best if other.info.run_id != run.info.run_id]
    if not others:
        return "No other attempt on this task has been tested."
    other = others[0]
    head = f"The best other attempt on this task: {other.info.run_name}, {other.data.metrics['accuracy']:.1%}."
    return f"{head} Different here: {_describe_differences(run.data.params, other.data.params)}."


def _describe_differences(params: Mapping[str, str], other: Mapping[str, str], *, most: int = 8) -> str:
    hidden = ("model_name", "config", "test.", "task.", "arch.n_parameters", "data.path")
    keys = [key for key in sorted(params.keys() | other.keys()) if params.get(key) != other.get(key)]
    shown = [key for key in keys if not key.startswith(hidden)]
    words = [f"`{key}` {params.get(key, 'none')[:40]} (there {other.get(key, 'none')[:40]})" for key in shown[:most]]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(words) + more) or "nothing but its run"
