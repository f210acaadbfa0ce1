"""Whose weights a training could start from: which fit, in which order, and what is left out or refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from weight_attempts import draw_stripes, find_run_id, make_commands, make_past_store

from mlmeta.errors import BadInputError
from mlmeta.history.loading import load_attempts
from mlmeta.models.weights import hash_file, save_weights
from mlmeta.training.preparation import Prepared, prepare_training
from mlmeta.training.transferability import find_head
from mlmeta.training.weight_sources import Fit, Source, find_named_source, find_sources


@pytest.fixture(scope="module")
def past(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_past_store(tmp_path_factory.mktemp("past"), store_template)


@pytest.fixture
def history(past: Path, store: str) -> str:
    """A fresh copy of that store, in use."""
    shutil.copy(past, store.removeprefix("sqlite:///"))
    return store


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes under other names: a task like that of the store's stripes."""
    return draw_stripes(tmp_path_factory.mktemp("new") / "bands", prefix="band ", seed=5)


def prepare(pictures: Path, **changes: Any) -> tuple[Prepared, Fit]:
    prepared = prepare_training(make_commands("new", pictures, **changes), base_dir=Path())
    task = prepared.task
    builder = str(prepared.commands.model.get("name") or "")
    return prepared, Fit(
        prepared.model, find_head(prepared.model, task.input_shape), builder, task.pictures.label_names
    )


def find(pictures: Path, table: pd.DataFrame | None = None, **changes: Any) -> list[Source]:
    prepared, fit = prepare(pictures, **changes)
    return find_sources(prepared.task, fit, load_attempts() if table is None else table)


def weights_file(name: str) -> Path:
    from mlflow import MlflowClient

    return Path(MlflowClient().download_artifacts(find_run_id(name), f"models/{name}.pt"))


def copy_attempt(name: str, **metrics: float) -> str:
    """Add a run with the params and files of an attempt, and metrics of its own; return its id."""
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(find_run_id(name))
    with mlflow.start_run(run_name=name) as copy:
        mlflow.log_params(run.data.params)
        mlflow.log_metrics({**run.data.metrics, **metrics})
        mlflow.set_tags({key: value for key, value in run.data.tags.items() if key.startswith("mlmeta")})
        mlflow.log_artifacts(client.download_artifacts(run.info.run_id, ""))
    return str(copy.info.run_id)


def replace_weights(run_id: str, name: str, file: Path, *, tell: bool) -> None:
    """Put a file in place of an attempt's weights; where told, its SHA-256 is the recorded one."""
    from mlflow import MlflowClient

    client = MlflowClient()
    target = file.with_name(f"{name}.pt")
    if file != target:
        file.replace(target)
    client.log_artifact(run_id, str(target), "models")
    if tell:
        client.set_tag(run_id, "mlmeta.weights_sha256", hash_file(target))


