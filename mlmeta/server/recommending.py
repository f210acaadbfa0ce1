"""Asks for recommendations in a process of their own, a few at a time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import AsyncFileLock, Timeout

from mlmeta.data.roots import ROOTS_VARIABLE, join_roots
from mlmeta.errors import CommandsError, Fault, MlmetaError
from mlmeta.server import recommend_process
from mlmeta.server.callers import Caller
from mlmeta.server.responses import RefusedError
from mlmeta.server.submitting import check_train_commands

# A process takes seconds and half a gigabyte: one at a time on this machine, whichever server process was asked.
_LIMIT_S = 300.0
_WAITING = 4
_n_waiting = 0


async def recommend(caller: Caller, document: Mapping[str, Any], *, n: int) -> dict[str, Any]:
    """Return what to try next on the task of some commands; see `mlmeta.server.recommend_process`.

    Raises:
        CommandsError: If the commands cannot be used.
        RefusedError: If too many ask at the same time, or it takes too long.
        MlmetaError: If there is no answer.
    """
    _, base_dir = await check_train_commands(caller, document)
    request = {
        "commands": document, "n": n, "base_dir": str(base_dir), "store_uri": caller.server.store_uri,
        "experiments": caller.experiment_names,
    }  # fmt: skip
    answer: dict[str, Any] = json.loads(await _ask_in_turn(json.dumps(request).encode(), caller))
    if "error" not in answer:
        return answer
    if answer["faults"]:
        raise CommandsError([Fault(**fault) for fault in answer["faults"]], source="the request")
    raise RefusedError(422 if answer["exit_code"] == 2 else 500, answer["error"])


async def _ask_in_turn(request: bytes, caller: Caller) -> bytes:
    global _n_waiting
    if _n_waiting >= _WAITING:
        raise _too_many()
    _n_waiting += 1
    lock = AsyncFileLock(caller.server.queue.folder / "recommend.lock", timeout=_LIMIT_S)
    try:
        async with lock:
            return await _ask(request, caller.server.settings.data_roots)
    except Timeout:
        raise _too_many() from None
    finally:
        _n_waiting -= 1


def _too_many() -> RefusedError:
    return RefusedError(429, "others are asking for recommendations already; try again in a moment")


async def _ask(request: bytes, roots: tuple[Path, ...]) -> bytes:
    environment = {**os.environ, ROOTS_VARIABLE: join_roots(roots)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", recommend_process.__name__,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        output, errors = await asyncio.wait_for(process.communicate(request), _LIMIT_S)
    except TimeoutError:
        raise RefusedError(504, f"no recommendation after {_LIMIT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise MlmetaError(f"no recommendation could be made: {errors.decode(errors='replace').strip()[-500:]}")
    return output
