"""The only writer to MLflow: starts or adopts runs, logs, finds attempts, gives documents back.

One attempt is one run; a test on its own is a child run of its attempt. What stands where is the contract that the
README's section "In MLflow" shows.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

import mlmeta
from mlmeta.commands import TrainCommands
from mlmeta.documents import parse_train_commands
from mlmeta.errors import MlmetaError, NotFoundError, nearest_name
from mlmeta.params import flatten_params, format_param
from mlmeta.status import FOLLOWS, MLFLOW_STATUS, Status
from mlmeta.store import open_client

_PARAMS_A_REQUEST = 100
_MAX_TAG = 8000


class MlflowRecorder:
    """Records one attempt, or one test of it, in one MLflow run; see `mlmeta.recorder.Recorder`.

    Args:
        client: Of the tracking store.
        run_id: The run, already there.
        mirror: Another run, the attempt, that gets the metrics of a test too.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, mirror: str | None = None) -> None:
        self.client = client
        self.run_id = run_id
        self.mirror = mirror
        self.status = Status.TRAINED if mirror else Status.INCOMPLETE
        self.params = dict(client.get_run(run_id).data.params)
        self.metrics: dict[str, float] = {}

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record params; one that is there already is left as it is, since MLflow's params cannot change."""
        new = {key: format_param(value) for key, value in params.items() if key not in self.params}
        self.params |= new
        items = [Param(key, value) for key, value in new.items()]
        for start in range(0, len(items), _PARAMS_A_REQUEST):
            self.client.log_batch(self.run_id, params=items[start : start + _PARAMS_A_REQUEST])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Record metrics in one request; with a step also the heartbeat."""
        now = int(time.time() * 1000)
        items = [Metric(key, float(value), now, step or 0) for key, value in metrics.items()]
        tags = [] if step is None else [RunTag("mlmeta.heartbeat", str(int(time.time())))]
        self.client.log_batch(self.run_id, metrics=items, tags=tags)
        if self.mirror:
            self.client.log_batch(self.mirror, metrics=items)
        self.metrics |= metrics

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags; text beyond MLflow's 8,000 characters is cut."""
        self.client.log_batch(self.run_id, tags=[RunTag(key, value[:_MAX_TAG]) for key, value in tags.items()])

    def set_status(self, status: Status) -> None:
        """Record the state, in mlmeta's tag and in MLflow's own status.

        Raises:
            ValueError: If the state may not follow the one before.
        """
        if status not in FOLLOWS[self.status]:
            raise ValueError(f"an attempt that is {self.status} cannot become {status}")
        self.status = status
        self.set_tags({"mlmeta.status": status, "mlmeta.heartbeat": str(int(time.time()))})
        self.client.update_run(self.run_id, status=MLFLOW_STATUS[status])

    def log_data(self, *, name: str, digest: str, source: str, context: str) -> None:
        """Record the pictures as an MLflow data set; MLflow takes 36 characters of a digest."""
        dataset = Dataset(
            name=name, digest=digest[:36], source_type="mlmeta", source=json.dumps({"pictures": source}),
            profile=json.dumps({"sha256": digest}),
        )  # fmt: skip
        tag = InputTag("mlflow.data.context", context)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])

    def log_files(self, folder: Path) -> None:
        """Record a folder's files as artifacts."""
        self.client.log_artifacts(self.run_id, str(folder))

    def log_document(self, file_name: str, document: Any) -> None:
        """Record a document as a JSON artifact, unchanged."""
        self.client.log_text(self.run_id, json.dumps(document, indent=2, ensure_ascii=False), file_name)


def package_version() -> str:
    """Return mlmeta's version."""
    return mlmeta.__version__


@contextlib.contextmanager
def record_attempt(commands: TrainCommands, *, base_dir: Path) -> Iterator[MlflowRecorder]:
    """Start the run of an attempt, or adopt the one that ``mlflow run`` started, and end it in every case.

    Inside, the caller logs. Afterwards the run has its note and its Attempt document, and a state that says how
    it went: a `KeyboardInterrupt` makes it Interrupted, any other error Failed.

    Raises:
        MlmetaError: If the tracking store cannot be used.
    """
    client = open_client()
    recorder = MlflowRecorder(client, _start_run(client, commands.model_name))
    with _ending(recorder):
        recorder.set_tags(
            {
                "mlmeta.kind": "attempt",
                "mlmeta.version": package_version(),
                "mlmeta.status": Status.INCOMPLETE,
                "mlmeta.commands_digest": commands.digest(),
                "mlmeta.commands_dir": str(base_dir.resolve()),
            }
        )
        recorder.log_document("train_commands.json", commands.document())
        full = commands.model_dump(mode="json", exclude={"schema_url"})
        recorder.log_params(flatten_params(full))
        yield recorder


