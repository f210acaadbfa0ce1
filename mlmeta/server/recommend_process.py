"""Recommendations in a process of their own: they look at pictures and build models, which the server does not.

    python -m mlmeta.server.recommend_process < request > answer

The request is ``{"commands": …, "n": …, "base_dir": …, "store_uri": …, "experiments": [names] or null}``; the answer is
``{"recommendations": […]}`` or ``{"error": …, "faults": […], "exit_code": …}``, as the command line would end.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import CommandsError, MlmetaError


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request, see the module."""
    from mlmeta.history.loading import load_attempts
    from mlmeta.server.questions import choose_readable
    from mlmeta.tuning.recommend import recommend_commands

    history = choose_readable(load_attempts(request["store_uri"]), request["experiments"])
    commands = parse_train_commands(request["commands"], source="the request")
    found = recommend_commands(commands, base_dir=Path(request["base_dir"]), history=history, n=request["n"])
    return {"recommendations": [{**asdict(one), "commands": one.commands.document()} for one in found]}


def main() -> None:
    """Answer the request of standard input on standard output."""
    try:
        answer = answer_request(json.load(sys.stdin))
    except MlmetaError as error:
        faults = [asdict(fault) for fault in error.faults] if isinstance(error, CommandsError) else []
        answer = {"error": str(error), "faults": faults, "exit_code": error.exit_code}
    # What is not known, NaN, is null.
    sys.stdout.buffer.write(to_json(answer, inf_nan_mode="null"))


if __name__ == "__main__":
    main()
