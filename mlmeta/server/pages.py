"""The page under /mlmeta/: what MLflow's UI cannot show, in pages that each have an address of their own.

The server writes the frame: navigation, controls, the names of tasks and metrics, what to do where there is no attempt
yet. Scripts fill in the rest from the API. Nothing is loaded from elsewhere, and no script stands in a page.

Templates, styles and scripts have addresses that change when they do.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from fastapi import APIRouter, Depends, Header, Query
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mlmeta.errors import NotFoundError
from mlmeta.history.table import is_numeric, lower_is_better
from mlmeta.reports.html import escape_text
from mlmeta.server import questions
from mlmeta.server.callers import Caller, identify
from mlmeta.server.job_answers import link_to_run
from mlmeta.server.queued_runs import get_run

router = APIRouter(tags=["the page"], include_in_schema=False)
Asking = Annotated[Caller, Depends(identify)]
Text = Annotated[str, Query(max_length=10_000)]
_A_YEAR_S = 31_536_000
_FIRST_METRICS = ("accuracy", "val_accuracy", "macro_f1", "test_loss", "val_loss", "train_loss", "duration_s")
_FOLDER = Path(__file__).parent / "page"
_PLACEHOLDER = re.compile("@@([a-z_]+)@@")
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_PLOTLY = "plotly.js"


@dataclass(frozen=True)
class Section:
    """An entry of the navigation.

    Attributes:
        path: Below ``/mlmeta/``; empty for the first.
        needs_attempts: Whether it says how to make the first attempt where there is none.
    """

    path: str
    title: str
    needs_attempts: bool = True


SECTIONS = (
    Section("", "Leaderboard"),
    Section("curves", "Curves"),
    Section("params", "Hyperparameters"),
    Section("tasks", "Tasks"),
    Section("next", "What next"),
    Section("queue", "Queue", needs_attempts=False),
    Section("new", "New attempt", needs_attempts=False),
)


@dataclass(frozen=True)
class Overview:
    """What the controls of the pages name.

    Attributes:
        tasks: Sorted by name.
        metrics: Of the attempts that a caller may read, the usual ones first.
    """

    n_attempts: int
    tasks: Sequence[str]
    metrics: Sequence[str]


def describe_history(table: pd.DataFrame) -> Overview:
    """Return which tasks and metrics some attempts have."""
    kinds = table.attrs.get("kinds", {})
    scores = [name for name in table.columns if kinds.get(name) == "metric" or name == "duration_s"]
    known = [name for name in scores if is_numeric(table[name]) and table[name].notna().any()]
    usual = [name for name in _FIRST_METRICS if name in known]
    metrics = [*usual, *sorted(set(known) - set(usual))] or ["accuracy"]
    return Overview(len(table), sorted(str(task) for task in table["task"].dropna().unique()), metrics)


async def _look(caller: Caller) -> Overview:
    def look() -> Overview:
        names = None if caller.experiments is None else list(caller.experiments.values())
        return describe_history(questions.choose_readable(caller.server.attempts.read(), names))

    return await caller.server.work(look)


@router.get("/mlmeta")
async def lead_to_first(caller: Asking) -> Response:
    """Lead to the first page."""
    return RedirectResponse(f"{caller.server.prefix}/mlmeta/", status_code=308)


@router.get("/mlmeta/")
async def show_leaderboard(caller: Asking, task: Text = "", metric: Text = "", filter: Text = "") -> Response:
    """Show the leaderboard, of one task or of all."""
    overview = await _look(caller)
    values = {"tasks": _list_tasks(overview, task, every=True), "metrics": _list_metrics(overview, metric)}
    return _show(caller, SECTIONS[0], "leaderboard", values | {"filter": filter}, overview)


@router.get("/mlmeta/curves")
async def show_curves(caller: Asking) -> Response:
    """Show a metric by epoch of chosen attempts, as they grow."""
    return _show(caller, SECTIONS[1], "curves", {}, await _look(caller))


@router.get("/mlmeta/params")
async def show_params(caller: Asking, task: Text = "", metric: Text = "") -> Response:
    """Show which hyperparameters matter, and all attempts over them."""
    overview = await _look(caller)
    values = {"tasks": _list_tasks(overview, task, every=True), "metrics": _list_metrics(overview, metric)}
    return _show(caller, SECTIONS[2], "params", values, overview)


@router.get("/mlmeta/tasks")
async def show_tasks(caller: Asking, task: Text = "") -> Response:
    """Show what the tasks have in common."""
    overview = await _look(caller)
    return _show(caller, SECTIONS[3], "tasks", {"tasks": _list_tasks(overview, task)}, overview)


@router.get("/mlmeta/next")
async def show_next(caller: Asking, task: Text = "") -> Response:
    """Show what to try next."""
    overview = await _look(caller)
    return _show(caller, SECTIONS[4], "next", {"tasks": _list_tasks(overview, task)}, overview)


@router.get("/mlmeta/queue")
async def show_queue(caller: Asking) -> Response:
    """Show the attempts that wait, are at work, or have ended."""
    return _show(caller, SECTIONS[5], "queue", {})


@router.get("/mlmeta/new")
async def show_new(caller: Asking) -> Response:
    """Show the form that takes commands."""
    return _show(caller, SECTIONS[6], "new", {"form": _write_form()})


@router.get("/mlmeta/attempts/{run_id}")
async def show_attempt(caller: Asking, run_id: str) -> Response:
    """Show one attempt: commands, metrics, curve, log."""
    section = Section("attempts", "Attempt", needs_attempts=False)
    try:
        run = await get_run(caller, run_id)
    except NotFoundError as error:
        return _show(caller, section, "missing", {"message": str(error)}, status=404)
    return _show(caller, section, "attempt", {"name": run.name, "run_id": run.run_id}, title=run.name)


@router.get("/mlmeta/mlflow/{run_id}")
async def lead_to_mlflow(caller: Asking, run_id: str) -> Response:
    """Lead to the page of a run in MLflow's UI, whatever experiment it is in."""
    run = await get_run(caller, run_id)
    return RedirectResponse(link_to_run(caller.server, run.experiment_id, run.run_id), status_code=302)


