"""Runs that wait for their training: made, changed and removed through MLflow, in the caller's name.

A run that waits is SCHEDULED and has the tag `mlmeta.queued`: 1 while it is in the queue, 0 where it is only described.
The training process adopts it and takes the tag away.

The Attempt document of a run is read in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlmeta.commands.documents import TestCommands, TrainCommands
from mlmeta.commands.params import MAX_TAG
from mlmeta.errors import BadInputError, NotFoundError
from mlmeta.server.callers import Caller
from mlmeta.server.responses import RefusedError
from mlmeta.status import Status
from mlmeta.tracking.attempts import (
    COMMANDS_TAG,
    DESCRIPTION_TAG,
    NO_COMMANDS,
    QUEUED_TAG,
    TEST_TAG,
    build_document,
)
from mlmeta.tracking.runs import queued_tags

_MOST_FOUND = 1000
_SAID_BY_MLMETA = ("id", "status", "name", "training_commands", "testing_commands")


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow's REST API gives it.

    Attributes:
        artifact_uri: Where its artifacts lie.
        times: Start and end, in ms since 1970; no end while it waits or is at work.
    """

    run_id: str
    name: str
    experiment_id: str
    artifact_uri: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    times: tuple[int, int | None] = (0, None)

    @property
    def status(self) -> str:
        """What mlmeta says of its state."""
        return self.tags.get("mlmeta.status", "")

    @property
    def is_untrained(self) -> bool:
        """Whether it waits to be trained, or to be put into the queue."""
        return QUEUED_TAG in self.tags


def _read_run(run: Mapping[str, Any]) -> RunRecord:
    info, data = run["info"], run.get("data", {})
    tags, params = ({one["key"]: one["value"] for one in data.get(kind, [])} for kind in ("tags", "params"))
    metrics = {one["key"]: float(one.get("value", math.nan)) for one in data.get("metrics", [])}
    times = int(info["start_time"]), int(info["end_time"]) if info.get("end_time") else None
    return RunRecord(
        info["run_id"], info.get("run_name", ""), info["experiment_id"], info["artifact_uri"], tags, params, metrics,
        times,
    )  # fmt: skip


async def get_run(caller: Caller, run_id: str) -> RunRecord:
    """Return a run of mlmeta that the caller may read.

    Raises:
        NotFoundError: If there is no such run, or it is none of mlmeta.
        RefusedError: If they may not read it.
    """
    run = _read_run((await caller.get("runs/get", run_id=run_id))["run"])
    if not run.status:
        raise NotFoundError(f"the run {run_id} is no attempt of mlmeta")
    return run


async def find_runs(caller: Caller, name: str, *, experiment_id: str | None = None) -> list[RunRecord]:
    """Return the attempts of a name, the newest first; of one experiment, or of all that the caller may read.

    Raises:
        NotFoundError: If there is none.
    """
    experiments = await caller.list_experiments()
    if experiment_id is not None:
        experiments = {key: value for key, value in experiments.items() if key == experiment_id}
    # No name of an attempt has a quote.
    known = {} if "'" in name or not experiments else await caller.change("runs/search", {
        "experiment_ids": list(experiments),
        "filter": f"tags.`mlmeta.kind` = 'attempt' and attributes.run_name = '{name}'",
        "order_by": ["attributes.start_time DESC"],
        "max_results": _MOST_FOUND,
    })  # fmt: skip
    found = [_read_run(run) for run in known.get("runs", [])]
    if not found:
        raise NotFoundError(f"there is no attempt named {name!r}")
    return found


