"""Recommendations in a process of their own: they look at pictures and build models, which the server does not.

    python -m mlmeta.server.recommend_process < request > answer

The request is ``{"commands": …, "n": …, "base_dir": …, "store_uri": …, "experiments": [names] or null}``; the answer is
``{"recommendations": […]}`` or ``{"error": …, "faults": […], "exit_code": …}``, as the command line would end.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import CommandsError, MlmetaError

if TYPE_CHECKING:
    from mlmeta.tuning.recommend import Recommendation


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request, see the module."""
    from mlmeta.history.loading import load_attempts
    from mlmeta.tuning.recommend import recommend_commands

    history = load_attempts(request["store_uri"])
    if request["experiments"] is not None:
        kinds = dict(history.attrs)
        history = history[history["experiment"].isin(request["experiments"])].reset_index(drop=True)
        history.attrs = kinds
    commands = parse_train_commands(request["commands"], source="the request")
    found = recommend_commands(commands, base_dir=Path(request["base_dir"]), history=history, n=request["n"])
    return {"recommendations": [describe_recommendation(one) for one in found]}


def describe_recommendation(one: Recommendation) -> dict[str, Any]:
    """Return a recommendation as JSON has it: what is not known is null."""
    facts = {"score_mean": one.score_mean, "score_std": one.score_std, "seconds": one.seconds}
    return {
        "commands": one.commands.document(),
        **{name: _keep_finite(value) for name, value in facts.items()},
        "evidence": [{key: _keep_finite(value) for key, value in asdict(each).items()} for each in one.evidence],
        "reason": one.reason,
    }


def _keep_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Answer the request of standard input on standard output."""
    try:
        answer = answer_request(json.load(sys.stdin))
    except MlmetaError as error:
        faults = [asdict(fault) for fault in error.faults] if isinstance(error, CommandsError) else []
        answer = {"error": str(error), "faults": faults, "exit_code": error.exit_code}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
