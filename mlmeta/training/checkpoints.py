"""Checkpoints: what a training needs to go on after its last finished epoch, kept on this machine.

A checkpoint is written whole or not at all (temporary file, fsync, rename), and removed when the attempt is complete;
of attempts that a rule stopped early, the newest few are put aside. Short epochs are not all written: at most one a
second, so that an attempt that is killed loses one epoch, or a second of shorter ones.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import time
from collections.abc import Mapping
from typing import Any

import torch

from mlmeta.errors import BadInputError
from mlmeta.files import replacing, state_folder
from mlmeta.training.loop import Trained
from mlmeta.training.preparation import Prepared, seed_everything

EVERY_S = 1.0
# Of attempts that were stopped early so many can be gone on with.
MOST_ASIDE = 20


class Checkpoint:
    """The checkpoint of one run.

    Args:
        run_id: The run.
        every_s: The least time between two writes, in seconds; `EVERY_S` where it is not given.
    """

    def __init__(self, run_id: str, *, every_s: float | None = None) -> None:
        self.file = state_folder() / "checkpoints" / f"{run_id}.pt"
        # One name, so that what a killed process left is written over: whoever writes holds the run's lock.
        self._temporary = self.file.with_suffix(".tmp")
        self._aside = self.file.parent / "pruned" / self.file.name
        self.every_s = EVERY_S if every_s is None else every_s
        self._written_at = -float("inf")

    def is_due(self) -> bool:
        """Return whether the last write is long enough ago for another one."""
        return time.monotonic() - self._written_at >= self.every_s

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state of tensors, numbers, strings, lists, tuples and dicts in place of the one before.

        Raises:
            OSError: If it cannot be written; the one before is left.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file, durable=True, part=self._temporary) as stream:
            torch.save(dict(state), stream)
        self._written_at = time.monotonic()

    def is_there(self) -> bool:
        """Return whether there is one."""
        return self.file.is_file() or self._aside.is_file()

    def load(self) -> dict[str, Any] | None:
        """Return the state, or None where there is none.

        Raises:
            BadInputError: If the file is damaged.
        """
        file = self.file if self.file.is_file() else self._aside
        if not file.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
            raise BadInputError(f"the checkpoint {file} is damaged; start a new attempt") from error
        return state

    def put_aside(self) -> None:
        """Keep it apart, as one of a few: the attempt was stopped early and will hardly be gone on with."""
        with contextlib.suppress(OSError):
            self._aside.parent.mkdir(parents=True, exist_ok=True)
            self.file.replace(self._aside)
            kept = sorted(self._aside.parent.glob("*.pt"), key=lambda file: file.stat().st_mtime, reverse=True)
            for file in kept[MOST_ASIDE:]:
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove it, where there is one, and what a process that was killed while writing left of it."""
        for file in (self.file, self._temporary, self._aside):
            file.unlink(missing_ok=True)


def list_checkpoints() -> list[str]:
    """Return the run ids that have a checkpoint on this machine, but for those put aside."""
    return sorted(file.stem for file in (state_folder() / "checkpoints").glob("*.pt"))


def capture_state(prepared: Prepared, trained: Trained) -> dict[str, Any]:
    """Return all that a training needs to go on after its last finished epoch as if it had never stopped."""
    return {
        "curve": trained.curve,
        "kept_epoch": trained.kept_epoch,
        "kept": trained.state,
        "ignores_stop": trained.ignores_stop or bool(trained.stopped),
        "initial_weights": trained.initial_weights,
        "model": prepared.model.state_dict(),
        "optimizer": prepared.optimizer.state_dict(),
        "scheduler": prepared.scheduler.state_dict() if prepared.scheduler else None,
        "torch_random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if prepared.device.type == "cuda" else [],
        "python_random": random.getstate(),
        "pictures": prepared.task.pictures.digest,
    }


def restore_state(prepared: Prepared, state: Mapping[str, Any]) -> Trained:
    """Put what `capture_state` gave into a freshly prepared training; return the epochs so far.

    Raises:
        BadInputError: If the pictures are no longer those of the attempt.
    """
    if state["pictures"] != prepared.task.pictures.digest:
        source = prepared.task.pictures.source
        raise BadInputError(
            f"data: the pictures of {source}, or their parts, have changed since the attempt began; start a new attempt"
        )
    seed_everything(prepared.commands.seed)
    prepared.model.load_state_dict(state["model"])
    prepared.optimizer.load_state_dict(state["optimizer"])
    if prepared.scheduler:
        prepared.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["torch_random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])
    random.setstate(state["python_random"])
    return Trained(
        curve=list(state["curve"]),
        kept_epoch=state["kept_epoch"],
        state=dict(state["kept"]),
        ignores_stop=state.get("ignores_stop", False),
        initial_weights=dict(state.get("initial_weights") or {}),
    )
