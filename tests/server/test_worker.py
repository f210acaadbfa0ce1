"""The runner of a queue, with real trainings on a real tracking server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from servers import Server

from mlmeta.commands.parsing import parse_test_commands, parse_train_commands
from mlmeta.data.roots import ROOTS_VARIABLE
from mlmeta.server import job_process
from mlmeta.server.queue import ENDED, Job, JobKind, JobQueue, JobState
from mlmeta.server.worker import JobRunner, is_runner_at_work
from mlmeta.tracking.runs import queued_tags


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store_template, folder / "mlflow.db")
    server = Server(folder, f"sqlite:///{folder}/mlflow.db")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def queue(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> JobQueue:
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv(ROOTS_VARIABLE, raising=False)
    queue = JobQueue(tmp_path / "queue")
    queue.set_address(server.uri)
    return queue


class Runners:
    """Runners in processes of their own, ended with the test."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, at_once: int = 1, **options: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlmeta", "worker", "--queue", str(self.queue.folder)]
        command += ["--at-once", str(at_once)]
        command += [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()
            if process.stderr:
                process.stderr.close()


@pytest.fixture
def runners(queue: JobQueue) -> Iterator[Runners]:
    runners = Runners(queue)
    yield runners
    runners.end()


@pytest.fixture
def submit(queue: JobQueue, server: Server, toy_document: dict[str, Any]) -> Callable[..., Job]:
    """Queues a training of the colours, with its run, as the server's routes do."""

    def add(name: str = "toy", *, experiment_id: str = "0", owner: str = "", **changes: Any) -> Job:
        document = {**toy_document, "model_name": name, **changes}
        roots = (document["data"]["path"],)
        client = MlflowClient(server.uri)
        tags = queued_tags(parse_train_commands(document), base_dir=queue.folder)
        run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        client.update_run(run_id, status="SCHEDULED")
        return queue.add(
            run_id=run_id, kind=JobKind.TRAIN, name=name, document=document, base_dir=str(queue.folder),
            data_roots=roots, experiment_id=experiment_id, owner=owner,
        )  # fmt: skip

    return add


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it never came")


def wait_for_end(queue: JobQueue, *jobs: Job) -> list[Job]:
    wait_for(lambda: all(queue.get(job.job_id).state in ENDED for job in jobs))
    return [queue.get(job.job_id) for job in jobs]


def status_of(server: Server, job: Job) -> tuple[str, str]:
    run = MlflowClient(server.uri).get_run(job.run_id)
    return run.info.status, run.data.tags["mlmeta.status"]


def epochs_of(server: Server, job: Job) -> list[int]:
    history = MlflowClient(server.uri).get_metric_history(job.run_id, "train_loss")
    return sorted(metric.step for metric in history)


def test_ten_jobs_at_once_all_end_well_and_in_their_order(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    jobs = [submit(f"toy-{i}", n_epoch=1, seed=i) for i in range(10)]
    runners.start(at_once=2)
    most = 0

    def all_ended() -> bool:
        nonlocal most
        most = max(most, queue.count((JobState.RUNNING,)))
        return queue.count(tuple(ENDED)) == 10

    wait_for(all_ended)
    ended = [queue.get(job.job_id) for job in jobs]
    assert [job.state for job in ended] == [JobState.DONE] * 10, [job.error for job in ended]
    assert most == 2
    started = [job.started_s for job in ended]
    assert started == sorted(started, key=float)
    for job in ended:
        assert status_of(server, job) == ("FINISHED", "Complete")
        tags = MlflowClient(server.uri).get_run(job.run_id).data.tags
        assert "mlmeta.queued" not in tags
    assert "accuracy" in MlflowClient(server.uri).get_run(jobs[0].run_id).data.metrics
    assert "epoch 1/1" in queue.read_log(jobs[0].run_id)[0]


def test_a_test_fills_its_own_run(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    trained = submit("tested", n_epoch=1)
    client = MlflowClient(server.uri)
    commands = parse_test_commands({"run_id": trained.run_id, "limit": 5})
    tags = queued_tags(commands, base_dir=queue.folder) | {"mlflow.parentRunId": trained.run_id}
    run_id = client.create_run("0", run_name="test of tested", tags=tags).info.run_id
    client.update_run(run_id, status="SCHEDULED")
    test = queue.add(
        run_id=run_id, kind=JobKind.TEST, name="tested", document=commands.document(), base_dir=str(queue.folder),
        data_roots=trained.data_roots,
    )  # fmt: skip
    runners.start()
    _, ended = wait_for_end(queue, trained, test)
    assert (ended.state, ended.error) == (JobState.DONE, "")
    assert client.get_run(run_id).data.params["test.limit"] == "5"
    assert status_of(server, test) == ("FINISHED", "Complete")


def test_a_waiting_and_a_running_job_are_cancelled(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    long, waiting = submit("long", n_epoch=10_000), submit("waiting")
    runners.start()
    wait_for(lambda: len(epochs_of(server, long)) > 1)
    assert queue.request_cancel(waiting.run_id).state == JobState.CANCELLED
    queue.request_cancel(long.run_id)
    (ended,) = wait_for_end(queue, long)
    assert ended.state == JobState.CANCELLED
    assert status_of(server, long) == ("KILLED", "Interrupted")
    assert queue.get(waiting.job_id).n_starts == 0


@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.0, 2.0])
def test_a_job_cancelled_right_after_its_start_closes_its_run(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server, after_s: float
) -> None:
    job = submit("hasty", n_epoch=10_000)
    runners.start()
    wait_for(lambda: queue.get(job.job_id).state == JobState.RUNNING)
    time.sleep(after_s)
    queue.request_cancel(job.run_id)
    (ended,) = wait_for_end(queue, job)
    assert ended.state == JobState.CANCELLED
    wait_for(lambda: status_of(server, job) == ("KILLED", "Interrupted"))
    assert "Traceback" not in queue.read_log(job.run_id)[0]


def test_a_job_that_begins_while_the_server_is_away_waits_for_it(
    queue: JobQueue, submit: Callable[..., Job], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("early", n_epoch=1)
    taken = queue.take()
    assert taken is not None
    assert taken.job_id == job.job_id
    queue.set_address("http://127.0.0.1:9")
    # MLflow's own retries would take minutes.
    environment = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    command = [sys.executable, "-m", job_process.__name__, str(queue.folder), str(job.job_id)]
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0
    waiting = queue.get(job.job_id)
    assert (waiting.state, waiting.n_starts, waiting.error) == (JobState.QUEUED, 0, "")
    queue.set_address(server.uri)
    assert queue.take() is not None
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert queue.get(job.job_id).state == JobState.DONE
    assert status_of(server, job) == ("FINISHED", "Complete")


def test_a_training_for_somebody_with_a_login_looks_at_its_own_experiment_only(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    client = MlflowClient(server.uri)
    other = submit("secret")
    runners.start()
    wait_for_end(queue, other)
    assert status_of(server, other) == ("FINISHED", "Complete")
    experiment_id = client.create_experiment("apart")
    told = {}
    for owner in ("", "bobby"):
        job = submit(f"asked by {owner or 'nobody'}", n_epoch=2, experiment_id=experiment_id, owner=owner)
        wait_for_end(queue, job)
        told[owner] = client.get_run(job.run_id).data.tags["mlflow.note.content"]
    assert "The best other attempt on this task: secret" in told[""]
    assert "secret" not in told["bobby"]


def test_a_runner_that_is_stopped_puts_its_job_back_and_it_goes_on_later(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    job = submit("stopped", n_epoch=300, batch_size=2)
    first = runners.start()
    wait_for(lambda: len(epochs_of(server, job)) > 1)
    first.send_signal(signal.SIGTERM)
    first.wait()
    assert queue.get(job.job_id).state == JobState.QUEUED
    runners.start()
    (ended,) = wait_for_end(queue, job)
    assert (ended.state, ended.error) == (JobState.DONE, "")
    assert epochs_of(server, job) == list(range(1, 301))


def test_a_runner_after_one_that_was_killed_watches_the_job_that_lives(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    job, following = submit("watched", n_epoch=300, batch_size=2), submit("following", n_epoch=1)
    first = runners.start()
    wait_for(lambda: len(epochs_of(server, job)) > 1)
    first.kill()
    first.wait()
    runners.start()
    ended = wait_for_end(queue, job, following)
    assert [one.state for one in ended] == [JobState.DONE] * 2
    assert ended[0].n_starts == 1
    assert epochs_of(server, job) == list(range(1, 301))


def test_a_job_whose_process_is_killed_is_resumed(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    job = submit("killed", n_epoch=300, batch_size=2)
    runners.start()
    wait_for(lambda: len(epochs_of(server, job)) > 1)
    pid = queue.get(job.job_id).pid
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    (ended,) = wait_for_end(queue, job)
    assert (ended.state, ended.n_starts) == (JobState.DONE, 2)
    assert epochs_of(server, job) == list(range(1, 301))


def test_a_job_that_is_killed_at_every_start_fails_in_the_end(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server
) -> None:
    job = submit("unlucky", n_epoch=10_000)
    runners.start()
    killed: set[int] = set()

    def kill() -> bool:
        now = queue.get(job.job_id)
        if now.state == JobState.RUNNING and now.pid and now.pid not in killed and queue.is_alive(now):
            killed.add(now.pid)
            os.killpg(now.pid, signal.SIGKILL)
        return now.state in ENDED

    wait_for(kill)
    ended = queue.get(job.job_id)
    assert (ended.state, ended.n_starts, len(killed)) == (JobState.FAILED, 3, 3)
    assert "3 times" in ended.error
    wait_for(lambda: status_of(server, job)[0] == "KILLED")


def test_faulty_data_fail_with_the_message_and_tell_the_run(
    queue: JobQueue, runners: Runners, submit: Callable[..., Job], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    job = submit("faulty", data={"source": "folder", "path": str(tmp_path / "empty")})
    runners.start()
    (ended,) = wait_for_end(queue, job)
    assert (ended.state, ended.exit_code) == (JobState.FAILED, 2)
    assert "empty" in ended.error
    assert ended.error.splitlines()[0] in queue.read_log(job.run_id)[0]
    assert status_of(server, job) == ("FAILED", "Failed")


def test_there_is_one_runner_a_queue(queue: JobQueue, runners: Runners) -> None:
    assert not is_runner_at_work(queue)
    runners.start()
    wait_for(lambda: is_runner_at_work(queue))
    second = runners.start()
    _, told = second.communicate()
    assert second.returncode == 2
    assert b"another runner" in told


def test_a_runner_ends_with_the_process_that_it_was_given(queue: JobQueue, runners: Runners) -> None:
    server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    runner = runners.start(while_pid=server.pid)
    wait_for(lambda: is_runner_at_work(queue))
    assert runner.poll() is None
    server.communicate(b"\n")
    assert runner.wait() == 0


def test_nothing_is_begun_while_the_server_does_not_answer(queue: JobQueue, submit: Callable[..., Job]) -> None:
    job = submit("waits")
    queue.set_address("http://127.0.0.1:9")
    JobRunner(queue).step()
    assert queue.get(job.job_id).state == JobState.QUEUED
    assert json.dumps(queue.get(job.job_id).document)
