"""The README and docs/: every snippet runs or is checked, every link leads somewhere, every command exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attempt_table import read_documents
from click.testing import CliRunner, Result

from mlmeta.cli import cli
from mlmeta.commands.parsing import load_train_commands, parse_test_commands, parse_train_commands
from mlmeta.exchange.importing import import_attempts

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
# What a fragment of commands (jsonc) is put into, to be checked.
WHOLE = json.loads((ROOT / "dogs.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Snippet:
    """A block of code: ``language`` as its fence says, and a file's name that may follow there."""

    page: Path
    line: int
    language: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w+) ?(\S*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, found.start()) + 1
        yield Snippet(page, line, found[2], found[3], found[4])


SNIPPETS = [snippet for page in PAGES for snippet in read_snippets(page)]


def of_language(*languages: str) -> list[Snippet]:
    return [snippet for snippet in SNIPPETS if snippet.language in languages]


def find_snippet(page: str, language: str) -> Snippet:
    return next(one for one in of_language(language) if one.page.name == page)


def test_every_snippet_is_of_a_language_that_is_looked_at_here() -> None:
    known = {"sh", "console", "text", "json", "jsonc", "python", "csv", "mermaid"}
    assert {snippet.language for snippet in SNIPPETS} == known


@pytest.mark.parametrize("snippet", of_language("json"), ids=str)
def test_a_whole_commands_file_is_valid(snippet: Snippet) -> None:
    document = json.loads(snippet.text)
    parse = parse_train_commands if "model" in document else parse_test_commands
    assert parse(document).model_name


@pytest.mark.parametrize("snippet", of_language("jsonc"), ids=str)
def test_a_part_of_a_commands_file_is_valid(snippet: Snippet) -> None:
    parse_train_commands(WHOLE | json.loads(f"{{{snippet.text}}}"))


# Commands.


def read_commands(snippet: Snippet) -> Iterator[list[str]]:
    """Yield the words of each command line of a snippet; in a shell session, those after the prompt."""
    for line in snippet.text.splitlines():
        if snippet.language == "sh" or line.startswith("$ "):
            for command in line.removeprefix("$ ").split(" && "):
                yield shlex.split(re.sub(r" > [\w.]+$", "", command))


COMMANDS = [(snippet, words) for snippet in SNIPPETS for words in read_commands(snippet)]


def show_words(value: Any) -> str:
    return f"{value} " if isinstance(value, Snippet) else " ".join(value)


@pytest.mark.parametrize(("snippet", "words"), [pair for pair in COMMANDS if pair[1][0] == "mlmeta"], ids=show_words)
def test_a_command_and_its_options_exist(snippet: Snippet, words: list[str]) -> None:
    name, *arguments = words[1:]
    cli.commands[name].make_context(f"mlmeta {name}", arguments)


def test_only_programs_that_a_reader_has_are_called() -> None:
    known = {"mlmeta", "mlflow", "python", "pip", "curl", "mkdir", "cd", "."}
    assert {words[0] for _, words in COMMANDS} <= known


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_explains_itself_and_stands_in_the_documentation(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"], prog_name="mlmeta")
    assert done.exit_code == 0
    assert f"Usage: mlmeta {command}" in done.output
    assert "\\" not in done.output
    hand_written = (DOCS / "command_line.md").read_text(encoding="utf-8").partition("## All options")[0]
    assert f"`mlmeta {command}" in hand_written


# Links and pictures.


def read_links(page: Path) -> Iterator[str]:
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def list_anchors(page: Path) -> set[str]:
    """Return what headings can be linked by, as GitHub names them."""
    text = re.sub(r"^( *)```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


LINKS = [(page, link) for page in [*PAGES, ROOT / "benchmarks" / "README.md"] for link in read_links(page)]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_a_link_leads_somewhere(page: Path, link: str) -> None:
    if link.startswith("https://"):
        return
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    assert target.is_relative_to(ROOT)
    assert not anchor or anchor in list_anchors(target)


def test_every_page_and_picture_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page, link in LINKS}
    assert [file.name for file in sorted(DOCS.iterdir()) if file.resolve() not in linked] == []


def test_the_readme_can_be_read_in_two_minutes() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    ("file", "name"),
    re.findall(r"\| `(mlmeta/[\w/.]+)` \| `(\w+)` \|$", (DOCS / "architecture.md").read_text(), re.MULTILINE),
)
def test_what_the_architecture_names_is_there(file: str, name: str) -> None:
    assert re.search(rf"\b(def|class|function) {name}\b", (ROOT / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:mlmeta|scripts|tests)/[\w/.]*)`", (DOCS / "architecture.md").read_text())))
)
def test_a_file_that_the_architecture_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def read_picture() -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return the picture of the packages: of each room its box, and of each box where its arrows lead, at last."""
    text = find_snippet("architecture.md", "mermaid").text
    boxes = {
        re.sub(r"/|\.py", "", room): box
        for box, label in re.findall(r'^ +(\w+)\["(.+?)<br>', text, re.MULTILINE)
        for room in label.split(", ")
    }
    arrows: dict[str, set[str]] = {box: set() for box in boxes.values()}
    for line in text.splitlines():
        way = line.split(" --> ")
        for start, end in pairwise(way):
            arrows[start.strip()].add(end.strip())
    for _ in arrows:
        arrows = {box: ends.union(*(arrows[end] for end in ends)) for box, ends in arrows.items()}
    return boxes, arrows


def list_imports(file: Path) -> Iterator[str]:
    """Yield the rooms of mlmeta that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [f"{node.module}.{name.name}" for name in node.names] if isinstance(node, ast.ImportFrom) else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("mlmeta."))


def test_the_picture_of_the_packages_shows_what_they_import() -> None:
    boxes, arrows = read_picture()
    assert not [box for box, ends in arrows.items() if box in ends]
    for file in (ROOT / "mlmeta").rglob("*.py"):
        room = file.relative_to(ROOT / "mlmeta").parts[0].removesuffix(".py")
        others = set(list_imports(file)) - {room, "__version__"} if not room.startswith("__") else set()
        assert {name for name in others if boxes[name] not in arrows[boxes[room]] | {boxes[room]}} == set(), file


def test_the_architecture_names_every_package() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = [file.parent for file in (ROOT / "mlmeta").glob("*/__init__.py")]
    rooms += [file for file in (ROOT / "mlmeta").glob("*.py") if not file.name.startswith("__")]
    assert [str(room.relative_to(ROOT)) for room in rooms if f"`{room.relative_to(ROOT)}" not in text] == []


