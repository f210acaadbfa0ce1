"""An ordered queue of what is to be written to MLflow, worked off by one thread while the training goes on.

What cannot be sent for a reason outside (a server that is away, a full disk) is tried again, later and later; what is
refused is put aside. Whatever is left at the end is given back, so that nothing is lost.

What the tracking store has not got yet lies in a spool on disk, one folder a run: ``operations.jsonl`` holds a header
and one operation a line, ``files/`` what is to be uploaded, ``rejected.jsonl`` what the store refused. The header
names the tracking store, since only that one may get them.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlmeta.errors import one_line
from mlmeta.files import replacing, state_folder
from mlmeta.tracking.operations import Operation, join_operations, parse_operation, take_joinable

# Batches that follow each other faster are sent together: a request costs about 20 ms of Python.
LINGER_S = 2.0
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 15.0
_OPERATIONS = "operations.jsonl"
_REJECTED = "rejected.jsonl"
_FILES = "files"


class Outbox:
    """Sends operations in their order, from a thread of its own that the first operation starts.

    Operations of different lanes (the tracking store, the artifact store) keep their order too, but one lane does
    not wait for the other while that is away. An operation that is made from all before it waits for both.

    Args:
        send: Sends one operation; raises what goes wrong. It runs in the thread.
        is_outside: Whether an error may be gone when the operation is tried again.
        linger_s: The least time between two requests of metrics, in seconds, while the queue holds nothing else.
    """

    def __init__(
        self, send: Callable[[Operation], None], *, is_outside: Callable[[Exception], bool], linger_s: float = LINGER_S
    ) -> None:
        self.rejected: list[tuple[Operation, str]] = []
        self.error = ""
        self._send = send
        self._is_outside = is_outside
        self._linger_s = linger_s
        self._queue: list[Operation] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = self._hurry = False
        self._delay_s: dict[str, float] = {}  # of each lane that fails
        self._retry_at: dict[str, float] = {}
        self._n_sent = self._n_failed = 0
        self._last_sent = float("-inf")

    def put(self, operations: Iterable[Operation]) -> None:
        """Queue operations; costs microseconds."""
        new = list(operations)
        with self._changed:
            # A thread that has something to do looks by itself; waking it costs this one its turn.
            wakes = not self._queue or any(operation.kind != "batch" for operation in new)
            self._queue.extend(new)
            if self._thread is None:
                context = contextvars.copy_context()
                self._thread = threading.Thread(
                    target=context.run, args=(self._work,), name="mlmeta-outbox", daemon=True
                )
                self._thread.start()
            if wakes:
                self._changed.notify_all()

    def flush(self, *, limit_s: float) -> bool:
        """Wait until everything is sent, trying again at once what failed before.

        Args:
            limit_s: How long to go on in seconds, once all that is left has failed and nothing has been sent since.
                A request that takes long and has not failed is waited for.

        Returns:
            Whether nothing is left.
        """
        with self._changed:
            self._hurry = True
            self._retry_at.clear()
            self._changed.notify_all()
            n_sent, n_failed, since = self._n_sent, self._n_failed, time.monotonic()
            while self._queue and not self._stopped:
                if self._n_sent != n_sent:
                    n_sent, since = self._n_sent, time.monotonic()
                if self._is_stuck() and self._n_failed > n_failed and time.monotonic() - since >= limit_s:
                    break
                self._changed.wait(0.1)
            self._hurry = False
            return not self._queue

    def _is_stuck(self) -> bool:
        """Return whether all that is left waits for a lane that fails."""
        first: dict[str, Operation] = {}
        for operation in self._queue:
            first.setdefault(operation.lane, operation)
        return all(
            lane in self._delay_s or (operation.reads and operation is not self._queue[0])
            for lane, operation in first.items()
        )

    def stop(self) -> list[Operation]:
        """Stop sending and return what has not been sent; what the thread sends right now is among it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            return list(self._queue)

    def _work(self) -> None:
        while group := self._wait_for_group():
            self._deliver(group)

    def _wait_for_group(self) -> list[Operation]:
        """Return what to send next, as soon as there is something; nothing after the end."""
        with self._changed:
            while not self._stopped:
                group, wait_s = self._choose(time.monotonic())
                if group:
                    return group
                self._changed.wait(wait_s)
        return []

    def _choose(self, now: float) -> tuple[list[Operation], float | None]:
        """Return the operations to send in one request now, or none and for how long at most to wait."""
        paused = {lane for lane, at in self._retry_at.items() if at > now}
        wait_s = min((self._retry_at[lane] - now for lane in paused), default=None)
        ready = [operation for operation in self._queue[:5000] if operation.lane not in paused]
        if not ready or (ready[0].reads and ready[0] is not self._queue[0]):
            return [], wait_s
        group = next(take_joinable(ready))
        rest_s = self._last_sent + self._linger_s - now
        if group[0].kind == "batch" and len(group) == len(ready) and rest_s > 0 and not self._hurry:
            return [], rest_s if wait_s is None else min(rest_s, wait_s)
        return group, None

    def _deliver(self, group: list[Operation]) -> bool:
        """Send operations in one request; return whether they are done with, sent or refused.

        Of several that are refused together each is sent by itself, so that only the faulty one is put aside.
        """
        try:
            self._send(join_operations(group))
        except Exception as error:  # noqa: BLE001 - whatever a store's library raises, the records are kept
            if self._is_outside(error):
                self._pause(group[0].lane, error)
                return False
            if len(group) > 1:
                return all(self._deliver([operation]) for operation in group)
            self.rejected.append((group[0], one_line(error)))
        self._settle(group)
        return True

    def _settle(self, group: list[Operation]) -> None:
        with self._changed:
            done = {id(operation) for operation in group}
            self._queue = [operation for operation in self._queue if id(operation) not in done]
            self._delay_s.pop(group[0].lane, None)
            self._retry_at.pop(group[0].lane, None)
            self._n_sent += 1
            if group[0].kind == "batch":
                self._last_sent = time.monotonic()
            self._changed.notify_all()

    def _pause(self, lane: str, error: Exception) -> None:
        with self._changed:
            delay_s = min(2 * self._delay_s.get(lane, _FIRST_DELAY_S / 2), _LONGEST_DELAY_S)
            self._delay_s[lane] = delay_s
            self._retry_at[lane] = time.monotonic() + delay_s
            self._n_failed += 1
            self.error = one_line(error)
            self._changed.notify_all()


