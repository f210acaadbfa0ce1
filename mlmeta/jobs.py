"""What a job is: one training or one test that a server has been asked for; and how it lies in a table of SQLite."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

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
