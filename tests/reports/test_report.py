"""The page of all attempts: complete, self-contained, and safe against what strangers write."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table

from mlmeta.errors import BadInputError, NotFoundError
from mlmeta.reports.curve_figures import MAX_CURVES, place_lines, plot_learning_curves
from mlmeta.reports.figure_data import prepare_table
from mlmeta.reports.html import MAX_ROWS, make_leaderboards
from mlmeta.reports.report import write_report

VOID = {"meta", "link", "input", "br", "img", "hr"}
HOSTILE = [
    "<script>alert(1)</script>",
    '</script><img src="https://evil.example/x" onerror=alert(1)>',
    '"><svg onload=alert(1)>',
    "]]>--><!--",
    "{{ scripts }}{% raw %}",
    "a & b &lt; %{customdata} $x$ \u2028 'q'",
    '<a href="javascript:alert(1)">x</a>',
    "\U0001f415 собака 狗 " + "x" * 5000,
]


class Page(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((self.elements[-1][1], ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts.pop()
            self.scripts.append((attributes, text + data))
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.words.append(data)

    @property
    def content(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def code(self) -> list[str]:
        return [text for attributes, text in self.scripts if attributes.get("type") != "application/json"]

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(text) for attributes, text in self.scripts if attributes == {"type": "application/json"}]

    @property
    def attempts(self) -> dict[str, Any]:
        return next(json.loads(text) for attributes, text in self.scripts if attributes.get("id") == "attempts")

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


def read_page(table: pd.DataFrame, folder: Path, **options: Any) -> Page:
    file = folder / "report.html"
    write_report(table, file, **options)
    return Page(file.read_text(encoding="utf-8"))


def change(table: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    changed = table.assign(**columns)
    changed.attrs = dict(table.attrs)
    return changed


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table(4)


@pytest.fixture(scope="module")
def page(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(table, tmp_path_factory.mktemp("page"), title="Four each", store="sqlite:///x.db")


@pytest.fixture
def few(table: pd.DataFrame) -> pd.DataFrame:
    """Eight attempts: too few for importance, so that a page takes a moment."""
    return table.head(8).copy()


def test_the_page_is_well_formed_and_its_headings_are_in_order(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert page.open == []
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    assert len(set(page.values("id"))) == len(page.values("id"))


def test_the_page_loads_nothing_from_anywhere(page: Page) -> None:
    assert page.values("src") == []
    assert all(link.startswith("#") or link == "data:," for link in page.values("href"))
    assert not any(re.search(r"url\(|@import|https?:", style) for style in page.styles)
    assert page.text.count("* plotly.js v") == 1


def test_no_script_asks_plotly_to_send_data(page: Page) -> None:
    assert "showSendToCloud: false" in page.code[-1]


def test_the_policy_allows_these_scripts_and_no_request(page: Page) -> None:
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digests = {base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in page.code}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == digests
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "'unsafe-" not in policy.split("style-src")[0]


def test_every_entry_of_the_contents_leads_to_a_section(page: Page) -> None:
    targets = [link[1:] for link in page.values("href") if link.startswith("#")]
    assert len(targets) == 11
    assert set(targets) <= set(page.values("id"))


def test_the_head_says_what_was_read(page: Page) -> None:
    assert "52 attempts on 13 tasks , started 2026-01-01" in page.content
    assert "Status: Complete 52. Compared by accuracy ." in page.content
    assert "Read from sqlite:///x.db on 20" in page.content


def test_the_data_in_the_page_equals_the_table(page: Page, table: pd.DataFrame) -> None:
    rows = page.attempts["rows"]
    assert rows["run_id"] == list(table["run_id"])
    assert rows["model_name"] == list(table["model_name"])
    np.testing.assert_allclose(rows["accuracy"], table["accuracy"], rtol=1e-8)
    np.testing.assert_allclose(rows["optimizer.lr"], table["optimizer.lr"], rtol=1e-8)


def test_every_attempt_stands_at_its_learning_rate_and_accuracy(page: Page, table: pd.DataFrame) -> None:
    panels = [figure for figure in page.figures if figure["layout"]["height"] == 230]
    points = {
        row: (x, y)
        for figure in panels
        for trace in figure["data"]
        for row, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    }
    assert len(panels) == 13
    assert sorted(points) == list(table.index)
    expected = table[["optimizer.lr", "accuracy"]].to_numpy()
    np.testing.assert_allclose([points[row] for row in table.index], expected, rtol=1e-3)


def test_every_attempt_has_a_row_and_the_best_of_its_task_stands_first(page: Page, table: pd.DataFrame) -> None:
    lines = [int(a["data-row"]) for tag, a in page.elements if tag == "tr" and "data-row" in a]
    overview, boards = lines[:13], lines[13:]
    best = table.groupby("task")["accuracy"].max()
    assert sorted(boards) == list(table.index)
    assert [table.at[row, "accuracy"] for row in overview] == list(best)
    assert table.at[boards[0], "accuracy"] == best.iloc[0]


def test_each_figure_says_what_it_shows(page: Page) -> None:
    labels = [a.get("aria-label", "") for _, a in page.elements if "data-figure" in a]
    assert len(labels) == len(page.figures)
    assert all(labels)
    assert "Importance of params for accuracy, with 95 % intervals" in labels
    assert "Map of tasks: near ones are alike" in labels


def test_curves_are_those_of_the_table(table: pd.DataFrame) -> None:
    figure = plot_learning_curves(prepare_table(table, metric="accuracy"))
    curves: dict[int, list[float]] = {}
    for trace in figure.data:
        for row, loss in zip(trace.customdata, trace.y, strict=True):
            if row is not None:
                curves.setdefault(row, []).append(np.nan if loss is None else loss)
    assert sorted(curves) == list(table.index)
    for row, curve in table["curve"].items():
        np.testing.assert_allclose(curves[row], curve, rtol=1e-3)


def test_many_curves_and_long_ones_are_thinned_and_keep_their_ends() -> None:
    n = 1500
    curves = [np.linspace(2, 1 + i / n, 1000) for i in range(n)]
    facts = {"run_id": [f"{i}" for i in range(n)], "model_name": "m", "status": "Complete", "task": "t"}
    table = pd.DataFrame(facts | {"accuracy": np.linspace(0, 1, n), "curve": pd.Series(curves)})
    figure = plot_learning_curves(table)
    rows = {row for trace in figure.data for row in trace.customdata if row is not None}
    assert len(rows) == MAX_CURVES
    assert n - 1 in rows
    assert sum(len(trace.x) for trace in figure.data) <= 41_000 + MAX_CURVES
    assert {trace.x[0] for trace in figure.data} == {1}
    assert {max(x for x in trace.x if x is not None) for trace in figure.data} == {1000}


def test_axes_of_parallel_coordinates_are_logarithmic_for_learning_rates_and_show_what_is_missing(
    few: pd.DataFrame,
) -> None:
    few.loc[0, "optimizer.lr"] = np.nan
    rate, name, score = place_lines(prepare_table(few, metric="accuracy"), ["optimizer.lr", "optimizer.name"])["axes"]
    expected = np.log10(few["optimizer.lr"].dropna())
    np.testing.assert_allclose(sorted(rate["values"])[1:], sorted(expected), rtol=1e-3)
    assert min(rate["values"]) < expected.min()
    assert "none" in {text for _, text in rate["ticks"]}
    assert {text for _, text in name["ticks"]} == set(few["optimizer.name"])
    np.testing.assert_allclose(sorted(score["values"]), sorted(few["accuracy"]))


@pytest.mark.parametrize("text", HOSTILE)
def test_what_strangers_write_is_text_and_nothing_else(few: pd.DataFrame, tmp_path: Path, text: str) -> None:
    clean = read_page(few, tmp_path)
    hostile = change(
        few,
        model_name=text,
        status=text,
        task=[text] * 4 + ["other"] * 4,
        **{"optimizer.name": [text, "b"] * 4, text: np.arange(8.0) + 1, "tags.mlmeta.task": json.dumps({"a": text})},
    )
    hostile.attrs["kinds"] = few.attrs["kinds"] | {text: "param"}
    page = read_page(hostile, tmp_path, title=text, store=text)
    tags = {tag for tag, _ in page.elements}
    assert tags <= {tag for tag, _ in clean.elements}
    assert len(page.code) == len(clean.code)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(link.startswith("#") or link == "data:," for link in page.values("href"))
    assert page.attempts["rows"]["model_name"][0] == text[:500]
    assert " ".join(text.split()) in page.content
    shown = [line for text in page.attempts["texts"] for line in re.split("<br>|</?b>", text)]
    assert not any("<" in line or ">" in line for line in shown)


def test_an_empty_history_says_how_to_make_the_first_attempt(table: pd.DataFrame, tmp_path: Path) -> None:
    empty = table.iloc[:0][["run_id", "model_name", "status", "task", "experiment", "started", "duration_s", "curve"]]
    page = read_page(empty, tmp_path)
    assert "No attempt has been recorded here yet." in page.content
    assert "mlmeta train digits.json" in page.content
    assert page.figures == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda table: table.head(1), "at least 20 attempts"),
        (lambda table: change(table, accuracy=np.nan), "no attempt has a finite accuracy yet"),
        (lambda table: change(table, accuracy=np.inf), "no attempt has a finite accuracy yet"),
        (lambda table: table.drop(columns="accuracy"), "no attempt has a finite accuracy yet"),
        (lambda table: change(table, curve=None), "no attempt has a learning curve"),
        (lambda table: change(table, task=None), "needs two tasks"),
        (lambda table: table.drop(columns="optimizer.lr"), "optimizer.lr"),
        (lambda table: change(table, duration_s=np.nan), "duration_s"),
        (
            lambda table: change(table, status="Training", accuracy=np.nan, curve=None),
            "no finite accuracy|finite accuracy",
        ),
    ],
)
def test_too_little_data_is_said_in_a_sentence(
    few: pd.DataFrame, tmp_path: Path, make: Callable[[pd.DataFrame], pd.DataFrame], sentence: str
) -> None:
    changed = make(few)
    changed.attrs = dict(few.attrs)
    page = read_page(changed, tmp_path)
    assert re.search(sentence, page.content)
    assert f"{len(changed)} attempt" in page.content


def test_one_attempt_stands_in_its_tables_and_panels(few: pd.DataFrame, tmp_path: Path) -> None:
    one = few.head(1)
    page = read_page(one, tmp_path)
    assert "no task has two attempts to compare" in page.content
    assert [f["data"][0]["x"] for f in page.figures if f["layout"]["height"] == 230] == [[one.at[0, "optimizer.lr"]]]
    assert "optimizer.lr" in page.content


def test_odd_metrics_do_not_reach_the_figures(few: pd.DataFrame, tmp_path: Path) -> None:
    changed = change(few, accuracy=[np.nan, np.inf, -np.inf, 1.0, 0.5, 0.0, 0.25, 0.75])
    page = read_page(changed, tmp_path)
    numbers = json.dumps([page.figures, page.attempts])
    assert "Infinity" not in numbers
    assert "NaN" not in numbers
    assert page.attempts["rows"]["accuracy"] == [None, None, None, 1.0, 0.5, 0.0, 0.25, 0.75]


def test_attempts_that_were_made_by_hand_have_a_place(few: pd.DataFrame, tmp_path: Path) -> None:
    bare = few.assign(model_name=None, status=None, task=None, started=pd.NaT, curve=None)
    bare = bare.assign(**{name: None for name in few.columns if name.startswith(("optimizer", "model", "arch"))})
    bare.attrs = dict(few.attrs)
    page = read_page(bare, tmp_path)
    assert "8 attempts on 0 tasks" in page.content
    assert "8 attempts without a known task." in page.content


def test_forty_tasks_have_forty_leaderboards(table: pd.DataFrame, tmp_path: Path) -> None:
    many = change(table.head(40), task=[f"task {i:02}" for i in range(40)])
    page = read_page(many, tmp_path)
    names = page.values("data-task")
    assert names == [f"task {i:02}" for i in range(40)]


def test_chosen_tasks_are_the_only_ones(few: pd.DataFrame, tmp_path: Path) -> None:
    few["task"] = ["a", "b", "c", "a", "b", "c", "a", "b"]
    page = read_page(few, tmp_path, tasks=["a", "c"])
    assert page.values("data-task") == ["a", "c"]
    assert "5 attempts on 2 tasks" in page.content


def test_effects_on_one_task_are_in_the_unit_of_the_metric(tmp_path: Path) -> None:
    page = read_page(make_table(24), tmp_path, tasks=["digits-0"])
    assert "The mean accuracy over all other params" in page.content
    titles = [figure["layout"]["yaxis"].get("title", {}).get("text") for figure in page.figures]
    assert titles.count("accuracy") == 1 + 4


def test_the_least_loss_comes_first(few: pd.DataFrame, tmp_path: Path) -> None:
    few["task"] = "one"
    page = read_page(few, tmp_path, metric="train_loss")
    lines = [int(a["data-row"]) for tag, a in page.elements if tag == "tr" and "data-row" in a]
    assert lines[0] == few["train_loss"].idxmin()
    assert lines[1:] == list(few["train_loss"].sort_values().index)


def test_large_leaderboards_are_cut_and_say_so() -> None:
    n = MAX_ROWS + 500
    facts = {"run_id": "r", "model_name": "m", "status": "Complete", "task": ["a", "b"] * (n // 2), "duration_s": 1.0}
    table = pd.DataFrame(facts | {"started": pd.Timestamp(0, tz="UTC"), "accuracy": np.linspace(0, 1, n)})
    found = make_leaderboards(table, [], metric="accuracy")
    assert found["n_shown"] == MAX_ROWS
    assert [board["note"] for board in found["boards"]] == ["the best 1,000 of 1,250 attempts"] * 2
    assert found["boards"][1]["rows"][0][0] == n - 1


def test_a_fault_leaves_the_former_page_and_no_other_file(few: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("before")
    with pytest.raises(BadInputError, match=r"'accurac'. Did you mean 'accuracy'\?"):
        write_report(few, file, metric="accurac")
    with pytest.raises(NotFoundError, match=r"Did you mean 'omniglot-Latin'\?"):
        write_report(few, file, tasks=["omniglot-latin"])
    assert file.read_text() == "before"
    write_report(few, file)
    assert file.stat().st_size > 1_000_000
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("postgresql://user:secret@host:5432/db", "postgresql://host:5432/db"),
        ("https://token@mlflow.example/x", "https://mlflow.example/x"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://[bad", "(an address that cannot be read)"),
    ],
)
def test_a_password_of_the_store_is_left_out(few: pd.DataFrame, tmp_path: Path, store: str, shown: str) -> None:
    page = read_page(few, tmp_path, store=store)
    assert f"Read from {shown} on" in page.content
    assert "secret" not in page.text