@dataclass(frozen=True)
class Spool:
    """The folder of one run.

    Attributes:
        folder: May not be there yet.
        tracking_uri: The store that the operations are for.
    """

    folder: Path
    tracking_uri: str

    @property
    def run_id(self) -> str:
        """The run that the operations were recorded for."""
        return self.folder.name

    def stage(self, source: Path) -> str:
        """Take a folder of files in, linked where the disk allows it, and return its name here.

        Raises:
            OSError: If the disk is full.
        """
        files = self.folder / _FILES
        files.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(dir=files))
        shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)
        return f"{_FILES}/{target.name}"

    def write(self, operations: Sequence[Operation], rejected: Iterable[tuple[Operation, str]] = ()) -> None:
        """Keep operations in place of those that lie here, and what the store refused beside what it refused before.

        Where nothing is left, the folder goes.

        Raises:
            OSError: If the disk is full.
        """
        refused = [json.dumps({"error": error, **json.loads(operation.to_line())}) for operation, error in rejected]
        if refused:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / _REJECTED).open("a", encoding="utf-8") as put_aside:
                put_aside.writelines(f"{line}\n" for line in refused)
        if operations:
            self.folder.mkdir(parents=True, exist_ok=True)
            header = json.dumps({"version": 1, "tracking_uri": self.tracking_uri})
            lines = [header, *(operation.to_line() for operation in operations)]
            with replacing(self.folder / _OPERATIONS, durable=True, part=self.folder / f"{_OPERATIONS}.part") as file:
                file.writelines(f"{line}\n".encode() for line in lines)
        elif (self.folder / _REJECTED).exists():
            (self.folder / _OPERATIONS).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def read(self) -> list[Operation]:
        """Return the operations that lie here, in their order.

        Raises:
            OSError: If they cannot be read.
            ValueError: If they are not what `write` wrote.
        """
        lines = (self.folder / _OPERATIONS).read_text(encoding="utf-8").splitlines()
        return [parse_operation(line) for line in lines[1:]]


def open_spool(run_id: str, tracking_uri: str) -> Spool:
    """Return the folder of a run, there or not.

    Raises:
        OSError: If there is no state folder.
    """
    return Spool(state_folder() / "spool" / run_id, tracking_uri)


def list_spools() -> list[Spool]:
    """Return the runs that have operations to send, of all tracking stores, by run id."""
    found = []
    with contextlib.suppress(OSError):
        for file in sorted((state_folder() / "spool").glob(f"*/{_OPERATIONS}")):
            with contextlib.suppress(ValueError, KeyError, TypeError), file.open(encoding="utf-8") as lines:
                found.append(Spool(file.parent, str(json.loads(lines.readline())["tracking_uri"])))
    return found


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
