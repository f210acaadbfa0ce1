"""The run of a tuning in MLflow: the parent of its attempts, which says what was asked and what came of it.

The state of a tuning lies nowhere else: its attempts are child runs, each with the round that it belongs to, so that
whoever goes on with it reads there how far it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import MAX_TAG, flatten_params
from mlmeta.errors import BadInputError, NotFoundError, one_line, suggest
from mlmeta.files import hold_run
from mlmeta.status import MLFLOW_STATUS, Status
from mlmeta.tracking.attempts import read_commands
from mlmeta.tracking.recovery import find_worker, refuse_elsewhere
from mlmeta.tracking.runs import first_tags, start_run
from mlmeta.tracking.store import open_client, search_all_runs, telling

KIND = "tuning"
PARENT_TAG, ROUND_TAG = "mlflow.parentRunId", "mlmeta.tuning_round"
_SETTINGS_TAG = "mlmeta.tuning"


@dataclass(frozen=True)
class TunedAttempt:
    """An attempt of a tuning as it stands in MLflow.

    Attributes:
        round: From 1.
        n_epochs: How many epochs were trained.
        val_accuracy: Of the weights that it keeps; NaN where it has none.
        val_loss: Of its last epoch; NaN where it has none.
        accuracy: Of its test; NaN where it was not tested.
        host: The machine that has worked on it last.
        is_elsewhere: Whether another machine works on it now.
    """

    run_id: str
    name: str
    status: str
    round: int
    n_epochs: int
    val_accuracy: float
    val_loss: float
    accuracy: float = math.nan
    host: str = ""
    is_elsewhere: bool = False


@dataclass(frozen=True)
class StoppedTuning:
    """A tuning to go on with."""

    run_id: str
    commands: TrainCommands
    commands_dir: Path
    settings: Mapping[str, Any]


class TuningRecorder:
    """Writes into the run of a tuning; a store that is away for a while costs a line on standard error, no attempt.

    Args:
        client: Of the tracking store.
        run_id: The run.
        seconds_before: What the tuning took before it was stopped.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, seconds_before: float) -> None:
        self._client = client
        self.run_id = run_id
        self._began = time.monotonic() - seconds_before

    @property
    def seconds(self) -> float:
        """What the tuning has taken so far, without the time in which it was stopped."""
        return time.monotonic() - self._began

    def log_progress(self, attempts: Sequence[TunedAttempt], incumbent: TunedAttempt | None) -> None:
        """Record which attempt is the best so far and what it cost, with the number of attempts made as the step."""
        metrics = {
            "tuning_attempts": float(len(attempts)),
            "tuning_epochs": float(sum(attempt.n_epochs for attempt in attempts)),
            "tuning_seconds": self.seconds,
        }
        now, step = int(time.time() * 1000), len(attempts)
        tags = {"mlmeta.heartbeat": str(now // 1000)}
        if incumbent is not None:
            metrics["incumbent_val_accuracy"] = incumbent.val_accuracy
            if not math.isnan(incumbent.accuracy):
                metrics["incumbent_accuracy"] = incumbent.accuracy
            tags |= {"mlmeta.incumbent": incumbent.name, "mlmeta.incumbent_run_id": incumbent.run_id}
        with _warning(f"the progress of the tuning {self.run_id} is not recorded"):
            measured = [Metric(key, value, now, step) for key, value in metrics.items()]
            self._client.log_batch(self.run_id, metrics=measured, tags=_make_tags(tags))

    def log_note(self, note: str) -> None:
        """Record the note that people read first."""
        with _warning(f"the result of the tuning {self.run_id} is not recorded"):
            self._client.set_tag(self.run_id, "mlflow.note.content", note[:MAX_TAG])

    def end(self, status: Status, *, error: str = "") -> None:
        """Record the state that it ends in."""
        with _warning(f"the end of the tuning {self.run_id} is not recorded"):
            tags = {"mlmeta.status": status} | ({"mlmeta.error": error[:MAX_TAG]} if error else {})
            self._client.log_batch(self.run_id, tags=_make_tags(tags))
            self._client.set_terminated(self.run_id, MLFLOW_STATUS[status])


@contextlib.contextmanager
def record_tuning(
    commands: TrainCommands, *, base_dir: Path, settings: Mapping[str, Any], resume_run_id: str | None = None
) -> Iterator[TuningRecorder]:
    """Start the run of a tuning, adopt the one that ``mlflow run`` started, or go on in one; end it in every case.

    Args:
        commands: What is tuned.
        base_dir: What relative paths in them are relative to.
        settings: How it is tuned, plain JSON.
        resume_run_id: The run to go on in; None for a new one.

    Raises:
        BadInputError: If another process of this machine works on it.
        MlmetaError: If the tracking store cannot be used.
    """
    client = open_client()
    tags = first_tags(KIND) | {
        "mlmeta.status": Status.TRAINING,
        "mlmeta.commands_dir": str(base_dir.resolve()),
        _SETTINGS_TAG: json.dumps(settings),
    }
    before = 0.0
    with contextlib.ExitStack() as held:
        with telling("the tuning cannot be started"):
            if resume_run_id:
                held.enter_context(hold_run(resume_run_id))
                run_id = resume_run_id
                client.update_run(run_id, status="RUNNING")
                before = client.get_run(run_id).data.metrics.get("tuning_seconds", 0.0)
                client.log_batch(run_id, tags=_make_tags(tags))
            else:
                run_id = start_run(client, f"tuning of {commands.model_name}", tags, held=held)
                text = json.dumps(commands.document(), indent=2, ensure_ascii=False)
                client.log_text(run_id, text, "train_commands.json")
                facts = {"model_name": commands.model_name, "n_epoch": commands.n_epoch}
                params = flatten_params({"tuning": settings} | facts)
                client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
        recorder = TuningRecorder(client, run_id, seconds_before=before)
        try:
            yield recorder
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            error.add_note(f"go on with: mlmeta tune --resume {run_id}")
            recorder.end(Status.INTERRUPTED if stopped else Status.FAILED, error="" if stopped else str(error))
            raise
        recorder.end(Status.COMPLETE)


def find_tuning(name_or_run_id: str) -> StoppedTuning:
    """Return a tuning to go on with: by its run id, or the newest one of commands of that name.

    Raises:
        NotFoundError: If there is none; names the nearest.
        BadInputError: If another machine works on it or on one of its attempts, or it has no settings.
        MlmetaError: If the tracking store cannot be read.
    """
    client = open_client()
    with telling("the tracking store cannot be read"):
        runs = list(search_all_runs(client, f"tags.`mlmeta.kind` = '{KIND}'"))
    named = [run for run in runs if name_or_run_id in (run.info.run_id, run.data.params.get("model_name"))]
    if not named:
        names = {run.data.params.get("model_name", "") for run in runs}
        hint = suggest(name_or_run_id, names, f"; there are {len(runs)} others")
        raise NotFoundError(f"resume: there is no tuning of {name_or_run_id!r}{hint}")
    run = max(named, key=lambda run: run.info.start_time)
    for one in (run, *_search_attempts(client, run.info.run_id)):
        refuse_elsewhere(one)
    try:
        settings = json.loads(run.data.tags.get(_SETTINGS_TAG, ""))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise BadInputError(f"resume: the tuning {run.info.run_id} has no settings that can be read")
    commands_dir = Path(run.data.tags["mlmeta.commands_dir"])
    return StoppedTuning(run.info.run_id, read_commands(client, run), commands_dir, settings)


def list_attempts(run_id: str) -> list[TunedAttempt]:
    """Return the attempts of a tuning in the order in which they were begun.

    Raises:
        MlmetaError: If the tracking store cannot be read.
    """
    client = open_client()
    with telling("the attempts of the tuning cannot be read"):
        return [_read_attempt(client, run) for run in _search_attempts(client, run_id)]


def _search_attempts(client: MlflowClient, run_id: str) -> list[Run]:
    found = search_all_runs(client, f"tags.`{PARENT_TAG}` = '{run_id}' and tags.`mlmeta.kind` = 'attempt'")
    return sorted(found, key=lambda run: run.info.start_time)


def _read_attempt(client: MlflowClient, run: Run) -> TunedAttempt:
    metrics, tags = run.data.metrics, run.data.tags
    steps = client.get_metric_history(run.info.run_id, "train_loss") if "train_loss" in metrics else []
    return TunedAttempt(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=tags.get("mlmeta.status", ""),
        round=int(tags.get(ROUND_TAG, "1")),
        n_epochs=len({metric.step for metric in steps}),
        val_accuracy=metrics.get("kept_val_accuracy", metrics.get("val_accuracy", math.nan)),
        val_loss=metrics.get("val_loss", math.nan),
        accuracy=metrics.get("accuracy", math.nan),
        host=tags.get("mlmeta.host", ""),
        is_elsewhere=bool(find_worker(run)),
    )


def _make_tags(tags: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(key, str(value)) for key, value in tags.items()]


@contextlib.contextmanager
def _warning(what: str) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        sys.stderr.write(f"mlmeta: {what}: {one_line(error)}\n")