class TestFinding:
    def test_the_nearest_task_and_the_best_come_before_others_and_other_shapes_are_left_out(
        self, history: str, pictures: Path
    ) -> None:
        sources = find(pictures)
        assert {source.name for source in sources} == {"stripes", "hues"}
        near, far = sorted(sources, key=lambda source: source.distance)
        assert (near.name, near.task, far.name) == ("stripes", "stripes", "hues")
        assert 0 <= near.distance < far.distance <= 1
        assert near.overlap == 1.0

    def test_first_comes_the_best_of_all_then_the_best_of_each_task_by_distance(
        self, history: str, pictures: Path
    ) -> None:
        """Among three on hues the best ranks higher than the best of two on stripes, by normal quantiles."""
        lower = [copy_attempt("hues", val_accuracy=0.3), copy_attempt("hues", val_accuracy=0.2)]
        second = copy_attempt("stripes", val_accuracy=0.3)
        hues, stripes = find_run_id("hues", without=lower), find_run_id("stripes", without=[second])
        assert [source.run_id for source in find(pictures)] == [hues, stripes, second, *lower]

    def test_at_most_five_are_given(self, history: str, pictures: Path) -> None:
        for _ in range(6):
            copy_attempt("stripes")
        assert len(find(pictures)) == 5

    def test_an_attempt_on_the_very_task_has_no_distance(self, history: str, past: Path) -> None:
        own = next(source for source in find(past.parent / "stripes") if source.name == "stripes")
        assert own.distance == 0.0

    def test_a_store_without_attempts_gives_none(self, store: str, pictures: Path) -> None:
        assert find(pictures) == []

    def test_a_table_without_the_needed_columns_gives_none(self, history: str, pictures: Path) -> None:
        assert find(pictures, load_attempts().drop(columns="tags.mlmeta.weights_sha256")) == []

    @pytest.mark.parametrize("status", ["Diverged", "Failed", "Training", "Interrupted"])
    def test_attempts_that_did_not_end_well_are_left_out(self, history: str, pictures: Path, status: str) -> None:
        table = load_attempts()
        assert find(pictures, table.assign(status=status)) == []

    def test_a_model_with_other_weights_finds_none(self, history: str, pictures: Path) -> None:
        layers = [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": 7}, {"name": "ReLU"},
                  {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]  # fmt: skip
        assert find(pictures, model={"layers": layers}) == []


class TestOverlap:
    def test_other_labels_leave_the_head_out_and_equal_labels_take_it(
        self, history: str, past: Path, pictures: Path
    ) -> None:
        other = next(source for source in find(pictures) if source.name == "stripes")
        same = next(source for source in find(past.parent / "stripes") if source.name == "stripes")
        assert set(same.weights) - set(other.weights) == {"7.weight", "7.bias"}
        assert other.overlap == same.overlap == 1.0

    def test_labels_in_another_order_leave_the_head_out(self, pictures: Path) -> None:
        _, fit = prepare(pictures)
        state, labels = fit.model.state_dict(), list(fit.label_names)
        assert "7.weight" in fit.measure(state, labels)[0]
        assert "7.weight" not in fit.measure(state, labels[::-1])[0]
        assert "7.weight" not in fit.measure(state, "no list of labels")[0]

    def test_the_share_is_that_of_numbers_of_equal_name_shape_and_kind(self, pictures: Path) -> None:
        _, fit = prepare(pictures)
        state = dict(fit.model.state_dict())
        numbers = {key: value.numel() for key, value in state.items() if not key.startswith("7.")}
        state["3.weight"] = state["3.weight"][:5]
        state["1.weight"] = state["1.weight"].long()
        state["8.weight"] = torch.zeros(99)
        del state["0.bias"]
        weights, overlap = fit.measure(state, None)
        left = numbers.keys() - {"3.weight", "1.weight", "0.bias"}
        assert weights.keys() == left
        assert overlap == pytest.approx(sum(numbers[key] for key in left) / sum(numbers.values()))

    def test_half_of_the_weights_are_needed(self, history: str, pictures: Path) -> None:
        """The second convolution has most of the numbers: one that is wider leaves too few in common."""
        prepared, _ = prepare(pictures)
        layers = [dict(layer) for layer in prepared.commands.model["layers"]]
        layers[3]["out_channels"] = 13
        _, fit = prepare(pictures, model={"layers": layers})
        with pytest.raises(BadInputError, match=r"has \d+% of the model's weights below the head.*half are needed"):
            find_named_source("stripes", fit)
        assert find(pictures, model={"layers": layers}) == []


class TestNaming:
    def test_a_name_and_a_run_id_give_the_same(self, history: str, pictures: Path) -> None:
        _, fit = prepare(pictures)
        by_name, by_id = (find_named_source(text, fit) for text in ("stripes", find_run_id("stripes")))
        assert by_name.run_id == by_id.run_id == find_run_id("stripes")
        assert math.isnan(by_name.distance)

    def test_an_unknown_name_is_refused_with_the_nearest(self, history: str, pictures: Path) -> None:
        message = "^initial_weights: there is no attempt named 'strips'. Did you mean 'stripes'?"
        with pytest.raises(BadInputError, match=message) as caught:
            find_named_source("strips", prepare(pictures)[1])
        assert caught.value.exit_code == 2

    def test_an_unknown_run_id_is_refused(self, history: str, pictures: Path) -> None:
        with pytest.raises(BadInputError, match=r"^initial_weights: the tracking store has no run '0000"):
            find_named_source("0" * 32, prepare(pictures)[1])

    def test_another_programs_run_is_refused(self, history: str, pictures: Path) -> None:
        import mlflow

        with mlflow.start_run() as run:
            mlflow.log_param("lr", 1)
        with pytest.raises(BadInputError, match="is no attempt of mlmeta"):
            find_named_source(run.info.run_id, prepare(pictures)[1])


class Hostile:
    """Pickles as a call, which a careless reader would make."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('called', 'w').close()",)


def write_hostile(file: Path) -> None:
    torch.save({"0.weight": Hostile()}, file)


def write_damaged(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 and nothing more")


def write_not_finite(file: Path) -> None:
    state = dict(torch.load(weights_file("stripes"), weights_only=True))
    state["3.weight"] = torch.full_like(state["3.weight"], math.nan)
    save_weights(state, file.parent, file.stem)


def write_too_large(file: Path) -> None:
    """Numbers that are finite where they stand, and would not be in the model."""
    state = dict(torch.load(weights_file("stripes"), weights_only=True))
    state["3.weight"] = torch.full_like(state["3.weight"], 1e300, dtype=torch.float64)
    save_weights(state, file.parent, file.stem)


def write_other_shapes(file: Path) -> None:
    save_weights({"0.weight": torch.zeros(3, 3), "9.weight": torch.zeros(2)}, file.parent, file.stem)


BAD_FILES = [
    (write_hostile, "asks for .*exec"),
    (write_damaged, "is not a state dict"),
    (write_not_finite, "3.weight that are not finite"),
    (write_too_large, "3.weight that are not finite"),
    (write_other_shapes, "0% of the model's weights"),
]


@pytest.mark.parametrize(("write", "message"), BAD_FILES)
def test_a_bad_file_is_refused_by_name_and_left_out_with_a_line_otherwise(
    history: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Any, message: str
) -> None:
    """Though its SHA-256 agrees: whoever can write into the store can write that too."""
    run_id = copy_attempt("stripes")
    (tmp_path / "bad").mkdir()
    write(tmp_path / "bad" / "stripes.pt")
    replace_weights(run_id, "stripes", tmp_path / "bad" / "stripes.pt", tell=True)
    with pytest.raises(BadInputError, match=f"^initial_weights: .*{message}"):
        find_named_source(run_id, prepare(pictures)[1])
    sources = find(pictures)
    lines = [line for line in capsys.readouterr().err.splitlines() if "is left out" in line]
    assert len(lines) == 1
    assert lines[0].startswith("mlmeta: initial weights: stripes is left out: ")
    assert {source.name for source in sources} == {"stripes", "hues"}
    assert run_id not in {source.run_id for source in sources}
    assert not Path("called").exists()


def test_a_file_that_is_not_the_recorded_one_is_refused(
    history: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = copy_attempt("hues")
    replace_weights(run_id, "hues", Path(shutil.copy(weights_file("stripes"), tmp_path / "other.pt")), tell=False)
    with pytest.raises(BadInputError, match=r"initial_weights: hues.pt: its SHA-256 is .* recorded .*; refused"):
        find_named_source(run_id, prepare(pictures)[1])
    assert run_id not in {source.run_id for source in find(pictures)}
    assert "hues is left out: hues.pt: its SHA-256" in capsys.readouterr().err


def test_a_file_that_is_gone_is_left_out_or_refused(
    history: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    run_id = copy_attempt("stripes")
    (Path(MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://")) / "models" / "stripes.pt").unlink()
    with pytest.raises(
        BadInputError, match=r"initial_weights: the attempt stripes .* has no artifact models/stripes.pt"
    ):
        find_named_source(run_id, prepare(pictures)[1])
    assert {source.name for source in find(pictures)} == {"stripes", "hues"}
    assert f"stripes is left out: the attempt stripes ({run_id}) has no artifact" in capsys.readouterr().err


def test_an_attempt_whose_labels_are_not_recorded_is_left_out(
    history: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    run_id = copy_attempt("stripes")
    MlflowClient().log_text(run_id, "no JSON", "label_names.json")
    with pytest.raises(BadInputError, match="is not recorded as mlmeta does"):
        find_named_source(run_id, prepare(pictures)[1])
    assert run_id not in {source.run_id for source in find(pictures)}
    assert "stripes is left out" in capsys.readouterr().err
