"""The command ``worker``: a runner of a server's queue, by itself."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mlmeta.console import reporting_errors


@click.command()
@click.option("--queue", "folder", metavar="DIR", type=click.Path(path_type=Path), help="The folder of the queue.")
@click.option("--at-once", type=click.IntRange(1, 1000), default=1, show_default=True, help="Attempts at once.")
@click.option("--while-pid", metavar="PID", type=click.IntRange(min=1), help="End with this process.")
@reporting_errors
def worker(folder: Path | None, at_once: int, while_pid: int | None) -> None:
    """Train what a server has queued, until Ctrl-C; a server starts one by itself.

    Without --queue it is the folder of MLMETA_QUEUE_DIR, or the queue of the tracking store of MLflow's settings.
    """
    from mlmeta.job_queue import JobQueue, queue_folder
    from mlmeta.job_runner import JobRunner
    from mlmeta.tracking.store import current_uri

    given = os.environ.get("MLMETA_QUEUE_DIR")
    queue = JobQueue(folder or (Path(given) if given else queue_folder(current_uri())))
    click.echo(f"working on {queue.folder}, {at_once} at once", err=True)
    JobRunner(queue, at_once=at_once, while_pid=while_pid).run()


COMMANDS: list[click.Command] = [worker]