@router.get("/mlmeta/assets/{version}/{name}")
async def send_asset(
    caller: Asking, version: str, name: str, accept_encoding: Annotated[str, Header()] = ""
) -> Response:
    """Send a script or a style, which never changes under its address."""
    asset = await caller.server.work(find_asset, version, name)
    if asset is None:
        raise NotFoundError(f"there is no asset {name!r} of version {version!r}")
    kept = "private" if caller.server.needs_login else "public"
    headers = {"Cache-Control": f"{kept}, max-age={_A_YEAR_S}, immutable", "Vary": "Accept-Encoding"}
    if "gzip" not in accept_encoding:
        return Response(asset.content, media_type=asset.content_type, headers=headers)
    return Response(asset.packed, media_type=asset.content_type, headers=headers | {"Content-Encoding": "gzip"})


def _show(
    caller: Caller,
    section: Section,
    template: str,
    values: Mapping[str, object],
    overview: Overview | None = None,
    *,
    title: str = "",
    status: int = 200,
) -> Response:
    """Return a page: a template in the frame; where there is nothing to show, how to make the first attempt."""
    pages = f"{caller.server.prefix}/mlmeta"
    if overview is not None and section.needs_attempts and not overview.n_attempts:
        template, values = "empty", {"form": _write_form()}
    assets = f"{pages}/assets/{digest_assets()}"
    frame: dict[str, Any] = {
        "title": title or section.title,
        "prefix": caller.server.prefix,
        "pages": pages,
        "assets": assets,
        "plotly": f"{pages}/assets/plotly-{plotly_version()}/plotly.js",
        "script": {"empty": "new", "missing": "frame"}.get(template, template),
        "navigation": _write_navigation(pages, section),
        "content": fill_template(template, {"pages": pages, **values}),
    }
    headers = {"Cache-Control": "no-store"}
    return HTMLResponse(fill_template("frame", frame), status_code=status, headers=headers)