@contextlib.contextmanager
def _ending(recorder: MlflowRecorder) -> Iterator[None]:
    """Give a run its last state, note and document, whatever happens inside."""
    try:
        yield
    except BaseException as error:
        ended = Status.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Status.FAILED
        if ended in FOLLOWS[recorder.status]:
            recorder.set_status(ended)
        if not isinstance(error, KeyboardInterrupt):
            recorder.set_tags({"mlmeta.error": str(error) or type(error).__name__})
        _finish(recorder)
        raise
    _finish(recorder)


def _finish(recorder: MlflowRecorder) -> None:
    """Write what a run ends with, and its end time."""
    if recorder.mirror is None:
        recorder.log_document("attempt.json", make_document(recorder.run_id, client=recorder.client))
    recorder.set_tags({"mlflow.note.content": write_note(recorder)})
    if MLFLOW_STATUS[recorder.status] != "RUNNING":
        recorder.client.set_terminated(recorder.run_id, MLFLOW_STATUS[recorder.status])


def _start_run(client: MlflowClient, name: str) -> str:
    """Return the id of the run to record in, named and running."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and _is_free(client, run_id):
        client.update_run(run_id, status="RUNNING", name=name)
        return run_id
    run: Run = client.create_run(_experiment_id(client), run_name=name, tags=resolve_tags())
    return str(run.info.run_id)


def _is_free(client: MlflowClient, run_id: str) -> bool:
    """Return whether the run of MLFLOW_RUN_ID is there to be adopted: no attempt has used it."""
    try:
        return "mlmeta.kind" not in client.get_run(run_id).data.tags
    except MlflowException as error:
        raise NotFoundError(f"MLFLOW_RUN_ID names the run {run_id}, which the tracking store does not have") from error


def _experiment_id(client: MlflowClient) -> str:
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return "0"
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name))


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
    run = _get_attempt_run(client, run_id) if run_id else _newest_run(client, str(name))
    tags = run.data.tags
    if "mlmeta.weights_sha256" not in tags:
        raise NotFoundError(
            f"the attempt {run.info.run_name} ({run.info.run_id}) has no weights to test: its status is "
            f"{tags.get('mlmeta.status', 'unknown')}"
        )
    text = read_text(client, run.info.run_id, "train_commands.json")
    commands = parse_train_commands(json.loads(text), source=f"train_commands.json of run {run.info.run_id}")
    return AttemptRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment_id=run.info.experiment_id,
        commands=commands,
        label_names=json.loads(read_text(client, run.info.run_id, "label_names.json")),
        commands_dir=Path(tags["mlmeta.commands_dir"]),
        weights_sha256=tags["mlmeta.weights_sha256"],
        status=tags.get("mlmeta.status", ""),
    )


def _get_attempt_run(client: MlflowClient, run_id: str) -> Run:
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise NotFoundError(f"run_id: the tracking store has no run {run_id!r}") from None
    if run.data.tags.get("mlmeta.kind") != "attempt":
        raise NotFoundError(f"run_id: the run {run_id} is no attempt of mlmeta")
    return run


def _newest_run(client: MlflowClient, name: str) -> Run:
    filters = "tags.`mlmeta.kind` = 'attempt'"
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = f"{filters} and attributes.run_name = '{name}'"
    runs = client.search_runs(experiments, wanted, order_by=["attributes.start_time DESC"], max_results=50)
    with_weights = [run for run in runs if "mlmeta.weights_sha256" in run.data.tags]
    if with_weights or runs:
        return (with_weights or runs)[0]
    recent = client.search_runs(experiments, filters, order_by=["attributes.start_time DESC"], max_results=1000)
    near = nearest_name(name, {run.info.run_name for run in recent})
    hint = f". Did you mean {near!r}?" if near else f"; there are {len(recent)} attempts of other names"
    raise NotFoundError(f"model_name: there is no attempt named {name!r}{hint}")


def read_text(client: MlflowClient, run_id: str, path: str) -> str:
    """Return a text artifact.

    Raises:
        NotFoundError: If the run does not have it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError) as error:
            raise NotFoundError(f"the run {run_id} has no artifact {path}: {error}") from None


