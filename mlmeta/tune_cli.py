"""The command ``tune``: make attempts on one task, learning from each, and say which is best."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import click

from mlmeta.console import reporting_errors
from mlmeta.errors import BadInputError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as 90, 90s, 30m, 1.5h or 1d.

    Raises:
        BadInputError: If it is none of these.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|min|h|d)?\s*", text)
    if not match or float(match[1]) == 0:
        raise BadInputError(f"time-limit: must be a time above 0 such as 90s, 30m, 1.5h or 1d; got {text!r}")
    return float(match[1]) * _UNITS[match[2] or ""]


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--attempts", type=click.IntRange(1, 100_000), help="How many; 10 where there is no time limit.")
@click.option("--time-limit", metavar="TIME", help="Such as 90s, 30m, 1.5h: nothing is begun that would end later.")
@click.option("--sampler", help="mlmeta (default), or one of Optuna: tpe, gp, random.")
@click.option("--round", "round_size", type=click.IntRange(1, 1000), help="Attempts begun together; 5 by default.")
@click.option("--keep", type=click.FloatRange(0, 1, min_open=True), help="Share of them that is finished; 0.2.")
@click.option("--first-epochs", type=click.IntRange(1, 1_000_000), help="Epochs before the others are pruned; 1.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the proposals; 0 by default.")
@click.option("--resume", metavar="RUN_ID|NAME", help="Go on with a tuning that was stopped, or ask more of it.")
@click.option("--write", "file", metavar="FILE", type=click.Path(path_type=Path), help="Write the best commands here.")
@reporting_errors
def tune(config: Path | None, time_limit: str | None, resume: str | None, file: Path | None, **given: object) -> None:
    """Make attempts on the task of CONFIG, each better informed than the one before, and test the best."""
    if (config is None) == (resume is None):
        raise BadInputError("tune needs either a commands file, or --resume with a run id or a name")
    wanted = {key: value for key, value in given.items() if value is not None}
    if time_limit is not None:
        wanted |= {"seconds": parse_duration(time_limit), "attempts": wanted.get("attempts")}
    if file is not None and file.exists():
        raise BadInputError(f"{file}: is there already; give another name, or move it away")
    commands = None
    if config is not None:
        from mlmeta.commands.parsing import load_train_commands

        commands = load_train_commands(config)
    from mlmeta.tune import describe_result, resume_tuning, tune_task
    from mlmeta.tuning_rounds import TuningSettings

    if commands is not None and config is not None:
        settings = TuningSettings(**wanted)  # type: ignore[arg-type]  # click has checked the kinds
        tuned = tune_task(commands, base_dir=config.parent, settings=settings)
    else:
        tuned = resume_tuning(str(resume), changes=wanted)
    click.echo(describe_result(tuned))
    click.echo(f"run {tuned.run_id}; go on with: mlmeta tune --resume {tuned.run_id} --attempts N")
    if tuned.incumbent is None:
        sys.exit(1)
    if file is not None:
        _write(tuned.incumbent.run_id, file)


def _write(run_id: str, file: Path) -> None:
    """Write the commands of an attempt, with their paths made absolute."""
    from mlmeta.tracking.attempts import find_attempt

    attempt = find_attempt(run_id=run_id)
    document = {"data": attempt.commands.data.model_dump(mode="json"), **attempt.commands.document()}
    for part, key in (("data", "path"), ("model", "weights")):
        if isinstance(document[part].get(key), str):
            document[part][key] = str(attempt.commands_dir / document[part][key])
    try:
        file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{file}: cannot be written: {error.strerror or error}") from None
    click.echo(f"wrote {file}")


COMMANDS: list[click.Command] = [tune]