# What can be run is run.


def test_the_made_parts_are_as_the_code_says() -> None:
    done = subprocess.run([sys.executable, "scripts/make_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def run_session(snippet: Snippet) -> None:
    """Run a shell session in the working folder, and compare what it prints.

    A line of nothing but … stands for any lines, and … at the end of a line for the rest of it.
    """
    for session in re.split(r"^\$ ", snippet.text, flags=re.MULTILINE)[1:]:
        command, *shown = session.splitlines()
        done = run_mlmeta(shlex.split(command))
        # Where all went well, the error stream has what is on its way.
        printed = done.output if done.exit_code else done.stdout
        assert re.fullmatch("".join(map(make_pattern, shown)), printed), f"{snippet}: {command}\n{printed}"


def make_pattern(line: str) -> str:
    if line == "…":
        return r"(.*\n)*?"
    return re.escape(line) + r"\n" if not line.endswith("…") else re.escape(line.rstrip(" …")) + r".*\n"


def run_mlmeta(words: list[str]) -> Result:
    return CliRunner().invoke(cli, words[1:], prog_name=words[0])


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_sessions_with_all_attempts_print_what_is_shown(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    # The README's come last: its page leads over from the import, which is here already.
    sessions = [one for one in of_language("console") if one.page.name in ("ask_history.md", "README.md")]
    for snippet in sorted(sessions, key=lambda one: one.page.name == "README.md"):
        run_session(snippet)


@pytest.mark.usefixtures("store")
def test_the_faults_of_a_file_are_those_that_come(tmp_path: Path) -> None:
    document = {"model_name": "x", "optimizer": {"name": "Adam", "lr": -0.1}, "model": {"layers": [{"name": "Conv2D"}]}}
    (tmp_path / "typo.json").write_text(json.dumps(document), encoding="utf-8")
    run_session(find_snippet("describe_training.md", "console"))


@pytest.mark.usefixtures("store")
def test_the_python_of_its_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ("digits-0", "digits-1")
    chosen = [one for one in read_documents() if one["config_id"] < 20 and one["task"]["name"] in tasks]
    (tmp_path / "some.jsonl").write_text("\n".join(json.dumps(one) for one in chosen), encoding="utf-8")
    import_attempts([tmp_path / "some.jsonl"])
    monkeypatch.chdir(ROOT)
    scope: dict[str, Any] = {}
    for snippet in of_language("python"):
        if snippet.page.name == "python.md":
            exec(compile(snippet.text, str(snippet), "exec"), scope)
    assert scope["metrics"]["accuracy"] > 0.97
    assert len(scope["attempts"]) >= 40
    assert scope["best"]["accuracy"].min() > 0.9
    assert set(scope["curves"]["task"]) == {"digits-0"}
    assert scope["matters"]["param"][0] in ("optimizer.lr", "arch.batch_norm")
    assert scope["recommendation"].reason


# Makes the tutorial shorter where it is tested.
SHORTER = {'"n_epoch": 15': '"n_epoch": 2', "15 epochs": "2 epochs", "--attempts 10": "--attempts 2", "> .8": ">= 0"}


def shorten(snippet: Snippet) -> Snippet:
    text = snippet.text
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return replace(snippet, text=text)


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_the_tutorial_leads_from_pictures_to_a_tuned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my_dogs"
    folder.mkdir()
    shutil.copy(ROOT / "dogs.json", tmp_path)
    monkeypatch.chdir(folder)
    for snippet in (shorten(one) for one in SNIPPETS if one.page.name == "tutorial.md"):
        if snippet.language == "python":
            exec(compile(snippet.text, str(snippet), "exec"), {})
        elif snippet.file:
            (folder / snippet.file).write_text(snippet.text, encoding="utf-8")
        elif snippet.language == "console":
            run_session(snippet)
        elif snippet.language == "sh":
            for words in read_commands(snippet):
                assert words[0] != "mlmeta" or run_mlmeta(words).exit_code == 0, words
    assert load_train_commands(folder / "best.json")
    assert sorted(file.name for file in (folder / "next").iterdir()) == [f"first-{n}.json" for n in (1, 2, 3)]
    assert (folder / "mlmeta_report.html").is_file()
