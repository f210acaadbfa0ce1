"""The queue of attempts that a server is to make: one SQLite file, which many processes share; MLflow is not needed.

A job is one training or one test, and fills an MLflow run that was made for it. Its number is its place in the order:
a job that is put back is taken again before all that came after it. What a job may become:

    QUEUED ──take──▶ RUNNING ──end──▶ DONE, FAILED, CANCELLED
       ▲ ╰──cancel──▶ CANCELLED │
       ╰────────put back────────╯
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock

from mlmeta.errors import BadInputError, MlmetaError, NotFoundError, QueueFullError
from mlmeta.files import hold_lock, is_lock_held, state_folder
from mlmeta.tracking.store import store_key

CAPACITY = 1000
_BUSY_S = 60.0
_VERSION = 1
SCHEMA = """
CREATE TABLE jobs (
    job_id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    document TEXT NOT NULL, base_dir TEXT NOT NULL, data_roots TEXT NOT NULL, with_test INTEGER NOT NULL,
    owner TEXT NOT NULL, experiment_id TEXT NOT NULL,
    submitted_s REAL NOT NULL, started_s REAL, ended_s REAL,
    n_starts INTEGER NOT NULL DEFAULT 0, pid INTEGER, exit_code INTEGER, error TEXT NOT NULL DEFAULT '',
    cancel_requested INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_run ON jobs (run_id, job_id);
CREATE INDEX jobs_by_state ON jobs (state, job_id);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def queue_folder(store_uri: str) -> Path:
    """Return where the queue of a tracking store lies on this machine, unless a setting says otherwise.

    Args:
        store_uri: Of the store itself (``sqlite:///…``), not of the server before it.
    """
    return state_folder() / "jobs" / hashlib.sha256(store_key(store_uri).encode()).hexdigest()[:16]


class JobQueue:
    """A queue in a folder: made where it is missing, safe for many processes and threads.

    Args:
        folder: Of this queue alone.
        capacity: How many jobs may wait; it binds `add` only.

    Raises:
        MlmetaError: From every method, if the file cannot be used.
    """

    def __init__(self, folder: Path, *, capacity: int = CAPACITY) -> None:
        self.folder = Path(folder).absolute()
        self.capacity = capacity
        self._file = self.folder / "jobs.db"
        self._make()

    def _make(self) -> None:
        try:
            for name in ("logs", "locks"):
                (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            # Several processes that make one SQLite file at once would trip over each other.
            with FileLock(self.folder / "jobs.lock"), self._open() as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, _VERSION):
                    raise MlmetaError(f"the queue {self._file} was made by another version of mlmeta")
                if version == 0:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        except OSError as error:
            raise BadInputError(f"the folder {self.folder} cannot hold a queue: {error.strerror or error}") from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self._file, timeout=_BUSY_S, isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                yield connection
        except sqlite3.Error as error:
            raise MlmetaError(f"the queue {self._file} cannot be used: {error}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which no other writer comes between; broken off by any error."""
        with self._open() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def add(
        self,
        *,
        run_id: str,
        kind: JobKind,
        name: str,
        document: Mapping[str, Any],
        base_dir: str,
        data_roots: Sequence[str] = (),
        with_test: bool = True,
        owner: str = "",
        experiment_id: str = "0",
    ) -> Job:
        """Queue a job, behind all others; see `Job` for the arguments.

        Raises:
            QueueFullError: If as many jobs wait as may.
            BadInputError: If the run has a job that has not ended, or its id is none.
        """
        if not re.fullmatch(r"[0-9a-zA-Z_-]{1,64}", run_id):
            raise BadInputError(f"run_id: must be the id of a run; got {run_id[:100]!r}")
        values = {
            "run_id": run_id, "kind": JobKind(kind), "name": name, "state": JobState.QUEUED,
            "document": json.dumps(document), "base_dir": str(base_dir),
            "data_roots": json.dumps([str(root) for root in data_roots]), "with_test": with_test, "owner": owner,
            "experiment_id": experiment_id, "submitted_s": time.time(),
        }  # fmt: skip
        keys = ", ".join(values)
        marks = ", ".join(f":{key}" for key in values)
        with self._writing() as connection:
            if _count(connection, {JobState.QUEUED}) >= self.capacity:
                raise QueueFullError(f"{self.capacity:,} jobs are waiting, and no more may; try again later")
            newest = _newest(connection, run_id)
            if newest is not None and newest.state in OPEN:
                raise BadInputError(f"the run {run_id} has a job already, which is {newest.state}")
            sql = f"INSERT INTO jobs ({keys}) VALUES ({marks}) RETURNING *"  # noqa: S608 - names of our own
            return read_job(connection.execute(sql, values).fetchone())

    def list_jobs(
        self,
        *,
        states: Collection[JobState] | None = None,
        experiments: Collection[str] | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Job]:
        """Return jobs: those at work, those that wait in their order, then those that have ended, the newest first.

        Args:
            states: Only of these; None for all.
            experiments: Only of runs in these, by id; None for all.
            limit: So many at most.
            offset: So many of the first are passed over.
        """
        where, values = _in_states(states, experiments)
        is_open = f"state IN ('{JobState.RUNNING}', '{JobState.QUEUED}')"
        order = f"state = '{JobState.RUNNING}' DESC, {is_open} DESC, iif({is_open}, job_id, -job_id)"
        sql = f"SELECT * FROM jobs WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"  # noqa: S608 - no text of users
        with self._open() as connection:
            return [read_job(row) for row in connection.execute(sql, (*values, limit, offset)).fetchall()]

    def find(self, run_id: str) -> Job | None:
        """Return the newest job of a run, or None."""
        with self._open() as connection:
            return _newest(connection, run_id)

    def get(self, job_id: int) -> Job:
        """Return a job.

        Raises:
            NotFoundError: If there is no such job.
        """
        with self._open() as connection:
            return _get(connection, job_id)

    def count(self, states: Collection[JobState] | None = None, experiments: Collection[str] | None = None) -> int:
        """Return how many jobs are in one of some states, of runs in some experiments; None for all."""
        with self._open() as connection:
            return _count(connection, states, experiments)

    def position(self, job: Job) -> int:
        """Return a job's place among those that wait, 1 for the next; 0 for one that does not wait."""
        sql = (
            "SELECT count(*) FROM jobs WHERE state = :queued AND job_id <= :job_id "
            "AND EXISTS (SELECT 1 FROM jobs WHERE job_id = :job_id AND state = :queued)"
        )
        with self._open() as connection:
            found = connection.execute(sql, {"queued": JobState.QUEUED, "job_id": job.job_id}).fetchone()
        return int(found[0])

    def take(self) -> Job | None:
        """Make the oldest waiting job a running one, and return it; None if none waits."""
        sql = (
            "UPDATE jobs SET state = :running, n_starts = n_starts + 1, started_s = :now, ended_s = NULL, pid = NULL, "
            "exit_code = NULL, error = '' WHERE job_id = (SELECT min(job_id) FROM jobs WHERE state = :queued) "
            "RETURNING *"
        )
        values = {"running": JobState.RUNNING, "queued": JobState.QUEUED, "now": time.time()}
        with self._writing() as connection:
            row = connection.execute(sql, values).fetchone()
        return None if row is None else read_job(row)

    def note_process(self, job_id: int, pid: int) -> None:
        """Say which process works on a job."""
        with self._writing() as connection:
            connection.execute("UPDATE jobs SET pid = ? WHERE job_id = ?", (pid, job_id))

    def end(self, job_id: int, state: JobState, *, exit_code: int | None = None, error: str = "") -> Job:
        """End a running job, and return it; one that has ended, or waits, stays as it is.

        Args:
            job_id: Which.
            state: DONE, FAILED or CANCELLED.
            exit_code: Of its process, if it is known.
            error: Why it failed.

        Raises:
            NotFoundError: If there is no such job.
        """
        if state not in ENDED:
            raise ValueError(f"a job does not end {state}")
        return self._change(job_id, state=state, ended_s=time.time(), exit_code=exit_code, error=error)

    def put_back(self, job_id: int, *, was_stopped: bool = False) -> Job:
        """Make a running job wait again, at its old place; one that is to be cancelled is cancelled.

        Args:
            job_id: Which; nothing is done if it is not running.
            was_stopped: It was stopped with its runner, through no fault of its own: the start is not counted.

        Raises:
            NotFoundError: If there is no such job.
        """
        return self._change(job_id, state=JobState.QUEUED, n_starts=-int(was_stopped), started_s=None, pid=None)

    def _change(self, job_id: int, *, state: JobState, n_starts: int = 0, **changes: Any) -> Job:
        with self._writing() as connection:
            job = _get(connection, job_id)
            if job.state is not JobState.RUNNING:
                return job
            if state is JobState.QUEUED and job.cancel_requested:
                state, changes = JobState.CANCELLED, {"ended_s": time.time()}
            changes |= {"state": state, "n_starts": job.n_starts + n_starts}
            sets = ", ".join(f"{key} = :{key}" for key in changes)
            sql = f"UPDATE jobs SET {sets} WHERE job_id = :job_id RETURNING *"  # noqa: S608 - names of our own
            return read_job(connection.execute(sql, {**changes, "job_id": job_id}).fetchone())

    def request_cancel(self, run_id: str) -> Job:
        """Cancel the job of a run: at once if it waits; if it runs, its runner is asked to. One that has ended stays.

        Raises:
            NotFoundError: If the run has no job.
        """
        sql = (
            "UPDATE jobs SET state = iif(state = :queued, :cancelled, state), cancel_requested = 1, "
            "ended_s = iif(state = :queued, :now, ended_s) WHERE job_id = :job_id RETURNING *"
        )
        with self._writing() as connection:
            job = _newest(connection, run_id)
            if job is None:
                raise NotFoundError(f"run_id: no job fills the run {run_id[:100]!r}")
            if job.state in ENDED:
                return job
            values = {"queued": JobState.QUEUED, "cancelled": JobState.CANCELLED, "now": time.time()}
            return read_job(connection.execute(sql, {**values, "job_id": job.job_id}).fetchone())

    def log_file(self, run_id: str) -> Path:
        """Return where what the processes of a run's jobs say is written."""
        return self.folder / "logs" / f"{run_id}.log"

    def read_log(self, run_id: str, *, offset: int = 0, limit: int = 65536) -> tuple[str, int]:
        """Return a part of the log of a run's job, and where the next part begins.

        Args:
            run_id: Of the job.
            offset: In bytes; 0, or what this gave before.
            limit: So many bytes at most, 8 at least.

        Returns:
            The text, empty where nothing more has been written, and the offset behind it. A character that is cut
            by the limit or not yet written in full belongs to the next part.

        Raises:
            NotFoundError: If the run has no job.
        """
        if self.find(run_id) is None:
            raise NotFoundError(f"run_id: no job fills the run {run_id[:100]!r}")
        offset = max(offset, 0)
        try:
            with self.log_file(run_id).open("rb") as stream:
                stream.seek(offset)
                content = stream.read(max(limit, 8))
        except FileNotFoundError:
            content = b""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(content)
        return text, offset + len(content) - len(decoder.getstate()[0])

    def set_address(self, uri: str) -> None:
        """Say where the tracking server answers that the jobs are to record in."""
        if uri != self.address():
            with self._writing() as connection:
                connection.execute("INSERT OR REPLACE INTO facts VALUES ('address', ?)", (uri,))

    def address(self) -> str | None:
        """Return where the tracking server answers; None if nobody has said it yet."""
        with self._open() as connection:
            row = connection.execute("SELECT value FROM facts WHERE key = 'address'").fetchone()
        return None if row is None else str(row[0])

    def hold(self, job_id: int) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of a job, which says that its process lives.

        Raises:
            BadInputError: If another process holds it.
        """
        return hold_lock(self._lock_file(job_id), f"the job {job_id} is being worked on by another process")

    def is_alive(self, job: Job) -> bool:
        """Return whether a process works on a job."""
        return bool(is_lock_held(self._lock_file(job.job_id)))

    def _lock_file(self, job_id: int) -> Path:
        return self.folder / "locks" / f"{job_id}.lock"


def _get(connection: sqlite3.Connection, job_id: int) -> Job:
    row = connection.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"job_id: there is no job {job_id}")
    return read_job(row)


def _newest(connection: sqlite3.Connection, run_id: str) -> Job | None:
    sql = "SELECT * FROM jobs WHERE run_id = ? ORDER BY job_id DESC LIMIT 1"
    row = connection.execute(sql, (run_id,)).fetchone()
    return None if row is None else read_job(row)


def _in_states(
    states: Collection[JobState] | None, experiments: Collection[str] | None = None
) -> tuple[str, list[str]]:
    """Return a condition, and its values."""
    conditions, values = ["1"], []
    for column, wanted in {"state": states, "experiment_id": experiments}.items():
        if wanted is not None:
            conditions.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += list(wanted)
    return " AND ".join(conditions), values


def _count(
    connection: sqlite3.Connection, states: Collection[JobState] | None, experiments: Collection[str] | None = None
) -> int:
    where, values = _in_states(states, experiments)
    return int(connection.execute(f"SELECT count(*) FROM jobs WHERE {where}", values).fetchone()[0])  # noqa: S608


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = frozenset({JobState.QUEUED, JobState.RUNNING})
ENDED = frozenset(JobState) - OPEN


class JobKind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True)
class Job:
    """One training or test, as it stood when it was read.

    Attributes:
        job_id: From 1 on, in the order of submission.
        run_id: The MLflow run that it fills.
        kind: Training or test.
        name: Of the attempt.
        state: Where it stands.
        document: The train or test commands.
        base_dir: What relative paths in them are relative to.
        data_roots: The folders that its pictures may lie in.
        with_test: Whether a training is followed by its test.
        owner: The login of who submitted it; empty without one.
        experiment_id: Of its run.
        submitted_s: Seconds since 1970, as all times here.
        started_s: When it was last taken; None before.
        ended_s: When it came to its end; None before.
        n_starts: How often it was taken, without the starts that ended because the runner was stopped.
        pid: Of its process, once that has begun.
        exit_code: Of its process; negative for a signal.
        error: Why it failed, one sentence; empty where it did not.
        cancel_requested: Whether it is to be ended.
    """

    job_id: int
    run_id: str
    kind: JobKind
    name: str
    state: JobState
    document: dict[str, Any]
    base_dir: str
    data_roots: tuple[str, ...]
    with_test: bool
    owner: str
    experiment_id: str
    submitted_s: float
    started_s: float | None
    ended_s: float | None
    n_starts: int
    pid: int | None
    exit_code: int | None
    error: str
    cancel_requested: bool


def read_job(row: sqlite3.Row) -> Job:
    """Return the job of a row of the table ``jobs``."""
    values = dict(row)
    values |= {"kind": JobKind(values["kind"]), "state": JobState(values["state"])}
    values |= {"document": json.loads(values["document"]), "data_roots": tuple(json.loads(values["data_roots"]))}
    values |= {key: bool(values[key]) for key in ("with_test", "cancel_requested")}
    return Job(**values)
