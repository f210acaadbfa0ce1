"""Gives recorded attempts back as Attempt documents; imported ones exactly as they came."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlmeta.errors import BadInputError, MlmetaError, NotFoundError, suggest
from mlmeta.tracking.attempts import get_attempt_run, make_document, newest_runs
from mlmeta.tracking.store import list_experiments, open_client, read_pages, telling

_ATTEMPTS = "tags.`mlmeta.kind` = 'attempt'"


def export_attempts(
    *names_or_run_ids: str,
    experiments: Sequence[str] | None = None,
    all: bool = False,
    on_fault: Callable[[MlmetaError], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the Attempt documents of attempts.

    Args:
        names_or_run_ids: Which: a run id, or a name, which gives the newest attempt of that name.
        experiments: Names of experiments to look in; None for all.
        all: Every attempt, the one that started first first, instead of named ones.
        on_fault: Is told of an attempt that has no document, with which the export goes on; None raises.

    Raises:
        BadInputError: If neither names nor all attempts are asked for, or both.
        NotFoundError: If there is no such attempt or experiment, or it has no document.
        MlmetaError: If the tracking store does not answer.
    """
    if bool(names_or_run_ids) == all:
        raise BadInputError("name the attempts to export, or ask for all of them, not both")
    client = open_client()
    with telling("the attempts cannot be read"):
        experiment_ids = find_experiments(client, experiments)
        wanted: Iterable[str | Run] = _list_attempts(client, experiment_ids) if all else names_or_run_ids
        for one in wanted:
            try:
                run = _find_run(client, one, experiment_ids) if isinstance(one, str) else one
                document = read_document(client, run)
            except NotFoundError as error:
                if on_fault is None:
                    raise
                on_fault(error)
            else:
                yield document


def read_document(client: MlflowClient, run: Run) -> dict[str, Any]:
    """Return the Attempt document of a run: the one that was imported, or one made of what the run holds now.

    Raises:
        NotFoundError: If the run has neither a document nor commands.
    """
    run_id = run.info.run_id
    if "mlmeta.import_digest" not in run.data.tags:
        return make_document(run_id, client=client)
    try:
        # Ten times faster than to ask the client, which reads the run again to know where its artifacts lie.
        document: dict[str, Any] = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/attempt.json"))
    except ValueError as error:
        raise NotFoundError(f"the artifact attempt.json of run {run_id} is damaged: {error}") from None
    except (MlflowException, OSError) as error:
        raise NotFoundError(f"the run {run_id} has no artifact attempt.json: {error}") from None
    return document


def find_experiments(client: MlflowClient, names: Sequence[str] | None) -> list[str]:
    """Return the ids of experiments by their names; None for all that are not deleted.

    Raises:
        NotFoundError: If there is no experiment of a name; names the nearest.
    """
    ids = list_experiments(client)
    if names is None:
        return ids
    by_name = {client.get_experiment(experiment_id).name: experiment_id for experiment_id in ids}
    for name in names:
        if name not in by_name:
            raise NotFoundError(f"there is no experiment {name!r}{suggest(name, by_name)}")
    return [by_name[name] for name in names]


def _list_attempts(client: MlflowClient, experiments: list[str]) -> Iterator[Run]:
    if experiments:
        order = ["attributes.start_time ASC"]
        yield from read_pages(client.search_runs, experiments, _ATTEMPTS, max_results=1000, order_by=order)


def _find_run(client: MlflowClient, name_or_run_id: str, experiments: list[str]) -> Run:
    if re.fullmatch(r"[0-9a-f]{32}", name_or_run_id):
        try:
            return get_attempt_run(client, name_or_run_id)
        except NotFoundError:
            if not _find_named(client, name_or_run_id, experiments):
                raise
    runs = _find_named(client, name_or_run_id, experiments)
    # Where there is none, this tells the nearest name.
    return runs[0] if runs else newest_runs(client, name_or_run_id.replace("'", " "))[0]


def _find_named(client: MlflowClient, name: str, experiments: list[str]) -> list[Run]:
    """Return the newest attempt of a name, or nothing."""
    quote = '"' if "'" in name else "'"
    if quote in name or not experiments:
        return []
    filters = f"{_ATTEMPTS} and attributes.run_name = {quote}{name}{quote}"
    order = ["attributes.start_time DESC"]
    try:
        return list(client.search_runs(experiments, filters, order_by=order, max_results=1))
    except MlflowException as error:
        raise NotFoundError(f"model_name: there is no attempt named {name!r}: {error.message}") from None
