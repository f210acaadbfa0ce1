"""The reader of a tracking store by MLflow's public interface: works with every store, a server too."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException

from mlmeta.history.reader import UNREAD_TAGS, Changes, Known, RunRows
from mlmeta.tracking.store import read_pages, telling

# Clocks of the machines that train differ; whoever ended so long before the last reading is read once more.
_SLACK_MS = 600_000
_EXPERIMENTS_AT_ONCE = 100
# A server answers several at once.
_THREADS = 8
_AT_WORK = ("RUNNING", "SCHEDULED")
BATCHES_TAG = "mlmeta.import_batches"
BATCH_TAG = "mlmeta.import_batch"


class ApiReader:
    """Reads runs as MLflow gives them.

    Runs have no time of their last change: those are asked for that run, began or ended lately, or were imported
    since. Tags and metrics that somebody changes in a run that has ended are seen with the next whole reading.

    Args:
        client: Of the store.
        all_runs: Whether runs that are no attempts of mlmeta count too.
    """

    def __init__(self, client: MlflowClient, *, all_runs: bool = False) -> None:
        self.client = client
        self._filter = "" if all_runs else "tags.`mlmeta.kind` = 'attempt'"

    def is_unchanged(self, cursor: Mapping[str, Any]) -> bool:
        """Return False: only the store knows."""
        return False

    def read_changes(self, known: Known) -> Changes:
        """Return what is other than at the last reading; everything where there was none.

        Raises:
            MlmetaError: If the store does not answer.
        """
        since_ms = int(time.time() * 1000) - _SLACK_MS
        with telling("the tracking store cannot be read"):
            experiments = self._list_experiments()
            cursor: dict[str, Any] = {"since_ms": since_ms, "experiments": sorted(experiments)}
            cursor["batches"] = sorted({one for experiment in experiments.values() for one in read_batches(experiment)})
            deleted = {run.info.run_id for run in self._search(experiments, "", view=ViewType.DELETED_ONLY)}
            cursor["deleted"] = sorted(deleted)
            if known.cursor:
                runs = self._find_later(known, experiments, cursor)
                runs |= self._look_again(known, experiments, skipped=deleted | runs.keys())
            else:
                runs = {run.info.run_id: run for run in self._search(experiments, "")}
        gone = _find_gone(known, deleted, runs.keys(), experiments)
        return Changes(make_rows(list(runs.values()), experiments).to_arrow(), sorted(gone), cursor)

    def _find_later(
        self, known: Known, experiments: Mapping[str, Experiment], cursor: Mapping[str, Any]
    ) -> dict[str, Run]:
        """Return the runs that run, that began or ended since, and those of new imports and experiments."""
        since_ms = known.cursor["since_ms"]
        queries = [f"attributes.start_time >= {since_ms}", f"attributes.end_time >= {since_ms}"]
        queries += [f"attributes.status = '{status}'" for status in _AT_WORK]
        queries += [f"tags.`{BATCH_TAG}` = '{one}'" for one in cursor["batches"] if one not in known.cursor["batches"]]
        found = {run.info.run_id: run for query in queries for run in self._search(experiments, query)}
        new = [key for key in experiments if key not in known.cursor["experiments"]]
        return found | {run.info.run_id: run for run in self._search(new, "")}

    def _look_again(self, known: Known, experiments: Mapping[str, Experiment], *, skipped: Set[str]) -> dict[str, Run]:
        """Return, if they are there, the runs that ran when they were last seen, or were deleted then."""
        at_work = known.table.filter(pc.is_in(known.table["run_status"], pa.array(_AT_WORK)))
        doubtful = {*at_work["run_id"].to_pylist(), *known.cursor["deleted"]} - skipped
        found = {run_id: self._get(run_id) for run_id in sorted(doubtful)}
        return {key: run for key, run in found.items() if run is not None and run.info.experiment_id in experiments}

    def _list_experiments(self) -> dict[str, Experiment]:
        return {one.experiment_id: one for one in read_pages(self.client.search_experiments)}

    def _search(self, experiments: Iterable[str], query: str, *, view: int = ViewType.ACTIVE_ONLY) -> Iterator[Run]:
        terms = " and ".join(term for term in (self._filter, query) if term)
        ids = list(experiments)
        for start in range(0, len(ids), _EXPERIMENTS_AT_ONCE):
            chosen = ids[start : start + _EXPERIMENTS_AT_ONCE]
            yield from read_pages(self.client.search_runs, chosen, terms, view, max_results=1000)

    def _get(self, run_id: str) -> Run | None:
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def read_curves(self, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
        """Yield (run id, step, value) of a metric's whole history.

        Raises:
            MlmetaError: If the store does not answer.
        """
        with telling("the tracking store cannot be read"), ThreadPoolExecutor(_THREADS) as pool:
            histories = pool.map(lambda run_id: self.client.get_metric_history(run_id, metric), run_ids)
            for run_id, history in zip(run_ids, histories, strict=True):
                yield from ((run_id, int(point.step), point.value) for point in history)

    def read_tag(self, key: str) -> Iterator[tuple[str, str]]:
        """Yield (run id, value) of every run that has a tag.

        Raises:
            MlmetaError: If the store does not answer.
        """
        with telling("the tracking store cannot be read"):
            for run in self._search(self._list_experiments(), ""):
                if key in run.data.tags:
                    yield run.info.run_id, run.data.tags[key]


def _find_gone(known: Known, deleted: Set[str], found: Set[str], experiments: Mapping[str, Experiment]) -> set[str]:
    """Return the known runs that are deleted, lost or in an experiment that is."""
    columns = (known.table[name].to_pylist() for name in ("run_id", "experiment_id", "run_status"))
    return {
        run_id
        for run_id, experiment, status in zip(*columns, strict=True)
        if run_id not in found and (run_id in deleted or experiment not in experiments or status in _AT_WORK)
    }


def read_batches(experiment: Experiment) -> list[str]:
    """Return the ids of the imports that an experiment tells of, the newest last.

    Imported runs have their own, old times, and are not found by them.
    """
    try:
        batches = json.loads(experiment.tags.get(BATCHES_TAG, "[]"))
    except ValueError:
        return []
    return [str(batch) for batch in batches if str(batch).isalnum()] if isinstance(batches, list) else []


def make_rows(runs: Sequence[Run], experiments: Mapping[str, Experiment]) -> RunRows:
    """Return MLflow's runs as rows."""
    rows = RunRows()
    for index, run in enumerate(runs):
        info = run.info
        facts = (
            info.run_id, info.run_name, info.experiment_id, experiments[info.experiment_id].name,
            info.status, info.start_time, info.end_time,
        )  # fmt: skip
        for column, fact in zip(rows.facts.values(), facts, strict=True):
            column.append(fact)
        for key, value in run.data.params.items():
            rows.add_text(f"param:{key}", index, value)
        for key, value in run.data.tags.items():
            if key not in UNREAD_TAGS:
                rows.add_text(f"tag:{key}", index, value)
        for key, value in run.data.metrics.items():
            rows.add_number(f"metric:{key}", index, value)
    return rows
