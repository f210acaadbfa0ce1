"""The commands ``recommend``, what to try next on a task, and ``tune``, try it and learn from each attempt."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlmeta.console import changing_commands, refuse_changes, reporting_errors
from mlmeta.errors import BadInputError
from mlmeta.models.compiler import put_off_compiler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from mlmeta.commands.documents import TrainCommands
    from mlmeta.tuning.recommend import Recommendation

# These have a column of their own.
_SHOWN = ("optimizer.name", "optimizer.lr", "scheduler.name", "scheduler")
_UNITS = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-n", "--number", type=click.IntRange(1, 100), default=5, show_default=True, help="How many.")
@click.option(
    "--candidate", "candidates", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
    help="Choose among these commands files only; may be repeated.",
)  # fmt: skip
@click.option(
    "--write", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Write the commands files here."
)
@click.option("--metric", default="accuracy", show_default=True, help="The metric to go by.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides the variations.")
@click.option("--experiment", "experiments", multiple=True, metavar="NAME", help="Learn from this experiment only.")
@click.option(
    "--format", "form", type=click.Choice(("table", "csv", "json", "parquet")), help="By default a table for people."
)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the table into this file.")
@click.option("--to-run", is_flag=True, hidden=True, help="Write the result also into the run of MLFLOW_RUN_ID.")
@changing_commands
@reporting_errors
def recommend(
    config: Path,
    base_dir: Path | None,
    changes: tuple[str, ...],
    number: int,
    candidates: tuple[Path, ...],
    folder: Path | None,
    metric: str,
    seed: int,
    experiments: tuple[str, ...],
    form: str | None,
    output: Path | None,
    to_run: bool,
) -> None:
    """Say what to try next on the pictures of CONFIG, from all past attempts."""
    from mlmeta.commands.parsing import load_train_commands

    commands, base_dir = load_train_commands(config, changes), base_dir or config.parent
    others = [_anchor_weights(load_train_commands(file), file.parent) for file in candidates] or None
    from mlmeta.history.loading import load_attempts

    history = load_attempts(experiments=list(experiments) or None)
    from mlmeta.tuning.recommend import recommend_commands

    found = recommend_commands(
        commands, base_dir=base_dir, history=history, candidates=others, n=number, metric=metric, seed=seed
    )
    from mlmeta.reports.tables import write_output

    if not found:
        raise BadInputError("nothing is left to try: every training in the space of the commands was tried")
    table = _make_table(found, commands)
    write_output(table, output, form=form, important=())
    if form in (None, "table") and output is None:
        click.echo("\n".join(f"{rank}. {one.reason}" for rank, one in enumerate(found, start=1)))
    if folder is not None:
        _write_files({folder / _file_name(one): _format_commands(one.commands, base_dir, folder) for one in found})
    if to_run:
        _record_recommendations(found, table, base_dir)


def _record_recommendations(found: Sequence[Recommendation], table: pd.DataFrame, base_dir: Path) -> None:
    """Log recommendations.csv and .json, the commands under ``next/``, and a note."""
    from mlmeta.reports.tables import escape_markdown, write_output
    from mlmeta.tracking.runs import record_answer

    def write_files(folder: Path) -> None:
        for form in ("csv", "json"):
            write_output(table, folder / f"recommendations.{form}", form=form)
        (folder / "next").mkdir()
        for one in found:
            (folder / "next" / _file_name(one)).write_text(_format_commands(one.commands, base_dir), encoding="utf-8")

    note = "\n".join(f"{rank}. {escape_markdown(one.reason)}" for rank, one in enumerate(found, start=1))
    record_answer("recommendation", name="recommend", note=note, write_files=write_files)


def _anchor_weights(commands: TrainCommands, folder: Path) -> TrainCommands:
    """Return commands whose weights file is named from the root: they will be written into another folder."""
    weights = commands.model.get("weights")
    if not isinstance(weights, str) or Path(weights).is_absolute():
        return commands
    return commands.model_copy(update={"model": {**commands.model, "weights": str(folder.absolute() / weights)}})


def _make_table(found: Sequence[Recommendation], given: TrainCommands) -> pd.DataFrame:
    import pandas as pd

    from mlmeta.commands.params import summarise_model

    rows = []
    for rank, one in enumerate(found, start=1):
        commands = one.commands
        rows.append(
            {
                "rank": rank,
                "expected": one.score_mean,
                "std": one.score_std,
                "seconds": one.seconds,
                "optimizer": commands.optimizer.get("name"),
                "lr": commands.optimizer.get("lr"),
                "batch_size": commands.batch_size,
                "scheduler": (commands.scheduler or {}).get("name") if isinstance(commands.scheduler, dict) else None,
                "model": "as given" if commands.model == given.model else summarise_model(commands.model),
                "differs": _describe_differences(commands, given),
                "evidence": ", ".join(evidence.model_name for evidence in one.evidence),
            }
        )
    table = pd.DataFrame(rows)
    for name in ("expected", "std", "seconds"):
        table[name] = table[name].map("{:.3g}".format).astype("float64")
    return table if (table["differs"] != "").any() else table.drop(columns="differs")


def _describe_differences(commands: TrainCommands, given: TrainCommands) -> str:
    """Return what else is other than in the commands as they were given, model and what has a column left out."""
    from mlmeta.commands.params import flatten_params

    keys = {"optimizer", "scheduler", "criterion", "n_epoch"}
    new, old = (flatten_params(one.model_dump(mode="json", include=keys)) for one in (commands, given))
    if new.get("optimizer.name") != old.get("optimizer.name"):
        new = {name: value for name, value in new.items() if not name.startswith("optimizer.")}
    return ", ".join(f"{name} {new[name]}" for name in new if old.get(name) != new[name] and name not in _SHOWN)


def _file_name(recommendation: Recommendation) -> str:
    return f"{recommendation.commands.model_name}.json"


def _format_commands(commands: TrainCommands, base_dir: Path, folder: Path | None = None) -> str:
    """Return commands as the text of a file in a folder; without one, their paths are made absolute."""
    # The data of commands that do not name any is the folder beside them.
    document = {"data": commands.data.model_dump(mode="json"), **commands.document()}
    for part, key in (("data", "path"), ("model", "weights")):
        path = document[part].get(key)
        if isinstance(path, str) and not Path(path).is_absolute():
            whole = base_dir.resolve() / path
            document[part][key] = Path(os.path.relpath(whole, folder.resolve()) if folder else whole).as_posix()
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _write_files(texts: Mapping[Path, str]) -> None:
    """Write commands files and say so.

    Raises:
        BadInputError: If one is there already, or cannot be written.
    """
    from mlmeta.reports.tables import writing

    for file in texts:
        _refuse_existing(file)
    for file, text in texts.items():
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        click.echo(f"wrote {file}")


def _refuse_existing(file: Path) -> None:
    if file.exists():
        raise BadInputError(f"{file}: is there already; give another name, or move it away")


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
@click.option("--anew", is_flag=True, help="With --resume: begin anew what has its checkpoint elsewhere.")
@click.option("--write", "file", metavar="FILE", type=click.Path(path_type=Path), help="Write the best commands here.")
@changing_commands
@reporting_errors
def tune(
    config: Path | None, time_limit: str | None, resume: str | None, anew: bool, file: Path | None,
    base_dir: Path | None, changes: tuple[str, ...], **given: object,
) -> None:  # fmt: skip
    """Make attempts on the task of CONFIG, each better informed than the one before, and test the best."""
    if (config is None) == (resume is None):
        raise BadInputError("tune needs either a commands file, or --resume with a run id or a name")
    if anew and resume is None:
        raise BadInputError("tune: --anew goes with --resume only; a new tuning begins everything anew")
    wanted = {key: value for key, value in given.items() if value is not None}
    if time_limit is not None:
        wanted |= {"seconds": parse_duration(time_limit), "attempts": wanted.get("attempts")}
    if file is not None:
        _refuse_existing(file)
    from mlmeta.commands.parsing import load_train_commands

    commands = None if config is None else load_train_commands(config, changes)
    put_off_compiler()
    from mlmeta.tuning.tune import TuningSettings, describe_result, resume_tuning, tune_task

    if commands is not None and config is not None:
        settings = TuningSettings(**wanted)  # type: ignore[arg-type]  # click has checked the kinds
        tuned = tune_task(commands, base_dir=base_dir or config.parent, settings=settings)
    else:
        refuse_changes(changes)
        tuned = resume_tuning(str(resume), changes=wanted, anew=anew, base_dir=base_dir)
    click.echo(describe_result(tuned))
    click.echo(f"run {tuned.run_id}; go on with: mlmeta tune --resume {tuned.run_id} --attempts N")
    if tuned.incumbent is None:
        sys.exit(1)
    if file is not None:
        from mlmeta.tracking.attempts import find_attempt

        best = find_attempt(run_id=tuned.incumbent.run_id)
        _write_files({file: _format_commands(best.commands, best.commands_dir)})


COMMANDS: list[click.Command] = [recommend, tune]


def parse_duration(text: str) -> float:
    """Return the seconds of a text such as 90, 90s, 30m, 1.5h or 1d.

    Raises:
        BadInputError: If it is none of these.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|min|h|d)?\s*", text)
    if not match or float(match[1]) == 0:
        raise BadInputError(f"time-limit: must be a time above 0 such as 90s, 30m, 1.5h or 1d; got {text!r}")
    return float(match[1]) * _UNITS[match[2]]
