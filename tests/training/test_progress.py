"""How far a training is: on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from mlmeta.console import ProgressBar
from mlmeta.training.progress import EpochProgress

EPOCH = {"train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.9, "epoch_seconds": 1.5}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    with EpochProgress("[red]digits", 15) as progress:
        progress.epoch(3, EPOCH)
    line = "[red]digits: epoch 3/15  train_loss 0.5000  val_loss 0.2500  val_accuracy 90.0%  1.5 s\n"
    assert capsys.readouterr().err == line


def test_a_terminal_gets_a_bar_with_the_figures_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := _Terminal())
    with EpochProgress("[red]digits", 15) as progress:
        progress.epoch(3, EPOCH)
    shown = terminal.getvalue()
    assert all(words in shown for words in ("[red]digits", " 3/15", "val_accuracy 90.0%"))


def test_a_bar_in_percent_says_nothing_in_a_log_without_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("importing", 1.0, in_percent=True) as bar:
        bar.update(0.4, "40 imported")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr", terminal := _Terminal())
    with ProgressBar("importing", 1.0, in_percent=True) as bar:
        bar.update(0.4, "40 imported")
    assert all(words in terminal.getvalue() for words in ("40%", "40 imported"))
