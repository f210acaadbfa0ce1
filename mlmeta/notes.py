"""Writes the note that people read first on a run's page in MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Run

from mlmeta.finding import list_experiments


def write_note(client: MlflowClient, run_id: str) -> str:
    """Return the short Markdown summary of a run: the result first."""
    run = client.get_run(run_id)
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
    page = f"\n\n[In mlmeta]({tags['mlmeta.page']}attempts/{run_id})" if "mlmeta.page" in tags else ""
    return f"{result}\n\n{task}.\n\n{_compare_with_incumbent(client, run)}".strip() + page


def _compare_with_incumbent(client: MlflowClient, run: Run) -> str:
    """Return in words how a run differs from the best other attempt on its task."""
    digest = run.data.tags.get("mlmeta.task_digest")
    if not digest:
        return ""
    experiments = list_experiments(client)
    best = client.search_runs(
        experiments, f"tags.`mlmeta.task_digest` = '{digest}' and metrics.accuracy >= 0",
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
