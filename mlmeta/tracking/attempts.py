"""Finds attempts in MLflow, gives their documents and files back, and writes the note that people read first."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import flatten_params, may_move
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import CommandsError, NotFoundError, suggest
from mlmeta.status import Status
from mlmeta.tracking.store import explain_stale, list_experiments, open_client

# Has a run that a server made, until its process takes it over: 1 in the queue, 0 where the attempt is only described.
QUEUED_TAG = "mlmeta.queued"
# Holds the commands of an attempt until their artifact is there.
COMMANDS_TAG = "mlmeta.commands"
# The test commands of an attempt that is not tested yet.
TEST_TAG = "mlmeta.test_commands"
# What a program told of an attempt beside its commands, without training it; see `read_description`.
DESCRIPTION_TAG = "mlmeta.description"
# What stands in that description where the attempt has no commands.
NO_COMMANDS: dict[str, Any] = {"training_commands": {}}
# Curves of a document and the metrics that they are.
CURVES = {
    "training_losses": "train_loss",
    "val_losses": "val_loss",
    "val_accuracies": "val_accuracy",
    "test_losses": "test_loss",
    "test_accuracies": "test_accuracy",
}
_NAMES = {metric: name for name, metric in CURVES.items()}


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
    """Return the Attempt document of a run; see `build_document`.

    Raises:
        NotFoundError: If the run has no commands.
    """
    client = client or open_client()
    run = client.get_run(run_id)
    tags = run.data.tags
    described = read_description(tags, lambda name: read_text(client, run_id, name))
    if "training_commands" in described:
        train = described["training_commands"]
    else:
        train = json.loads(tags.get(COMMANDS_TAG) or read_text(client, run_id, "train_commands.json"))
    has_test = any(item.path == "test_commands.json" for item in client.list_artifacts(run_id))
    test = read_text(client, run_id, "test_commands.json") if has_test else tags.get(TEST_TAG)
    points = {key: client.get_metric_history(run_id, key) for key in run.data.metrics}
    ordered = {key: sorted(history, key=lambda one: (one.step, one.timestamp)) for key, history in points.items()}
    document = build_document(
        run_id, run.info.run_name, train=train, test=test and json.loads(test),
        histories={key: [(one.step, one.value) for one in history] for key, history in ordered.items()},
        times=(run.info.start_time, run.info.end_time),
        tags=tags, params=run.data.params, metrics=run.data.metrics,
    )  # fmt: skip
    return document | described


def read_description(tags: Mapping[str, str], read: Callable[[str], str]) -> dict[str, Any]:
    """Return what a program told of an attempt that waits to be trained, beside its commands; else nothing.

    The tag holds the JSON text, or the name of the artifact that does; `read` fetches that.
    """
    text = tags.get(DESCRIPTION_TAG, "") if tags.get(QUEUED_TAG) == "0" else ""
    described: dict[str, Any] = json.loads(text if text.startswith("{") else read(text)) if text else {}
    return described


def build_document(
    run_id: str,
    name: str,
    *,
    train: Any,
    test: Any,
    histories: Mapping[str, Sequence[tuple[int, float]]],
    times: tuple[int, int | None],
    tags: Mapping[str, str],
    params: Mapping[str, str],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Return the Attempt document of what a run holds: all that another store needs to hold the same.

    Weights, plots and tables do not go along. A loss that is not finite becomes null, and stands in `curves` by its
    name; so does every point of a metric that was written more than once.

    Args:
        run_id: Of the run.
        name: Of the attempt.
        train: Its train commands as they were given.
        test: Its test commands, or None.
        histories: Of every metric the points (step, value), in the order in which they were written within a step.
        times: Start and end, in ms since 1970; no end while it is at work, or where it is not known.
        tags: All of the run.
        params: All of the run.
        metrics: The newest value of each.
    """
    losses = [value for _, value in histories.get("train_loss", [])]
    accuracy = metrics.get("accuracy")
    return {
        "id": run_id,
        "name": name,
        "training_commands": train,
        "training_losses": [value if _is_finite(value) else None for value in losses],
        "n_epoch": len(losses),
        "testing_commands": test,
        "accuracy": accuracy if accuracy is not None and _is_finite(accuracy) else None,
        "status": tags.get("mlmeta.status", Status.INCOMPLETE),
        # The params are of the test that the train commands asked for; one by itself may have another limit.
        "limit": int((test or {}).get("limit", params.get("test.limit", 0))),
        **_describe_metrics(histories),
        **_describe_rest(train, times, tags, params),
    }


def _describe_metrics(histories: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """Return the curves that have a name in the document, single numbers, and all that these do not hold as curves."""
    made: dict[str, Any] = {}
    single, curves = {}, {}
    for key, history in histories.items():
        is_whole = [step for step, _ in history] == list(range(1, len(history) + 1))
        is_finite = all(_is_finite(value) for _, value in history)
        if is_whole and key in _NAMES and key != "train_loss":
            made[_NAMES[key]] = [value if _is_finite(value) else None for _, value in history]
        if len(history) == 1 and history[0][0] == 0:
            if key != "accuracy" or not is_finite:
                single[key] = _to_json(history[0][1])
        elif not (is_whole and is_finite and key in _NAMES):
            curves[key] = [[step, _to_json(value)] for step, value in history]
    return made | {key: value for key, value in (("metrics", single), ("curves", curves)) if value}


def _is_finite(value: float) -> bool:
    """Return whether a number is finite; MLflow keeps an infinite one as the largest that there is."""
    return abs(value) < sys.float_info.max


def _to_json(value: float) -> float | str:
    """Return a number that JSON has, or its name: NaN, Infinity or -Infinity."""
    return value if _is_finite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _describe_rest(
    train: Any, times: tuple[int, int | None], tags: Mapping[str, str], params: Mapping[str, str]
) -> dict[str, Any]:
    """Return times, task, tags, and the params that the commands do not give by themselves."""
    try:
        own = flatten_params(parse_train_commands(train).model_dump(mode="json", exclude={"schema_url"}))
    except CommandsError:
        own = {}
    start, end = (None if ms is None else datetime.fromtimestamp(ms / 1000, UTC) for ms in times)
    task = {key: int(params[f"task.{key}"]) for key in ("n_train", "n_test") if f"task.{key}" in params}
    features = json.loads(tags.get("mlmeta.task", "{}"))
    told = {"name": tags.get("mlmeta.task_name"), "digest": tags.get("mlmeta.task_digest"), "features": features}
    found = {
        # Says what does not go along.
        "weights_sha256": tags.get("mlmeta.weights_sha256"),
        "started": start and start.isoformat(timespec="milliseconds"),
        "ended": end and end.isoformat(timespec="milliseconds"),
        "seconds": end and start and (end - start).total_seconds(),
        "n_parameters": int(params["arch.n_parameters"]) if "arch.n_parameters" in params else None,
        "task": {key: value for key, value in told.items() if value} | task,
        "params": {key: value for key, value in params.items() if key not in own},
        "tags": {key: value for key, value in tags.items() if may_move(key)},
    }
    return {key: value for key, value in found.items() if value is not None and value != {}}


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
