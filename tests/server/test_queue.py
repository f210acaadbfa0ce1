"""The queue on disk: its order, its limits, and what many processes at once make of it."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlmeta.errors import BadInputError, MlmetaError, NotFoundError, QueueFullError
from mlmeta.server.queue import ENDED, OPEN, Job, JobKind, JobQueue, JobState, queue_folder

DOCUMENT = {"model_name": "dogs", "label_names": ["ä", "b"], "optimizer": {"lr": 1e-3}}


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "queue")


def add(queue: JobQueue, run_id: str, **changes: Any) -> Job:
    given = {"kind": JobKind.TRAIN, "name": "dogs", "document": DOCUMENT, "base_dir": "/data", **changes}
    return queue.add(run_id=run_id, **given)


def test_a_job_comes_back_as_it_was_given(queue: JobQueue) -> None:
    job = add(
        queue, "a1", kind=JobKind.TEST, data_roots=("/data", "/ö"), with_test=False, owner="ann", experiment_id="7"
    )
    assert (job.job_id, job.state, job.n_starts, job.cancel_requested) == (1, JobState.QUEUED, 0, False)
    assert (job.document, job.base_dir, job.data_roots) == (DOCUMENT, "/data", ("/data", "/ö"))
    assert (job.kind, job.with_test, job.owner, job.experiment_id) == (JobKind.TEST, False, "ann", "7")
    assert JobQueue(queue.folder).get(1) == queue.find("a1") == job


def test_jobs_are_taken_in_the_order_they_came_in(queue: JobQueue) -> None:
    for run_id in "abc":
        add(queue, run_id)
    taken = [queue.take() for _ in range(4)]
    assert [job.run_id if job else None for job in taken] == ["a", "b", "c", None]
    assert all(job.state is JobState.RUNNING and job.n_starts == 1 for job in taken if job)


def test_a_job_that_is_put_back_keeps_its_place(queue: JobQueue) -> None:
    for run_id in "abc":
        add(queue, run_id)
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    queue.note_process(second.job_id, 17)
    assert queue.get(second.job_id).pid == 17
    back = queue.put_back(second.job_id)
    assert (back.state, back.pid, back.started_s) == (JobState.QUEUED, None, None)
    again = queue.take()
    assert again is not None
    assert (again.run_id, again.n_starts) == ("b", 2)


def test_a_start_that_was_stopped_with_the_runner_is_not_counted(queue: JobQueue) -> None:
    add(queue, "a")
    for _ in range(5):
        job = queue.take()
        assert job is not None
        assert job.n_starts == 1
        queue.put_back(job.job_id, was_stopped=True)


def test_places_are_counted_from_the_next_one(queue: JobQueue) -> None:
    jobs = [add(queue, run_id) for run_id in "abcd"]
    queue.take()
    queue.request_cancel("c")
    assert [queue.position(job) for job in jobs] == [0, 1, 0, 2]


def test_no_more_jobs_wait_than_may(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, capacity=2)
    add(queue, "a")
    add(queue, "b")
    with pytest.raises(QueueFullError, match="2 jobs are waiting"):
        add(queue, "c")
    assert queue.find("c") is None
    queue.take()
    add(queue, "c")


def test_a_run_has_one_open_job_at_most(queue: JobQueue) -> None:
    add(queue, "a")
    with pytest.raises(BadInputError, match="has a job already, which is queued"):
        add(queue, "a")
    queue.request_cancel("a")
    second = add(queue, "a")
    assert queue.find("a") == second


@pytest.mark.parametrize("run_id", ["", "../a", "a/b", "a.log", "a" * 65, "ä"])
def test_what_is_no_run_id_is_refused(queue: JobQueue, run_id: str) -> None:
    with pytest.raises(BadInputError, match="run_id"):
        add(queue, run_id)
    with pytest.raises(NotFoundError):
        queue.read_log(run_id)


def test_a_waiting_job_is_cancelled_at_once(queue: JobQueue) -> None:
    add(queue, "a")
    job = queue.request_cancel("a")
    assert job.state is JobState.CANCELLED
    assert job.ended_s is not None
    assert queue.take() is None


def test_a_running_job_is_asked_to_end(queue: JobQueue) -> None:
    add(queue, "a")
    queue.take()
    job = queue.request_cancel("a")
    assert (job.state, job.cancel_requested, job.ended_s) == (JobState.RUNNING, True, None)
    assert queue.put_back(job.job_id).state is JobState.CANCELLED
    assert queue.take() is None


@pytest.mark.parametrize("state", sorted(ENDED))
def test_an_ended_job_stays_as_it_is(queue: JobQueue, state: JobState) -> None:
    add(queue, "a")
    queue.take()
    job = queue.end(1, state, exit_code=3, error="why")
    assert (job.state, job.exit_code, job.error) == (state, 3, "why")
    assert queue.request_cancel("a") == job
    assert queue.put_back(1) == job
    assert queue.end(1, JobState.DONE) == job


@pytest.mark.parametrize("state", sorted(OPEN))
def test_no_job_ends_open(queue: JobQueue, state: JobState) -> None:
    add(queue, "a")
    with pytest.raises(ValueError, match="does not end"):
        queue.end(1, state)


def test_what_is_not_there_is_not_found(queue: JobQueue) -> None:
    calls: list[Callable[[], object]] = [
        lambda: queue.get(1),
        lambda: queue.end(1, JobState.DONE),
        lambda: queue.put_back(1),
        lambda: queue.request_cancel("a"),
        lambda: queue.read_log("a"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    assert queue.find("a") is None
    assert queue.take() is None


def test_jobs_are_listed_in_their_order_and_after_them_what_has_ended(queue: JobQueue) -> None:
    for run_id in "abcdef":
        add(queue, run_id, experiment_id="1" if run_id in "bf" else "0")
    for run_id in "cb":
        queue.request_cancel(run_id)
    queue.take()
    queue.put_back(1)
    queue.request_cancel("a")
    queue.take()
    assert [job.run_id for job in queue.list_jobs()] == list("defcba")
    assert [job.run_id for job in queue.list_jobs(limit=2, offset=1)] == list("ef")
    assert [job.run_id for job in queue.list_jobs(states={JobState.QUEUED})] == list("ef")
    assert [job.run_id for job in queue.list_jobs(states=OPEN, offset=2)] == ["f"]
    assert [job.run_id for job in queue.list_jobs(experiments=["1"])] == list("fb")
    assert [job.run_id for job in queue.list_jobs(states=OPEN, experiments=["0"], limit=1)] == ["d"]
    assert queue.list_jobs(states=[]) == queue.list_jobs(experiments=[]) == []
    assert (queue.count(), queue.count(OPEN), queue.count({JobState.CANCELLED})) == (6, 3, 3)
    assert (queue.count(experiments=["1"]), queue.count(OPEN, ["1"]), queue.count(OPEN, [])) == (2, 1, 0)


def test_the_log_is_read_on_from_where_it_was_left(queue: JobQueue) -> None:
    add(queue, "a")
    assert queue.read_log("a") == ("", 0)
    with queue.log_file("a").open("ab") as log:
        log.write("epoch 1 …\n".encode())
        log.flush()
        text, offset = queue.read_log("a")
        assert text == "epoch 1 …\n"
        half = "…".encode()
        log.write(b"x" + half[:2])
        log.flush()
        text, offset = queue.read_log("a", offset=offset)
        assert text == "x"
        log.write(half[2:])
        log.flush()
        assert queue.read_log("a", offset=offset) == ("…", offset + 3)
    assert queue.read_log("a", offset=10**9) == ("", 10**9)


@pytest.mark.parametrize("limit", [1, 8, 9, 1000])
def test_a_log_read_in_parts_is_the_whole_log(queue: JobQueue, limit: int) -> None:
    add(queue, "a")
    whole = "größe … 🐕 " * 40
    queue.log_file("a").write_text(whole, encoding="utf-8")
    parts, offset = [], 0
    while (part := queue.read_log("a", offset=offset, limit=limit))[0]:
        parts.append(part[0])
        offset = part[1]
    assert "".join(parts) == whole


def test_a_log_that_is_no_text_is_read_all_the_same(queue: JobQueue) -> None:
    add(queue, "a")
    queue.log_file("a").write_bytes(b"a\xffb")
    assert queue.read_log("a") == ("a�b", 3)


def test_the_address_of_the_server_is_kept(queue: JobQueue) -> None:
    assert queue.address() is None
    queue.set_address("http://127.0.0.1:5000")
    queue.set_address("http://127.0.0.1:5001/mlflow")
    assert JobQueue(queue.folder).address() == "http://127.0.0.1:5001/mlflow"


HOLDER = """
import sys
from pathlib import Path
from mlmeta.server.queue import JobQueue
with JobQueue(Path(sys.argv[1])).hold(1):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_job_lives_as_long_as_its_process(queue: JobQueue) -> None:
    job = add(queue, "a")
    assert not queue.is_alive(job)
    command = [sys.executable, "-c", HOLDER, str(queue.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert queue.is_alive(job)
        with pytest.raises(BadInputError, match="worked on by another process"), queue.hold(1):
            pytest.fail("held twice")
        process.kill()
        process.wait()
        assert not queue.is_alive(job)
        with queue.hold(1):
            assert queue.is_alive(job)


def test_a_job_that_was_held_leaves_no_file(queue: JobQueue) -> None:
    with queue.hold(1):
        pass
    assert list((queue.folder / "locks").iterdir()) == []


def take_all(folder: Path) -> list[int]:
    queue = JobQueue(folder)
    return [job.job_id for job in iter(queue.take, None)]


def add_some(folder: Path, name: str) -> int:
    queue = JobQueue(folder, capacity=100)
    n_added = 0
    for index in range(40):
        try:
            add(queue, f"{name}-{index}")
            n_added += 1
        except QueueFullError:
            pass
    return n_added


def test_many_processes_make_one_queue_and_none_adds_more_than_may_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        added = list(pool.map(add_some, [tmp_path / "q"] * 4, "abcd"))
        assert sum(added) == JobQueue(tmp_path / "q").count({JobState.QUEUED}) == 100
        taken = list(pool.map(take_all, [tmp_path / "q"] * 4))
    assert sorted(itertools.chain(*taken)) == list(range(1, 101))
    assert all(jobs == sorted(jobs) for jobs in taken)


def test_many_threads_take_each_job_once(queue: JobQueue) -> None:
    for index in range(60):
        add(queue, f"r{index}")
    with ThreadPoolExecutor(8) as pool:
        taken = [job for job in pool.map(lambda _: queue.take(), range(80)) if job]
    assert sorted(job.job_id for job in taken) == list(range(1, 61))


def test_a_file_that_is_no_queue_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no database, " * 100)
    with pytest.raises(MlmetaError, match=r"jobs\.db cannot be used: file is not a database"):
        JobQueue(tmp_path)


def test_the_queue_of_another_version_is_not_touched(queue: JobQueue) -> None:
    with sqlite3.connect(queue.folder / "jobs.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(MlmetaError, match="another version"):
        JobQueue(queue.folder)


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="cannot hold a queue"):
        JobQueue(tmp_path / "file" / "queue")


def test_each_store_has_a_queue_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    here = queue_folder("sqlite:///mlflow.db")
    assert here == queue_folder(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert here.parent == tmp_path / "jobs"
    assert here != queue_folder("sqlite:///other.db")
    assert queue_folder("postgresql://ann:secret@db/x") == queue_folder("postgresql://db/x")


class QueueMachine(RuleBasedStateMachine):
    """Random operations on the queue and on a plain list of jobs, which must agree after each."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(self.temporary())
        self.queue = JobQueue(self.folder, capacity=3)
        self.model: list[Job] = []

    @staticmethod
    def temporary() -> str:
        import tempfile

        return tempfile.mkdtemp(prefix="mlmeta-queue-")

    def waiting(self) -> list[int]:
        return [index for index, job in enumerate(self.model) if job.state is JobState.QUEUED]

    @rule(with_test=st.booleans(), owner=st.text(max_size=3), label=st.text(max_size=5))
    def add(self, with_test: bool, owner: str, label: str) -> None:
        given = {"document": {"label": label}, "with_test": with_test, "owner": owner}
        run_id = f"run-{len(self.model)}"
        if len(self.waiting()) >= 3:
            with pytest.raises(QueueFullError):
                add(self.queue, run_id, **given)
            return
        job = add(self.queue, run_id, **given)
        assert (job.document, job.with_test, job.owner) == (given["document"], with_test, owner)
        self.model.append(job)

    @rule()
    def take(self) -> None:
        job = self.queue.take()
        if not self.waiting():
            assert job is None
            return
        assert job is not None
        index = self.waiting()[0]
        old = self.model[index]
        self.model[index] = replace(
            old, state=JobState.RUNNING, n_starts=old.n_starts + 1, started_s=job.started_s, ended_s=None
        )

    @precondition(lambda self: self.model)
    @rule(data=st.data(), state=st.sampled_from(sorted(ENDED)), error=st.text(max_size=5), exit_code=st.integers(-9, 9))
    def end(self, data: st.DataObject, state: JobState, error: str, exit_code: int) -> None:
        index = data.draw(st.integers(0, len(self.model) - 1))
        job = self.queue.end(index + 1, state, error=error, exit_code=exit_code)
        if self.model[index].state is JobState.RUNNING:
            changes = {"state": state, "error": error, "exit_code": exit_code, "ended_s": job.ended_s}
            self.model[index] = replace(self.model[index], **changes)
        assert job == self.model[index]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), was_stopped=st.booleans())
    def put_back(self, data: st.DataObject, was_stopped: bool) -> None:
        index = data.draw(st.integers(0, len(self.model) - 1))
        job, old = self.queue.put_back(index + 1, was_stopped=was_stopped), self.model[index]
        if old.state is JobState.RUNNING:
            n_starts = old.n_starts - was_stopped
            if old.cancel_requested:
                self.model[index] = replace(old, state=JobState.CANCELLED, ended_s=job.ended_s, n_starts=n_starts)
            else:
                self.model[index] = replace(old, state=JobState.QUEUED, started_s=None, pid=None, n_starts=n_starts)
        assert job == self.model[index]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.model) - 1))
        job, old = self.queue.request_cancel(f"run-{index}"), self.model[index]
        if old.state is JobState.QUEUED:
            self.model[index] = replace(old, state=JobState.CANCELLED, cancel_requested=True, ended_s=job.ended_s)
        elif old.state is JobState.RUNNING:
            self.model[index] = replace(old, cancel_requested=True)
        assert job == self.model[index]

    @rule()
    def reopen(self) -> None:
        self.queue = JobQueue(self.folder, capacity=3)

    @invariant()
    def the_queue_is_the_list(self) -> None:
        order = [JobState.RUNNING, JobState.QUEUED]
        listed = [job for state in order for job in self.model if job.state is state]
        listed += [job for job in self.model[::-1] if job.state in ENDED]
        assert self.queue.list_jobs() == listed
        places = {index: place for place, index in enumerate(self.waiting(), start=1)}
        assert [self.queue.position(job) for job in self.model] == [
            places.get(index, 0) for index in range(len(self.model))
        ]

    def teardown(self) -> None:
        import shutil

        shutil.rmtree(self.folder)


TestRandomOperations = QueueMachine.TestCase
TestRandomOperations.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_documents_are_kept_as_json(queue: JobQueue) -> None:
    nested = {"a": [1, 2.5, None, True, {"b": "ü"}]}
    assert add(queue, "a", document=nested).document == json.loads(json.dumps(nested))
