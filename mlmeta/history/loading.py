"""The fast reader: every attempt of a tracking store as one table, kept in a cache on this machine."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlmeta import files
from mlmeta.errors import NotFoundError, suggest
from mlmeta.history.cache import CachedHistory, HistoryCache, merge_runs
from mlmeta.history.reader import UNREAD_TAGS, Known, Reader, empty_table, restore_infinite
from mlmeta.history.sql_reader import open_sql_reader
from mlmeta.history.table import find_kinds, make_frame, with_kinds
from mlmeta.tracking.store import current_uri, store_key, visible_experiments

_LOG = logging.getLogger(__name__)


def load_attempts(
    tracking_uri: str | None = None,
    *,
    experiments: Sequence[str] | None = None,
    all_runs: bool = False,
    full: bool = False,
) -> pd.DataFrame:
    """Return all attempts ever recorded in a tracking store, one row each, newest first.

    What was read is kept in a cache on this machine; only what is new or changed since is asked for.

    Args:
        tracking_uri: The store; None for the one that MLflow's own settings name.
        experiments: Names or ids of the experiments to look at; None for all that are not deleted.
        all_runs: Whether to give the runs of other tools and single tests too.
        full: Read everything again, also what was changed by hand in runs that have ended.

    Returns:
        Columns ``run_id``, ``model_name``, ``status``, ``task``, ``experiment`` (text), ``started``
        (datetime64[ms, UTC]), ``duration_s`` (float64, seconds); the params, Int64, float64, boolean or text as all
        values of one read; the last values of the metrics, float64; ``tags.<key>``, text; ``curve``, float64 arrays of
        the training loss by epoch, or None. ``attrs["kinds"]`` says which column is a param, a metric, a tag.

    Raises:
        NotFoundError: If there is no such experiment.
        MlmetaError: If the store cannot be read.
    """
    uri = tracking_uri or current_uri()
    reader = open_reader(uri, all_runs=all_runs)
    table = _update(reader, _open_cache(uri, reader, all_runs=all_runs), full=full)
    visible = visible_experiments()
    if visible is not None:
        table = table.filter(pc.is_in(table["experiment_id"], value_set=pa.array(sorted(visible), pa.string())))
    return make_frame(table if experiments is None else _choose(table, experiments))


def load_curves(run_ids: Sequence[str], *, metric: str = "train_loss", tracking_uri: str | None = None) -> pd.DataFrame:
    """Return a metric's whole history in some runs.

    Returns:
        ``run_id`` (text), ``step`` (Int64), ``value`` (float64, infinite as it was logged), in
        the order of the run ids and of the steps.

    Raises:
        MlmetaError: If the store cannot be read.
    """
    reader = open_reader(tracking_uri or current_uri(), all_runs=True)
    points = pd.DataFrame(reader.read_curves(list(run_ids), metric), columns=["run_id", "step", "value"])
    order = pd.Series(range(len(run_ids)), index=pd.Index(run_ids))
    points["order"] = points["run_id"].map(order[~order.index.duplicated()])
    points = points.sort_values(["order", "step"], kind="stable", ignore_index=True).drop(columns="order")
    points = points.astype({"run_id": "str", "step": "Int64", "value": "float64"})
    return points.assign(value=restore_infinite(points["value"].to_numpy()))


def add_unread(table: pd.DataFrame, names: Iterable[str], *, tracking_uri: str | None = None) -> pd.DataFrame:
    """Return the table with the tags that are named and that no table has by itself: MLflow's note, its run name.

    They are long, and any user may change them at any time, so they are read when somebody asks for them.

    Args:
        table: Attempts of the store.
        names: Columns as users write them: ``tags.mlflow.note.content``.
        tracking_uri: The store; None for the one that MLflow's own settings name.

    Raises:
        MlmetaError: If the store cannot be read.
    """
    wanted = {
        key for name in names for key in UNREAD_TAGS if name.removesuffix(key).casefold() in ("", "tags.", "tag.")
    }
    columns = {f"tags.{key}": key for key in sorted(wanted) if f"tags.{key}" not in table.columns}
    if not columns:
        return table
    reader = open_reader(tracking_uri or current_uri(), all_runs=True)
    kinds = {**find_kinds(table), **dict.fromkeys(columns, "tag")}
    texts = {name: table["run_id"].map(dict(reader.read_tag(key))).astype("str") for name, key in columns.items()}
    return with_kinds(table.assign(**texts), kinds)


def open_reader(uri: str, *, all_runs: bool = False) -> Reader:
    """Return the fastest reader of a tracking store.

    Raises:
        MlmetaError: If the store cannot be opened.
    """
    reader = open_sql_reader(uri, all_runs=all_runs)
    if reader is not None:
        return reader
    from mlmeta.history.api_reader import ApiReader
    from mlmeta.tracking.store import open_client

    return ApiReader(open_client(uri), all_runs=all_runs)


def _open_cache(uri: str, reader: Reader, *, all_runs: bool) -> HistoryCache:
    # No reader can go on where another has stopped: where the file of a store is gone, another one is chosen.
    what = f"{store_key(uri)} {'all' if all_runs else 'attempts'} {type(reader).__name__}"
    return HistoryCache(cache_folder() / hashlib.sha256(what.encode()).hexdigest()[:32])


def _update(reader: Reader, cache: HistoryCache, *, full: bool) -> pa.Table:
    """Return the runs as they are now; the cache is brought up to date where it can be written."""
    cached = None if full else cache.read()
    if cached is not None and reader.is_unchanged(cached.cursor):
        return cached.table
    with cache.lock() as locked:
        if cached is not None and locked and not _is_newest(cache, cached):
            cached = cache.read()
        cached = cached or CachedHistory(empty_table(), {})
        changes = reader.read_changes(Known(cached.table, cached.cursor))
        if locked:
            try:
                return cache.append(cached, changes.runs, changes.gone, changes.cursor).table
            except OSError as error:
                _LOG.warning("mlmeta: the history is not kept in %s: %s", cache.folder, error)
        return merge_runs(cached.table, changes.runs, changes.gone)


def _is_newest(cache: HistoryCache, cached: CachedHistory) -> bool:
    """Return whether nobody wrote the cache since it was read."""
    try:
        return cache.read_manifest() == (cached.cursor, cached.segments)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _choose(table: pa.Table, experiments: Sequence[str]) -> pa.Table:
    names = table["experiment"].to_pandas()
    ids = table["experiment_id"].to_pandas()
    known = {*names, *ids}
    for wanted in experiments:
        if wanted not in known:
            hint = suggest(wanted, set(names), f"; there are: {', '.join(sorted(set(names))) or 'none'}")
            raise NotFoundError(f"experiment: no attempt is in an experiment {wanted!r}{hint}")
    return table.filter(pa.array(names.isin(experiments) | ids.isin(experiments)))


def cache_folder() -> Path:
    """Return the folder that holds the caches of all tracking stores."""
    return files.cache_folder() / "history"
