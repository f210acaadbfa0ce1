"""The Attempt document of a run, read through MLflow in the caller's name."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from mlmeta.errors import NotFoundError
from mlmeta.plugin.answers import RefusedError
from mlmeta.plugin.callers import Caller
from mlmeta.plugin.runs import TEST_TAG, RunRecord
from mlmeta.status import Status
from mlmeta.tracking.attempts import COMMANDS_TAG


async def make_document(caller: Caller, run: RunRecord) -> dict[str, Any]:
    """Return what `mlmeta export` gives of an attempt: the imported document, or one made of what the run holds now.

    Raises:
        NotFoundError: If the run has no commands.
    """
    if "mlmeta.import_digest" in run.tags:
        document: dict[str, Any] = json.loads(await caller.get_artifact(run.run_id, "attempt.json"))
        return document
    losses = await _read_losses(caller, run)
    test = await _read_test_commands(caller, run)
    return {
        "id": run.run_id,
        "name": run.name,
        "training_commands": await read_commands(caller, run),
        "training_losses": losses,
        "n_epoch": len(losses),
        "testing_commands": test,
        "accuracy": run.metrics.get("accuracy"),
        "status": run.status or Status.INCOMPLETE,
        "limit": int((test or {}).get("limit", run.params.get("test.limit", 0))),
    }


async def read_commands(caller: Caller, run: RunRecord) -> dict[str, Any]:
    """Return the train commands of a run as they were given.

    Raises:
        NotFoundError: If it has none.
    """
    text = run.tags.get(COMMANDS_TAG) or await caller.get_artifact(run.run_id, "train_commands.json")
    commands: dict[str, Any] = json.loads(text)
    return commands


async def _read_test_commands(caller: Caller, run: RunRecord) -> Any:
    if TEST_TAG in run.tags and "accuracy" not in run.metrics:
        return json.loads(run.tags[TEST_TAG])
    if "accuracy" not in run.metrics:
        return None
    # MLflow answers 500 where a server's store has no such artifact.
    with contextlib.suppress(NotFoundError, RefusedError, ValueError):
        return json.loads(await caller.get_artifact(run.run_id, "test_commands.json"))
    return None


async def _read_losses(caller: Caller, run: RunRecord) -> list[float | None]:
    if "train_loss" not in run.metrics:
        return []
    history = await caller.get("metrics/get-history", run_id=run.run_id, metric_key="train_loss")
    points = sorted(history.get("metrics", []), key=lambda one: int(one.get("step", 0)))
    values = [float(one.get("value", math.nan)) for one in points]
    return [value if math.isfinite(value) else None for value in values]
