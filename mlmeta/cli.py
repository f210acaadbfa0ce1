"""The command line: collects the commands of the packages below, and has those that belong to none.

torch and MLflow are imported inside the commands that need them, after the commands file has been read, so that
``--help`` and a faulty file answer at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from mlmeta.console import changing_commands, reporting_errors
from mlmeta.evaluate import evaluate
from mlmeta.exchange.cli import COMMANDS as EXCHANGE_COMMANDS
from mlmeta.models.compiler import put_off_compiler
from mlmeta.reports.cli import COMMANDS as QUERY_COMMANDS
from mlmeta.server.cli import COMMANDS as SERVER_COMMANDS
from mlmeta.train import train
from mlmeta.tuning.cli import COMMANDS as RECOMMEND_COMMANDS


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mlmeta", message="mlmeta %(version)s")
def cli() -> None:
    """Spend less time tuning the next model: attempts from JSON files, recorded in MLflow."""


_CONFIG = click.argument("config", type=click.Path(path_type=Path))


@cli.command()
@click.option("--older-than", default=3600.0, show_default=True, help="Seconds without a sign of life that mean dead.")
@reporting_errors
def recover(older_than: float) -> None:
    """Send what could not be recorded, and mark attempts whose process is dead."""
    from mlmeta.tracking.attempts import find_ended
    from mlmeta.tracking.recovery import find_stale_attempts, mark_interrupted, send_spool
    from mlmeta.training.checkpoints import Checkpoint, list_checkpoints

    for run_id in send_spool():
        click.echo(f"sent what was kept of run {run_id}")
    stale = find_stale_attempts(older_than_s=older_than)
    for attempt in stale:
        status = mark_interrupted(attempt.run_id)
        can_go_on = attempt.kind == "attempt" and status == "Interrupted"
        advice = f"; go on with: mlmeta train --resume {attempt.run_id}" if can_go_on else ""
        click.echo(f"{attempt.name}: marked {status}{advice}")
    for run_id in find_ended(list_checkpoints()):
        # Killed after its last word to MLflow and before it could clear up.
        Checkpoint(run_id).remove()
    if not stale:
        click.echo("no attempt was left behind")


@cli.command()
@_CONFIG
@changing_commands
@reporting_errors
def check(config: Path, base_dir: Path | None, changes: tuple[str, ...]) -> None:
    """Build all that CONFIG asks for, train nothing, and show the model's table."""
    from mlmeta.commands.parsing import load_train_commands

    commands = load_train_commands(config, changes)
    put_off_compiler()
    from mlmeta.training.preparation import check_commands, format_table

    click.echo(format_table(check_commands(commands, base_dir=base_dir or config.parent)))


@cli.command()
@click.option("--kind", type=click.Choice(["train", "test"]), default="train", show_default=True)
@reporting_errors
def schema(kind: str) -> None:
    """Print the JSON Schema of train or test commands."""
    import json

    from mlmeta.commands.documents import TestCommands, TrainCommands
    from mlmeta.commands.json_schema import complete_schema

    model = TrainCommands if kind == "train" else TestCommands
    click.echo(json.dumps(complete_schema(model.model_json_schema()), indent=1))


@cli.command()
@click.option("--clear", is_flag=True, help="Remove all entries.")
@reporting_errors
def cache(clear: bool) -> None:
    """Show the pictures that are kept decoded on this machine, or remove them."""
    from mlmeta.data.picture_cache import PictureCache, format_entries, pictures_folder

    kept = PictureCache(pictures_folder())
    if clear:
        click.echo(f"{kept.clear()} entries removed from {kept.folder}")
    else:
        click.echo(format_entries(kept))


for _command in (train, evaluate, *EXCHANGE_COMMANDS, *QUERY_COMMANDS, *SERVER_COMMANDS, *RECOMMEND_COMMANDS):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli(prog_name="mlmeta")