def _write_navigation(pages: str, current: Section) -> Html:
    return Html("\n".join(_write_link(pages, section, current) for section in SECTIONS))


def _write_link(pages: str, section: Section, current: Section) -> str:
    mark = ' aria-current="page"' if section.path == current.path else ""
    return f'<li><a href="{escape_text(pages)}/{section.path}"{mark}>{section.title}</a></li>'


def _list_tasks(overview: Overview, chosen: str, *, every: bool = False) -> Html:
    names = [*([""] if every else []), *overview.tasks]
    return Html("".join(_write_option(name, name or "all tasks", chosen) for name in names))


def _list_metrics(overview: Overview, chosen: str) -> Html:
    orders = {name: "ASC" if lower_is_better(name) else "DESC" for name in overview.metrics}
    return Html("".join(_write_option(name, name, chosen, f' data-order="{orders[name]}"') for name in orders))


def _write_option(value: str, text: str, chosen: str, more: str = "") -> str:
    mark = " selected" if value == chosen else ""
    return f'<option value="{escape_text(value)}"{mark}{more}>{escape_text(text)}</option>'


def _write_form() -> Html:
    return fill_template("form", {"example": read_example()})


class Html(str):
    """Text that is HTML already, with nothing of strangers in it that was not escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Asset:
    """A file that a page loads.

    Attributes:
        content_type: As the header says it.
        content: The file.
        packed: The same with gzip.
    """

    content_type: str
    content: bytes
    packed: bytes


@functools.cache
def read_template(name: str) -> str:
    """Return the text of a template."""
    return (_FOLDER / f"{name}.html").read_text(encoding="utf-8")


@functools.cache
def read_example() -> str:
    """Return train commands to begin with, on pictures that mlmeta brings."""
    return (_FOLDER / "example.json").read_text(encoding="utf-8").strip()


def fill_template(name: str, values: Mapping[str, object]) -> Html:
    """Return a template with its placeholders ``@@name@@`` filled; what is no `Html` is escaped.

    Raises:
        KeyError: If a value is missing.
    """

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]]
        return value if isinstance(value, Html) else escape_text(value)

    return Html(_PLACEHOLDER.sub(fill, read_template(name)))


@functools.cache
def digest_assets() -> str:
    """Return what stands in the addresses of scripts and styles: other files, other addresses."""
    files = sorted(file for file in _FOLDER.iterdir() if file.suffix in _TYPES)
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()[:12]


def plotly_version() -> str:
    """Return the version of plotly.js that the Python package brings."""
    from plotly.offline import get_plotlyjs_version

    return str(get_plotlyjs_version())


def find_asset(version: str, name: str) -> Asset | None:
    """Return an asset; None where there is none of that name, or only of another version."""
    if name == _PLOTLY:
        return _read_plotly() if version == f"plotly-{plotly_version()}" else None
    # Only names that are listed are opened, whatever a request asks for.
    known = {file.name: file for file in _FOLDER.iterdir() if file.suffix in _TYPES}
    return _read_asset(known[name]) if version == digest_assets() and name in known else None


@functools.cache
def _read_asset(file: Path) -> Asset:
    return _pack(_TYPES[file.suffix], file.read_bytes())


@functools.cache
def _read_plotly() -> Asset:
    """Return plotly.js, 4.8 MB; packed, which takes a third of a second once, 1.5 MB."""
    from plotly.offline import get_plotlyjs

    return _pack(_TYPES[".js"], str(get_plotlyjs()).encode())


def _pack(content_type: str, content: bytes) -> Asset:
    return Asset(content_type, content, gzip.compress(content, 6, mtime=0))