def download_weights(attempt: AttemptRecord, folder: Path) -> Path:
    """Fetch an attempt's .pt file into a folder.

    Raises:
        NotFoundError: If it is not there.
    """
    path = f"models/{attempt.commands.model_name}.pt"
    try:
        return Path(open_client().download_artifacts(attempt.run_id, path, str(folder)))
    except (MlflowException, OSError) as error:
        raise NotFoundError(f"the attempt {attempt.name} ({attempt.run_id}) has no artifact {path}: {error}") from None


@contextlib.contextmanager
def record_test(attempt: AttemptRecord, document: Mapping[str, Any]) -> Iterator[MlflowRecorder]:
    """Start the run of a test on its own, a child of the attempt, and end it in every case."""
    client = open_client()
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id or not _is_free(client, run_id):
        tags = resolve_tags()
        run_id = client.create_run(attempt.experiment_id, run_name=f"test of {attempt.name}", tags=tags).info.run_id
    else:
        client.update_run(run_id, status="RUNNING", name=f"test of {attempt.name}")
    recorder = MlflowRecorder(client, run_id, mirror=attempt.run_id)
    with _ending(recorder):
        tags = {"mlmeta.kind": "test", "mlmeta.attempt": attempt.run_id, "mlflow.parentRunId": attempt.run_id}
        recorder.set_tags({**tags, "mlmeta.version": package_version()})
        recorder.log_params(flatten_params(document))
        for run in (run_id, attempt.run_id):
            text = json.dumps(document, indent=2, ensure_ascii=False)
            client.log_text(run, text, "test_commands.json")
        yield recorder
    if attempt.status not in (Status.DIVERGED, Status.PRUNED):
        client.set_tag(attempt.run_id, "mlmeta.status", Status.COMPLETE)
        client.update_run(attempt.run_id, status=MLFLOW_STATUS[Status.COMPLETE])
    _finish(MlflowRecorder(client, attempt.run_id))


def fail_adopted_run(error: MlmetaError) -> None:
    """Mark the run that ``mlflow run`` started as Failed, with the reason as its note; nothing where there is none."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    client = open_client()
    if not _is_free(client, run_id):
        return
    client.set_tag(run_id, "mlmeta.status", Status.FAILED)
    client.set_tag(run_id, "mlmeta.error", str(error)[:_MAX_TAG])
    client.set_tag(run_id, "mlflow.note.content", f"**Failed**: nothing was trained.\n\n```\n{str(error)[:7000]}\n```")
    client.set_terminated(run_id, "FAILED")


def make_document(run_id: str, *, client: MlflowClient | None = None) -> dict[str, Any]:
    """Return the Attempt document of a run: its commands unchanged, its curve, its result.

    Raises:
        NotFoundError: If the run has no commands.
    """
    client = client or open_client()
    run = client.get_run(run_id)
    train = json.loads(read_text(client, run_id, "train_commands.json"))
    has_test = any(item.path == "test_commands.json" for item in client.list_artifacts(run_id))
    test = json.loads(read_text(client, run_id, "test_commands.json")) if has_test else None
    history = sorted(client.get_metric_history(run_id, "train_loss"), key=lambda metric: metric.step)
    return {
        "id": run_id,
        "name": run.info.run_name,
        "training_commands": train,
        "training_losses": [metric.value if math.isfinite(metric.value) else None for metric in history],
        "n_epoch": len(history),
        "testing_commands": test,
        "accuracy": run.data.metrics.get("accuracy"),
        "status": run.data.tags.get("mlmeta.status", Status.INCOMPLETE),
        "limit": int(run.data.params.get("test.limit", 0)),
    }


def write_note(recorder: MlflowRecorder) -> str:
    """Return the short Markdown summary of a run for MLflow's page: the result first."""
    run = recorder.client.get_run(recorder.run_id)
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    status = tags.get("mlmeta.status", "")
    if "accuracy" in metrics:
        result = f"**{status}: accuracy {metrics['accuracy']:.1%}**, test loss {metrics.get('test_loss', math.nan):.4g}"
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
    return f"{result}\n\n{task}.\n\n{_compare_with_incumbent(recorder.client, run)}".strip()


def _compare_with_incumbent(client: MlflowClient, run: Run) -> str:
    """Return in words how a run differs from the best other attempt on its task."""
    digest = run.data.tags.get("mlmeta.task_digest")
    if not digest:
        return ""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    best = client.search_runs(
        experiments, f"tags.`mlmeta.task_digest` = '{digest}' and metrics.accuracy >= 0",
        order_by=["metrics.accuracy DESC"], max_results=2,
    )  # fmt: skip
    others = [other for other in best if other.info.run_id != run.info.run_id]
    if not others:
        return "The first attempt on this task."
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
