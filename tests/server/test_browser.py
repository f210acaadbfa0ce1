"""The pages in a real browser, over a real server that trains real attempts.

MLMETA_SCREENSHOTS=1 writes the pictures of the documentation into docs/.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from servers import Server

from mlmeta.exchange.importing import import_attempts
from mlmeta.server.pages import SECTIONS, read_example

pytest.importorskip("selenium", reason="Selenium is not installed: pip install --group dev")

from browsers import Browser, find_programs
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

PROGRAMS = find_programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="no chromium and chromedriver: apt-get install chromium-driver"),
]
ROOT = Path(__file__).parent.parent.parent
API = "/ajax-api/mlmeta"
MARKUP = '<img src=x onerror="window.hacked=1">'
EXAMPLE = json.loads(read_example())
N_POINTS = "document.querySelector('#left-figure').data?.[0]?.x?.length ?? 0"
# An epoch takes some tenths of a second; the page asks once in that time or two, also on a busy machine.
N_EPOCHS, MANY_EPOCHS = 600, 100_000


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Path:
    """A store with 119 real attempts on 13 tasks, and four whose names, labels and tags are markup."""
    folder = tmp_path_factory.mktemp("past")
    lines = gzip.decompress((ROOT / "examples" / "attempts.jsonl.gz").read_bytes()).decode().splitlines()[::7]
    hostile = json.loads(lines[0])
    for index in range(4):
        hostile["name"] = hostile["training_commands"]["model_name"] = f"hostile-{index}"
        hostile["id"] = f"hostile-{index}"
        hostile["task"] |= {"name": MARKUP, "label_names": [MARKUP, "<b>bold"]}
        hostile["training_commands"]["label_names"] = [MARKUP, "<b>bold"]
        lines.append(json.dumps(hostile))
    (folder / "attempts.jsonl").write_text("\n".join(lines))
    shutil.copy(store_template, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        import_attempts([folder / "attempts.jsonl"])
    finally:
        mlflow.set_tracking_uri(before)
    client = MlflowClient(uri)
    for run in client.search_runs(["0"], "tags.`mlmeta.kind` = 'attempt'"):
        if run.info.run_name.startswith("hostile"):
            client.update_run(run.info.run_id, name=f"{run.info.run_name}{MARKUP}")
            client.set_tag(run.info.run_id, "note", MARKUP)
    return folder / "mlflow.db"


def copy_store(source: Path, target: Path) -> None:
    """Copy a SQLite file with what still lies in its log."""
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.fixture(scope="module")
def server(past: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browsed")
    copy_store(past, folder / "mlflow.db")
    environment = {
        "MLMETA_STATE_DIR": str(folder / "state"), "MLMETA_QUEUE_DIR": str(folder / "jobs"), "MLMETA_WORKER": "1",
        "MLMETA_CACHE_DIR": os.environ["MLMETA_CACHE_DIR"], "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    server = Server(
        folder, f"sqlite:///{folder}/mlflow.db", options=["--app-name", "mlmeta", "--workers", "2"],
        environment=environment,
    )  # fmt: skip
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    assert PROGRAMS is not None
    browser = Browser(PROGRAMS)
    yield browser
    browser.quit()


@pytest.fixture
def browser(opened: Browser) -> Iterator[Browser]:
    """The browser, at the size of a desk; whatever the console shows as an error fails the test."""
    opened.look()
    opened.take_errors()
    yield opened
    assert opened.take_errors() == []


def show(browser: Browser, server: Server, path: str) -> None:
    browser.driver.get(f"{server.uri}/mlmeta/{path}")


def post(server: Server, name: str, **changes: Any) -> str:
    status, job = server.ask(f"{API}/attempts", {**EXAMPLE, "model_name": name, **changes})
    assert status == 202, job
    return str(job["run_id"])


def read_job(server: Server, run_id: str) -> dict[str, Any]:
    _, answer = server.ask(f"{API}/attempts/{run_id}")
    job: dict[str, Any] = answer["job"]
    return job


def best(server: Server, task: str, n: int) -> list[str]:
    _, answer = server.ask(f"{API}/leaderboard?task={task}&limit={n}")
    return [row["run_id"] for row in answer["attempts"]]


def take_picture(browser: Browser, name: str, *, height: int) -> None:
    if os.environ.get("MLMETA_SCREENSHOTS"):
        browser.save_picture(ROOT / "docs" / f"page_{name}.png", height=height)


def are_drawn(browser: Browser) -> bool:
    """Return whether there are figures, and none that is on the screen waits to be drawn."""
    found = "[...document.querySelectorAll('.figure, [data-figure], div[data-lines]')]"
    seen = "(one) => one.classList.contains('drawn') || one.getBoundingClientRect().top > innerHeight"
    return bool(browser.read(f"{found}.length && {found}.every({seen})"))


def test_an_attempt_is_queued_grows_completes_and_opens_in_mlflow(browser: Browser, server: Server) -> None:
    show(browser, server, "new")
    field = browser.find("#commands")
    field.clear()
    field.send_keys(json.dumps({**EXAMPLE, "model_name": "browsed", "n_epoch": N_EPOCHS}))
    browser.find("#new button").click()
    browser.wait("the attempt's page", lambda: "/mlmeta/attempts/" in browser.driver.current_url)
    assert browser.wait("its name", lambda: browser.text("h1")) == "browsed"
    seen: set[int] = set()

    def is_complete() -> bool:
        seen.add(browser.read(N_POINTS))
        return browser.text("#status").startswith("Complete, accuracy 0.9")

    browser.wait("the end of the training", is_complete)
    browser.wait("the whole curve", lambda: browser.read(N_POINTS) == N_EPOCHS)
    assert len({n for n in seen if 0 < n < N_EPOCHS}) >= 2, f"the curve did not grow: {sorted(seen)}"
    browser.wait("the log's last line", lambda: f"epoch {N_EPOCHS}/{N_EPOCHS}" in browser.text("#log"))
    assert "accuracy" in browser.text("#metrics")
    browser.find("#mlflow").click()
    browser.wait("MLflow's page", lambda: "/#/experiments/0/runs/" in browser.driver.current_url)
    browser.wait("the run's name", lambda: "browsed" in browser.text("body"))
    browser.take_errors()


def test_faulty_commands_are_listed_with_the_nearest_match(browser: Browser, server: Server) -> None:
    show(browser, server, "new")
    field = browser.find("#commands")
    field.clear()
    field.send_keys(json.dumps({**EXAMPLE, "n_epoch": -1, "optimizer": {"name": "Adamm", "lr": 0.1}, "x": MARKUP}))
    browser.find("#new button").click()
    faults = browser.wait("the faults", lambda: browser.text("#faults"))
    assert "faults in the commands" in faults
    assert "optimizer.name" in faults
    assert "Did you mean Adam?" in faults
    assert "n_epoch" in faults
    assert browser.read("window.hacked") is None
    field.clear()
    field.send_keys("{")
    browser.find("#new button").click()
    browser.wait("the place", lambda: "line 1" in browser.text("#faults"))
    assert all("422" in error for error in browser.take_errors())


def test_a_recommendation_is_queued_and_a_running_attempt_cancelled(browser: Browser, server: Server) -> None:
    short, long = post(server, "short", n_epoch=3), post(server, "long", n_epoch=MANY_EPOCHS)
    show(browser, server, f"next?run_id={short}")
    browser.wait("the attempt", lambda: browser.read("document.querySelector('[name=run_id]').value") == short)
    Select(browser.find("[name=task]"))
    browser.find("#ask button").click()
    browser.wait("recommendations", lambda: "recommendations, the best first" in browser.text("#state"))
    card = browser.text("#found li")
    assert "Expected accuracy" in card
    assert "±" in card
    assert "Rests on" in card
    take_picture(browser, "next", height=760)
    evidence = browser.read("[...document.querySelectorAll('#found li:first-child table a')].map((a) => a.pathname)")
    for path in evidence[:3]:
        assert server.ask(path)[0] == 200
    browser.find("#found button.strong").click()
    browser.wait("the queue", lambda: "Queued:" in browser.text("#found li"))
    queued = browser.read("document.querySelector('#found li [role=status] a').pathname").rpartition("/")[2]
    show(browser, server, f"queue?run_id={long}")
    row = f"tr[data-run='{long}']"
    browser.wait("epochs", lambda: browser.read(f'document.querySelector("{row} progress")?.value') or None)
    browser.wait("the place", lambda: "queued, next" in browser.text(f"tr[data-run='{queued}']"))
    browser.wait("the log", lambda: "long: epoch 1/" in browser.text("#log"))
    take_picture(browser, "queue", height=700)
    browser.find(f"{row} button[aria-label='Cancel long']").click()
    browser.wait("the end", lambda: browser.text(f"{row} .state") == "cancelled")
    assert read_job(server, long)["state"] == "cancelled"
    browser.wait("the next one", lambda: "done" in browser.text(f"tr[data-run='{queued}'] .state"))
    _, answer = server.ask(f"{API}/attempts/{queued}")
    assert answer["attempt"]["status"] == "Complete"


def test_chosen_attempts_are_shown_beside_each_other(browser: Browser, server: Server) -> None:
    show(browser, server, "?task=digits-0")
    browser.wait("attempts", lambda: len(browser.find_all("#attempts tbody input")) > 4)
    for box in browser.find_all("#attempts tbody input")[:3]:
        box.click()
    assert browser.text("#compare") == "Curves of the chosen (3)"
    browser.find("#compare").click()
    browser.wait("three curves", lambda: browser.read("document.querySelector('#left-figure').data?.length") == 3)
    assert len(browser.find_all("#chosen tr")) == 3
    browser.find("#chosen button").click()
    browser.wait("two curves", lambda: browser.read("document.querySelector('#left-figure').data?.length") == 2)
    browser.driver.back()
    browser.wait("three again", lambda: browser.read("document.querySelector('#left-figure').data?.length") == 3)
    browser.driver.back()
    browser.wait("the leaderboard", lambda: browser.text("#compare") == "Curves of the chosen (3)")


def test_a_page_of_finished_attempts_asks_nothing_more(browser: Browser, server: Server) -> None:
    chosen = "&".join(f"run_id={run_id}" for run_id in best(server, "digits-0", 3))
    show(browser, server, f"curves?{chosen}")
    browser.wait("three curves", lambda: browser.read("document.querySelector('#left-figure').data?.length") == 3)
    script = (
        "const done = arguments[0]; const count = () => performance.getEntriesByType('resource').length;"
        "const before = count(); setTimeout(() => done(count() - before), 4000);"
    )
    assert browser.driver.execute_async_script(script) == 0


def test_a_filter_finds_and_its_fault_is_shown_beside_it(browser: Browser, server: Server) -> None:
    show(browser, server, "?task=digits-0")
    browser.wait("attempts", lambda: "attempts" in browser.text("#count"))
    field = browser.find("[name=filter]")
    field.send_keys("optimizer.name = 'Adam'", Keys.ENTER)
    browser.wait("fewer", lambda: "filter=" in browser.driver.current_url and "attempts" in browser.text("#count"))
    _, answer = server.ask(
        f"{API}/attempts?filter=optimizer.name%3D%27Adam%27%20AND%20task%3D%27digits-0%27&columns=run_id"
    )
    browser.wait("Adam alone", lambda: f"of {answer['total']} attempts" in browser.text("#count"))
    field = browser.find("[name=filter]")
    field.clear()
    field.send_keys("acuracy > 0.5", Keys.ENTER)
    fault = browser.wait("the fault", lambda: browser.text("#fault"))
    assert "character 1:" in fault
    assert "Did you mean 'accuracy'?" in fault
    assert all("400" in error for error in browser.take_errors())
    browser.driver.back()
    browser.wait(
        "the filter before", lambda: browser.find("[name=filter]").get_property("value") == "optimizer.name = 'Adam'"
    )
    browser.wait("no fault", lambda: not browser.text("#fault"))
    browser.driver.refresh()
    browser.wait("the same", lambda: browser.find("[name=filter]").get_property("value") == "optimizer.name = 'Adam'")
    browser.wait("Adam again", lambda: f"of {answer['total']} attempts" in browser.text("#count"))
    assert "started (UTC)" in browser.text("#attempts thead")
    MlflowClient(server.uri).log_metric(answer["attempts"][0]["run_id"], "by_hand", 0.5)
    browser.find("#read-anew").click()
    browser.wait("read anew", lambda: browser.find("#read-anew").is_enabled() and "of" in browser.text("#count"))
    field = browser.find("[name=filter]")
    field.clear()
    field.send_keys("by_hand = 0.5", Keys.ENTER)
    browser.wait("what was written by hand", lambda: "of 1 attempts" in browser.text("#count"))
    assert not browser.take_errors()


def test_the_keyboard_reaches_everything(browser: Browser, server: Server) -> None:
    show(browser, server, "?task=digits-0")
    browser.wait("attempts", lambda: browser.find_all("#attempts tbody input"))
    browser.press_tab()
    assert browser.read("document.activeElement.className") == "skip"
    assert browser.read("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press(Keys.ENTER)
    assert browser.read("document.activeElement.id") == "main"
    for wanted in ("task", "metric", "filter"):
        browser.press_tab()
        assert browser.read("document.activeElement.name") == wanted
        assert browser.read("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.read("document.querySelector('th[data-column=batch_size] button').focus()")
    browser.press(Keys.ENTER)
    sorted_by = "document.querySelector('th[data-column=batch_size]').getAttribute('aria-sort')"
    browser.wait("the order", lambda: browser.read(sorted_by) == "descending")
    assert browser.read("document.activeElement.closest('th').dataset.column") == "batch_size"
    browser.press(Keys.SPACE)
    browser.wait("the other order", lambda: browser.read(sorted_by) == "ascending")
    browser.read("document.querySelector('#attempts tbody input').focus()")
    browser.press(Keys.SPACE)
    assert browser.text("#compare") == "Curves of the chosen (1)"


def test_ranges_of_parallel_coordinates_are_kept_by_pointer_and_keys(browser: Browser, server: Server) -> None:
    show(browser, server, "params")
    browser.wait("lines", lambda: len(browser.find_all("#parallel polyline")) > 100)
    bars = "document.querySelector('#importance [data-figure]').data?.[0].y.length"
    browser.wait("importance", lambda: browser.read(bars) >= 5)
    take_picture(browser, "params", height=1150)
    browser.read("document.querySelector('#parallel .axis:last-of-type').focus()")
    browser.press(Keys.ARROW_UP, Keys.ARROW_UP)
    assert "attempts lie in the ranges" in browser.wait("a range", lambda: browser.text("#parallel [role=status]"))
    assert browser.find_all("#parallel polyline.out")
    browser.press(Keys.ESCAPE)
    assert not browser.find_all("#parallel polyline.out")
    axis = browser.find("#parallel .axis .grip")
    drag = ActionChains(browser.driver).move_to_element_with_offset(axis, 0, -60).click_and_hold()
    drag.move_by_offset(0, 120).release().perform()
    browser.wait("a range", lambda: browser.find_all("#parallel polyline.out"))


def test_a_line_leads_to_its_attempt(browser: Browser, server: Server) -> None:
    show(browser, server, "params?task=digits-0&metric=train_loss")
    assert Select(browser.find("[name=metric]")).first_selected_option.text == "train_loss"
    browser.wait("lines", lambda: browser.find_all("#parallel polyline"))
    browser.driver.execute_script(
        "document.querySelector('#parallel polyline').dispatchEvent(new MouseEvent('click', { bubbles: true }))"
    )
    name = browser.text("#selected b")
    browser.find("#selected a").click()
    browser.wait("its page", lambda: name and browser.text("h1") == name)


def test_another_choice_is_another_address(browser: Browser, server: Server) -> None:
    show(browser, server, "params?task=digits-0")
    browser.wait("the sections", lambda: browser.find_all("#importance"))
    Select(browser.find("[name=metric]")).select_by_visible_text("duration_s")
    browser.wait("the other metric", lambda: "metric=duration_s" in browser.driver.current_url)
    browser.wait("its sections", lambda: "duration_s" in browser.text("#parallel"))
    assert Select(browser.find("[name=task]")).first_selected_option.text == "digits-0"
    browser.driver.back()
    browser.wait("the first one's", lambda: "accuracy" in browser.text("#parallel"))


def test_the_map_says_why_tasks_are_near(browser: Browser, server: Server) -> None:
    show(browser, server, "tasks?task=digits-0")
    browser.wait("the nearest", lambda: "here" in browser.text("#near"))
    browser.wait("the map", lambda: browser.find_all("#map .points path"))
    take_picture(browser, "tasks", height=1150)
    nearest = browser.text("#near tr a")
    browser.find("#near tr a").click()
    browser.wait("its nearest", lambda: browser.text("#near-title") == f"Nearest to {nearest}")
    browser.driver.back()
    browser.wait("the first one's", lambda: browser.text("#near-title") == "Nearest to digits-0")
    browser.wait("the map", lambda: browser.find_all("#map .points path"))
    wanted = browser.read("document.querySelector('#map [data-figure]').data.at(-1).ids.indexOf('omniglot-Korean')")
    point = browser.find_all("#map .points path")[wanted]
    ActionChains(browser.driver).move_to_element(point).pause(0.3).click().perform()
    browser.wait("the one on the map", lambda: browser.text("#near-title") == "Nearest to omniglot-Korean")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_page_fits_and_takes_no_markup_of_strangers(
    browser: Browser, server: Server, width: int, dark: bool
) -> None:
    browser.look(width=width, dark=dark)
    _, found = server.ask(f"{API}/attempts?filter=model_name%20LIKE%20%27hostile%25%27&columns=run_id")
    ids = [row["run_id"] for row in found["attempts"]]
    assert len(ids) == 4
    task = "task=%3Cimg%20src%3Dx%20onerror%3D%22window.hacked%3D1%22%3E"
    chosen = "&".join(f"run_id={run_id}" for run_id in ids)
    paths = [
        f"?{task}",
        f"curves?{chosen}",
        "params",
        f"tasks?{task}",
        f"next?{task}",
        "queue",
        "new",
        f"attempts/{ids[0]}",
    ]
    for path in paths:
        show(browser, server, path)
        if path.startswith(("curves", "tasks", "params", "attempts")):
            browser.wait("figures", lambda: are_drawn(browser))
        browser.wait("text", lambda: browser.text("h1"))
        assert browser.read("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, path
        assert browser.read("window.hacked") is None, path
        assert browser.read("document.querySelectorAll('main img, main b').length") == 0, path
        background = browser.read("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 20, 22)" if dark else "rgb(246, 246, 244)")
        small = [one for one in browser.take_errors() if "/attempts/" not in path or "artifact" not in one]
        assert small == [], path
    assert len(set(SECTIONS) - {path.partition("?")[0] for path in paths}) == 0


def test_nothing_moves_when_figures_and_tables_come(browser: Browser, server: Server) -> None:
    observer = (
        "window.moved = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries())"
        " if (!entry.hadRecentInput) window.moved += entry.value; }).observe({ type: 'layout-shift', buffered: true });"
    )
    chosen = "&".join(f"run_id={run_id}" for run_id in best(server, "digits-0", 3))
    for path in ("?task=digits-0", f"curves?{chosen}", "params", "tasks?task=digits-0", "next?task=digits-0", "queue"):
        show(browser, server, path)
        browser.driver.execute_script(observer)
        browser.wait("the figures", lambda: not browser.find_all(".figure") or are_drawn(browser))
        # Google's measure of layout shifts; up to 0.1 counts as good.
        assert browser.read("window.moved") < 0.1, path
