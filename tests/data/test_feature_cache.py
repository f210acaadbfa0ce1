"""Meta-features are computed once a task, and a damaged file is as good as none."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlmeta.data.metafeatures
from mlmeta.data.metafeatures import META_FEATURES, feature_folder, remember_features


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path))
    return []


def remember(calls: list[int], described: object, value: float = 1.0) -> dict[str, float]:
    def compute() -> dict[str, float]:
        calls.append(1)
        return dict.fromkeys(META_FEATURES, value)

    return remember_features(described, compute)


def test_the_same_task_is_described_once(calls: list[int]) -> None:
    first = remember(calls, ["a", 1])
    assert remember(calls, ["a", 1], value=2.0) == first
    assert len(calls) == 1
    remember(calls, ["a", 2])
    remember(calls, ["b", 1])
    assert len(calls) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"ln_n": 1.0}', "null"])
def test_a_damaged_file_is_made_again(calls: list[int], text: str) -> None:
    remember(calls, "task")
    (file,) = feature_folder().glob("*.json")
    file.write_text(text, encoding="utf-8")
    assert remember(calls, "task", value=3.0)["ln_n"] == 3.0
    assert remember(calls, "task")["ln_n"] == 3.0
    assert len(calls) == 2


def test_no_folder_costs_nothing_but_time(calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "file"))
    assert remember(calls, "task") == remember(calls, "task")
    assert len(calls) == 2


def test_of_too_many_the_oldest_go(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlmeta.data.metafeatures, "MOST_TASKS", 3)
    for task in range(6):
        remember(calls, task)
    assert len(list(feature_folder().iterdir())) == 3
