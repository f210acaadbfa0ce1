"""The page under /mlmeta/: what MLflow's UI cannot show, in pages that each have an address of their own.

The server writes the frame: navigation, controls, the names of tasks and metrics, what to do where there is no attempt
yet. Scripts fill in the rest from the API; hyperparameters and tasks show sections of `mlmeta.reports.report`, which
come when they are drawn. Nothing is loaded from elsewhere, and no script stands in a page.

Styles and scripts have addresses that change when they do.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd
from fastapi import APIRouter, Depends, Header, Query
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

import mlmeta.reports.html
from mlmeta.errors import MlmetaError, NotFoundError
from mlmeta.history.table import is_numeric, lower_is_better
from mlmeta.reports.html import fill_body, open_templates
from mlmeta.reports.report import write_sections
from mlmeta.server import questions
from mlmeta.server.callers import Caller, identify
from mlmeta.server.job_answers import link_to_run
from mlmeta.server.queued_runs import get_run

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

router = APIRouter(tags=["the page"], include_in_schema=False)
Asking = Annotated[Caller, Depends(identify)]
Text = Annotated[str, Query(max_length=10_000)]
_A_YEAR_S = 31_536_000
_FIRST_METRICS = ("accuracy", "val_accuracy", "macro_f1", "test_loss", "val_loss", "train_loss", "duration_s")
_FOLDER = Path(__file__).parent / "page"
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_PLOTLY = "plotly.js"
# Templates whose script has another name.
_SCRIPTS = {"empty": "new", "missing": "frame", "params": "sections", "tasks": "sections"}
_PARAM_SECTIONS = ("importance", "parallel", "effects", "pairs")
_MOST_TASKS = 100


# Titles by their paths below /mlmeta/.
SECTIONS = {
    "": "Leaderboard",
    "curves": "Curves",
    "params": "Hyperparameters",
    "tasks": "Tasks",
    "next": "What next",
    "queue": "Queue",
    "new": "New attempt",
}


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


def _read(caller: Caller) -> pd.DataFrame:
    names = None if caller.experiments is None else list(caller.experiments.values())
    return questions.choose_readable(caller.server.attempts.read(), names)


async def _look(caller: Caller) -> Overview:
    return await caller.server.work(lambda: describe_history(_read(caller)))


@router.get("/mlmeta")
async def lead_to_first(caller: Asking) -> Response:
    """Lead to the first page."""
    return RedirectResponse(f"{caller.server.prefix}/mlmeta/", status_code=308)


@router.get("/mlmeta/")
async def show_leaderboard(caller: Asking, task: Text = "", metric: Text = "", filter: Text = "") -> Response:
    """Show the leaderboard, of one task or of all."""
    return await _show(caller, "", {"task": task, "metric": metric, "filter": filter}, await _look(caller))


@router.get("/mlmeta/curves")
async def show_curves(caller: Asking) -> Response:
    """Show a metric by epoch of chosen attempts, as they grow."""
    return await _show(caller, "curves", {}, await _look(caller))


@router.get("/mlmeta/params")
async def show_params(caller: Asking, task: Text = "", metric: Text = "") -> Response:
    """Show which hyperparameters matter, what they do, and all attempts over them."""
    overview = await _look(caller)
    task, metric = task if task in overview.tasks else "", _choose(metric, overview.metrics)

    def draw(table: pd.DataFrame) -> Markup:
        return write_sections(table, _PARAM_SECTIONS, metric=metric, task=task or None)

    async def later() -> dict[str, object]:
        return {"sections": await _keep(caller, ("params", task), metric, draw)}

    return await _show(caller, "params", {"task": task, "metric": metric, "later": later}, overview)


@router.get("/mlmeta/tasks")
async def show_tasks(caller: Asking, task: Text = "") -> Response:
    """Show what the tasks have in common."""
    overview = await _look(caller)
    task = _choose(task, overview.tasks)

    def draw(table: pd.DataFrame) -> Markup:
        return write_sections(table, ["map"], metric="accuracy", chosen=task)

    async def later() -> dict[str, object]:
        drawn = await _keep(caller, ("tasks", task), "accuracy", draw)
        try:
            near = await caller.server.work(lambda: questions.find_similar(_read(caller), task, _MOST_TASKS))
        except MlmetaError as error:
            return {"sections": drawn, "near": [], "reason": str(error)}
        return {"sections": drawn, "near": near.to_dict("records"), "reason": ""}

    return await _show(caller, "tasks", {"task": task, "later": later}, overview)


@router.get("/mlmeta/next")
async def show_next(caller: Asking, task: Text = "") -> Response:
    """Show what to try next."""
    return await _show(caller, "next", {"task": task}, await _look(caller))


@router.get("/mlmeta/queue")
async def show_queue(caller: Asking) -> Response:
    """Show the attempts that wait, are at work, or have ended."""
    return await _show(caller, "queue", {})


@router.get("/mlmeta/new")
async def show_new(caller: Asking) -> Response:
    """Show the form that takes commands."""
    return await _show(caller, "new", {})


@router.get("/mlmeta/attempts/{run_id}")
async def show_attempt(caller: Asking, run_id: str) -> Response:
    """Show one attempt: commands, metrics, curve, log."""
    try:
        run = await get_run(caller, run_id)
    except NotFoundError as error:
        return await _show(caller, "missing", {"message": str(error)}, title="Attempt", status=404)
    return await _show(caller, "attempt", {"name": run.name, "run_id": run.run_id}, title=run.name)


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


def _choose(wanted: str, known: Sequence[str]) -> str:
    """Return what an address names, else the first that there is."""
    return wanted if wanted in known else next(iter(known), "")


async def _keep(caller: Caller, key: tuple[str, ...], metric: str, draw: Callable[[pd.DataFrame], Markup]) -> Markup:
    """Return what is drawn of the attempts that a caller may read, kept until their scores are others."""
    names = None if caller.experiments is None else tuple(sorted(caller.experiments.values()))

    def find() -> Markup:
        table = _read(caller)
        return caller.server.answers.keep((*key, metric, names), table, metric, lambda: draw(table))

    try:
        return await caller.server.work(find)
    except MlmetaError as error:
        # The page has begun, so a fault can only stand in it.
        return fill_body("lack", reason=str(error))


async def _show(
    caller: Caller,
    path: str,
    values: Mapping[str, object],
    overview: Overview | None = None,
    *,
    title: str = "",
    status: int = 200,
) -> Response:
    """Return the page of that path, a template of that name; where it shows nothing, how to make the first attempt.

    What the template asks `later` for comes when it is there, and the browser shows the page until then.
    """
    template = "empty" if overview is not None and not overview.n_attempts else path or "leaderboard"
    pages = f"{caller.server.prefix}/mlmeta"
    assets = f"{pages}/assets/{digest_assets()}"
    frame = {
        "title": title or SECTIONS[path],
        "prefix": caller.server.prefix,
        "pages": pages,
        "assets": assets,
        "plotly": f"{pages}/assets/plotly-{plotly_version()}/plotly.js",
        "script": _SCRIPTS.get(template, template),
        "navigation": SECTIONS,
        "path": path,
        "overview": overview,
        "example": read_example(),
    }
    headers = {"Cache-Control": "no-store"}
    written = _templates().get_template(f"{template}.html").generate_async({**frame, **values})
    if "later" in values:
        return StreamingResponse(written, status, headers, "text/html")
    return HTMLResponse("".join([piece async for piece in written]), status, headers)


@functools.cache
def _templates() -> Environment:
    templates = open_templates(_FOLDER, asynchronous=True)
    templates.tests["lower_better"] = lower_is_better
    return templates


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
def read_example() -> str:
    """Return train commands to begin with, on pictures that mlmeta brings."""
    return (_FOLDER / "example.json").read_text(encoding="utf-8").strip()


def _list_assets() -> dict[str, Path]:
    """Return scripts and styles by their names: those of the pages, and those of the sections in them."""
    folders = (_FOLDER, mlmeta.reports.html.FOLDER)
    return {file.name: file for folder in folders for file in folder.iterdir() if file.suffix in _TYPES}


@functools.cache
def digest_assets() -> str:
    """Return what stands in the addresses of scripts and styles: other files, other addresses."""
    files = sorted(_list_assets().items())
    return hashlib.sha256(b"".join(name.encode() + file.read_bytes() for name, file in files)).hexdigest()[:12]


def plotly_version() -> str:
    """Return the version of plotly.js that the Python package brings."""
    from plotly.offline import get_plotlyjs_version

    return str(get_plotlyjs_version())


def find_asset(version: str, name: str) -> Asset | None:
    """Return an asset; None where there is none of that name, or only of another version."""
    if name == _PLOTLY:
        return _read_plotly() if version == f"plotly-{plotly_version()}" else None
    # Only names that are listed are opened, whatever a request asks for.
    known = _list_assets()
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
