"""What a log shows of an import, and the counts in words."""

from __future__ import annotations

import pytest

from mlmeta.exchange.cli import ImportBar, describe_result
from mlmeta.exchange.importing import ImportResult


def test_counts_that_are_zero_are_left_out_but_for_the_first() -> None:
    assert describe_result(ImportResult()) == "0 imported"
    assert (
        describe_result(ImportResult(n_new=1200, n_known=3, n_faults=1))
        == "1,200 imported, 3 known already, 1 left out"
    )
    assert describe_result(ImportResult(n_new=2), would_be=True) == "2 would be imported"


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(0, 100_000, 3))
    monkeypatch.setattr("mlmeta.exchange.cli.time.monotonic", lambda: float(next(moments)))
    with ImportBar() as bar:
        for number in range(1000):
            bar.advance(number / 1000, ImportResult(n_new=number))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mlmeta: 10% read, 100 imported"
    assert len(lines) == 9


def test_a_quick_import_says_nothing_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    with ImportBar() as bar:
        for number in range(10):
            bar.advance(number / 10, ImportResult(n_new=number))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with ImportBar() as bar:
        bar.advance(0.5, ImportResult(n_new=7, n_faults=1))
    shown = capsys.readouterr().err
    assert "50%" in shown
    assert "7 imported, 1 left out" in shown
