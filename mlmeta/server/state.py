"""What the routes share in one worker process of the server; nothing of it but caches: all state is on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

import anyio.to_thread
import pandas as pd
from starlette.types import ASGIApp

from mlmeta.server.queue import JobQueue
from mlmeta.server.settings import ServerSettings

# How old a table of attempts may be: so many seconds, and so many times as long as reading it takes. With many readers
# the store is asked once in that time, and a large one does not keep a core busy.
_KEPT_S, _KEPT_READINGS = 1.0, 10.0
# So many answers that take long are kept.
_MOST_ANSWERS = 50
# MLflow's own routes run in other threads: waiting ones of ours must not take theirs.
_N_THREADS = 8
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _SharedKinds(dict[str, str]):
    """What kind each column is; pandas copies it deeply with every step, which would cost more than the step."""

    def __deepcopy__(self, _memo: object) -> _SharedKinds:
        return self


class AttemptTable:
    """All attempts of the tracking store, read when somebody asks and kept for a moment."""

    def __init__(self, store_uri: str) -> None:
        self._store_uri = store_uri
        self._lock = threading.Lock()
        self._fresh_until = self._full_until = 0.0
        self._table: pd.DataFrame | None = None

    def read(self, *, fresh: bool = False, full: bool = False) -> pd.DataFrame:
        """Return the table of `mlmeta.history.loading.load_attempts`; it is shared, so it must not be changed.

        Args:
            fresh: Whether it must have what was written a moment ago.
            full: Whether to read everything again, also what was changed by hand in runs that have ended. It is not
                done twice within some moments, however many ask.

        Raises:
            MlmetaError: If the store cannot be read.
        """
        from mlmeta.history.loading import load_attempts

        with self._lock:
            started = time.monotonic()
            full = full and started >= self._full_until
            if full or fresh or self._table is None or started >= self._fresh_until:
                self._table = load_attempts(self._store_uri, full=full)
                self._table.attrs |= {"kinds": _SharedKinds(self._table.attrs["kinds"])}
                ended = time.monotonic()
                self._fresh_until = ended + max(_KEPT_S, _KEPT_READINGS * (ended - started))
                self._full_until = self._fresh_until if full else self._full_until
            return self._table


class KeptAnswers:
    """Answers that take long to compute, kept until the scores that they rest on are others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[Hashable, tuple[Hashable, Any]] = {}

    def keep(self, key: Hashable, table: pd.DataFrame, metric: str, compute: Callable[[], _T]) -> _T:
        """Return an answer about the scores of a table, computed where it is not known yet.

        One is computed at a time: they use all cores that there are.
        """
        scores = table[[name for name in ("run_id", metric) if name in table.columns]]
        state = (len(table), int(pd.util.hash_pandas_object(scores, index=False).sum()))
        with self._lock:
            known = self._answers.pop(key, None)
            if known is None or known[0] != state:
                known = (state, compute())
            self._answers[key] = known
            while len(self._answers) > _MOST_ANSWERS:
                del self._answers[next(iter(self._answers))]
            answer: _T = known[1]
            return answer


@dataclass(frozen=True)
class Server:
    """The server.

    Attributes:
        mlflow: MLflow's own app, which is asked in callers' names.
        prefix: MLflow's static prefix, without a slash at its end.
        store_uri: Of the backend store, for reading.
        needs_login: Whether MLflow asks for one.
    """

    settings: ServerSettings
    mlflow: ASGIApp
    prefix: str
    store_uri: str
    needs_login: bool
    queue: JobQueue
    attempts: AttemptTable
    answers: KeptAnswers = field(default_factory=KeptAnswers)
    threads: anyio.CapacityLimiter = field(default_factory=partial(anyio.CapacityLimiter, _N_THREADS))

    async def work(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what a function returns that blocks: run in a thread of ours."""
        call: Callable[[], Any] = partial(function, *args, **kwargs)
        result: _T = await anyio.to_thread.run_sync(call, limiter=self.threads)
        return result