async def create_run(
    caller: Caller, name: str, commands: TrainCommands | TestCommands | None, base_dir: Path, *, experiment_id: str,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> RunRecord:  # fmt: skip
    """Make a run that waits, in the caller's name.

    Args:
        caller: Whose it is.
        name: Of the run.
        commands: What it waits for; None for an attempt that is only described.
        base_dir: What relative paths in them are relative to.
        experiment_id: Where.
        tags: More of them; without `mlmeta.queued` among them it is to be put into the queue at once.

    Raises:
        RefusedError: If they may not make runs there.
        NotFoundError: If there is no such experiment.
    """
    all_tags = queued_tags(commands, base_dir=base_dir) | ({"mlflow.user": caller.login} if caller.login else {})
    document = {
        "experiment_id": experiment_id, "run_name": name, "start_time": int(time.time() * 1000),
        "tags": _pair(all_tags | dict(tags)),
    }  # fmt: skip
    run = _read_run((await caller.change("runs/create", document))["run"])
    await caller.change("runs/update", {"run_id": run.run_id, "status": "SCHEDULED"})
    if isinstance(commands, TrainCommands) and COMMANDS_TAG not in all_tags:
        await _log_document(caller, run, "train_commands.json", commands.document())
    return run


async def change_run(
    caller: Caller, run: RunRecord, commands: TrainCommands | None, base_dir: Path, tags: Mapping[str, str]
) -> None:
    """Give a run that waits other commands, or none, and more tags; refused as MLflow refuses it."""
    all_tags = queued_tags(commands, base_dir=base_dir) | {QUEUED_TAG: run.tags[QUEUED_TAG]} | dict(tags)
    await set_tags(caller, run.run_id, all_tags)
    if COMMANDS_TAG not in all_tags:
        if commands is not None:
            await _log_document(caller, run, "train_commands.json", commands.document())
        await delete_tag(caller, run, COMMANDS_TAG)


def _pair(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


async def set_tags(caller: Caller, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run; refused as MLflow refuses it."""
    await caller.change("runs/log-batch", {"run_id": run_id, "tags": _pair(tags)})


async def delete_tag(caller: Caller, run: RunRecord, key: str) -> None:
    """Take a tag off a run, if it has it; refused as MLflow refuses it."""
    if key in run.tags:
        await caller.change("runs/delete-tag", {"run_id": run.run_id, "key": key})


async def describe_test(caller: Caller, run: RunRecord, commands: TestCommands | None) -> None:
    """Keep test commands, or none, beside the train commands of a run that waits; see `write_test`."""
    if commands is None:
        await delete_tag(caller, run, TEST_TAG)
    else:
        await set_tags(caller, run.run_id, {TEST_TAG: write_test(commands)})


def write_test(commands: TestCommands) -> str:
    """Return test commands as the text of a tag.

    Raises:
        BadInputError: If they are too long for one.
    """
    text = json.dumps(commands.document(), ensure_ascii=False)
    if len(text) > MAX_TAG:
        raise BadInputError(f"testing_commands: at most {MAX_TAG:,} characters are kept; got {len(text):,}")
    return text


async def describe_attempt(caller: Caller, run: RunRecord, document: Mapping[str, Any]) -> None:
    """Keep what the Attempt document of a run that waits says beside its commands; id and state are mlmeta's own."""
    described = {key: value for key, value in document.items() if key not in _SAID_BY_MLMETA}
    if not document.get("training_commands"):
        described |= NO_COMMANDS | {key: value for key, value in document.items() if key == "training_commands"}
    text = json.dumps(described, ensure_ascii=False)
    if len(text) > MAX_TAG:
        await _log_document(caller, run, "description.json", described)
        text = "description.json"
    await set_tags(caller, run.run_id, {DESCRIPTION_TAG: text})


async def _log_document(caller: Caller, run: RunRecord, name: str, document: Mapping[str, Any]) -> None:
    """Keep a document that is too long for a tag as the run's artifact."""
    text = json.dumps(document, ensure_ascii=False)
    scheme, _, path = run.artifact_uri.partition(":")
    if scheme == "mlflow-artifacts":
        await caller.put_artifact(f"{path.lstrip('/')}/{name}", text.encode())
    else:
        # MLflow has let the caller make the run; where artifacts are not served, clients write them themselves.
        await caller.server.work(_write_artifact, run.artifact_uri, name, text)


def _write_artifact(artifact_uri: str, name: str, text: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(text, encoding="utf-8")
        get_artifact_repository(artifact_uri).log_artifact(str(file))


async def delete_run(caller: Caller, run_id: str) -> None:
    """Delete a run as MLflow's UI does: it can be restored."""
    await caller.change("runs/delete", {"run_id": run_id})


async def end_waiting_run(caller: Caller, run: RunRecord) -> None:
    """Close a run that waited and will not be trained."""
    reason = {"mlmeta.status": Status.INTERRUPTED, "mlmeta.stop_reason": "cancelled in the queue"}
    await set_tags(caller, run.run_id, reason)
    await delete_tag(caller, run, QUEUED_TAG)
    now = int(time.time() * 1000)
    await caller.change("runs/update", {"run_id": run.run_id, "status": "KILLED", "end_time": now})


async def make_document(caller: Caller, run: RunRecord) -> dict[str, Any]:
    """Return what `mlmeta export` gives of an attempt: the imported document, or one made of what the run holds now.

    Raises:
        NotFoundError: If the run has no commands.
    """
    if "mlmeta.import_digest" in run.tags:
        imported: dict[str, Any] = json.loads(await caller.get_artifact(run.run_id, "attempt.json"))
        return imported
    text = run.tags.get(DESCRIPTION_TAG, "") if run.tags.get(QUEUED_TAG) == "0" else ""
    if text and not text.startswith("{"):
        text = (await caller.get_artifact(run.run_id, text)).decode()
    described: dict[str, Any] = json.loads(text) if text else {}
    train = described["training_commands"] if "training_commands" in described else await read_commands(caller, run)
    histories = await asyncio.gather(*(_read_history(caller, run, key) for key in run.metrics))
    document = build_document(
        run.run_id, run.name, train=train, test=await _read_test_commands(caller, run),
        histories=dict(zip(run.metrics, histories, strict=True)), times=run.times,
        tags=run.tags, params=run.params, metrics=run.metrics,
    )  # fmt: skip
    return document | described


async def read_commands(caller: Caller, run: RunRecord) -> dict[str, Any]:
    """Return the train commands of a run as they were given.

    Raises:
        NotFoundError: If it has none.
    """
    text = run.tags.get(COMMANDS_TAG) or await caller.get_artifact(run.run_id, "train_commands.json")
    commands: dict[str, Any] = json.loads(text)
    return commands


async def _read_test_commands(caller: Caller, run: RunRecord) -> Any:
    if "accuracy" not in run.metrics:
        return json.loads(run.tags[TEST_TAG]) if TEST_TAG in run.tags else None
    # MLflow answers 500 where a server's store has no such artifact.
    with contextlib.suppress(NotFoundError, RefusedError, ValueError):
        return json.loads(await caller.get_artifact(run.run_id, "test_commands.json"))
    return None


async def _read_history(caller: Caller, run: RunRecord, key: str) -> list[tuple[int, float]]:
    """Return the points (step, value) of a metric, by step and then by time."""
    history = await caller.get("metrics/get-history", run_id=run.run_id, metric_key=key)
    points = sorted(history.get("metrics", []), key=lambda one: (int(one.get("step", 0)), int(one["timestamp"])))
    return [(int(one.get("step", 0)), float(one.get("value", math.nan))) for one in points]
