"""Real attempts as the table that `mlmeta.history.loading.load_attempts` gives, made without a tracking store."""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.commands.params import describe_architecture, flatten_params, walk_layers

DATA = Path(__file__).parent / "data"


@cache
def read_documents() -> tuple[dict[str, Any], ...]:
    """Return 832 Attempt documents: 64 train commands on each of 13 tasks."""
    with gzip.open(DATA.parent.parent / "examples" / "attempts.jsonl.gz", "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines)


@cache
def read_tasks() -> dict[str, dict[str, float]]:
    """Return the meta-features of the 13 tasks by name."""
    tasks: dict[str, dict[str, float]] = json.loads((DATA / "tasks.json").read_text(encoding="utf-8"))
    return tasks


def make_table(n_per_task: int = 64) -> pd.DataFrame:
    """Return the first attempts of every task, one row each, newest first."""
    chosen = [document for document in read_documents() if document["config_id"] < n_per_task]
    rows, kinds = [], {}
    for number, document in enumerate(chosen):
        params, metrics, tags = read_params(document), read_metrics(document), read_tags(document)
        kinds |= dict.fromkeys(params, "param") | dict.fromkeys(metrics, "metric") | dict.fromkeys(tags, "tag")
        rows.append(make_facts(document, number) | params | metrics | tags | make_curve(document))
    order = ["run_id", "model_name", "status", "task", "experiment", "started", "duration_s"]
    order += [name for kind in ("param", "metric", "tag") for name in kinds if kinds[name] == kind]
    table = pd.DataFrame(rows)[[*order, "curve"]].iloc[::-1].reset_index(drop=True)
    table["arch.batch_norm"] = table["arch.batch_norm"].astype("boolean")
    for name in ("batch_size", "n_epoch", "seed", "arch.n_parameters", "arch.depth", "arch.width", "arch.hidden"):
        table[name] = table[name].astype("Int64")
    table["started"] = table["started"].dt.as_unit("ms")
    table.attrs["kinds"] = kinds
    return table


def make_facts(document: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "run_id": hashlib.md5(document["name"].encode(), usedforsecurity=False).hexdigest(),
        "model_name": document["name"],
        "status": document["status"],
        "task": document["task"]["name"],
        "experiment": "Default",
        "started": pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(minutes=number),
        "duration_s": document["seconds"],
    }


def read_params(document: dict[str, Any]) -> dict[str, Any]:
    commands, task = document["training_commands"], document["task"]
    arch = describe_architecture(walk_layers(commands["model"]["layers"]), n_parameters=document["n_parameters"])
    typed = {
        f"optimizer.{key}": value
        for key, value in commands["optimizer"].items()
        if isinstance(value, str | int | float)
    } | {key: commands[key] for key in ("batch_size", "n_epoch", "seed")}
    flat = flatten_params({key: commands[key] for key in ("label_names", "model", "data", "criterion", "transform")})
    counts = {"n_labels": len(task["label_names"]), "n_train": task["n_train"], "n_test": task["n_test"]}
    return flat | typed | {f"arch.{k}": v for k, v in arch.items()} | {f"task.{k}": v for k, v in counts.items()}


def read_metrics(document: dict[str, Any]) -> dict[str, float]:
    last = [value for value in document["training_losses"] if value is not None]
    return {
        "train_loss": last[-1] if last else np.nan,
        "accuracy": np.nan if document["accuracy"] is None else document["accuracy"],
    }


def read_tags(document: dict[str, Any]) -> dict[str, str]:
    name = document["task"]["name"]
    return {
        "tags.mlmeta.kind": "attempt",
        "tags.mlmeta.task": json.dumps(read_tasks().get(name, {})),
        "tags.mlmeta.task_digest": hashlib.sha256(name.encode()).hexdigest(),
    }


def make_curve(document: dict[str, Any]) -> dict[str, Any]:
    losses = [np.nan if value is None else value for value in document["training_losses"]]
    return {"curve": np.array(losses, dtype=np.float64)}
