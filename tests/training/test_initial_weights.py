"""Initial weights: how they are blended, when they are used, and that a race costs an attempt nothing but time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import MemoryRecorder
from torch import Tensor, nn
from weight_attempts import draw_stripes, find_run_id, make_commands, make_past_store, read_params

from mlmeta.cli import cli
from mlmeta.train import resume_attempt, run_attempt
from mlmeta.training.initial_weights import (
    compare_epochs,
    look_up_start,
    race_against_scratch,
    shrink_and_perturb,
    start_training,
)
from mlmeta.training.loop import Trained, train_attempt
from mlmeta.training.preparation import Prepared, prepare_training


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


def prepare(pictures: Path, **changes: Any) -> Prepared:
    return prepare_training(make_commands("new", pictures, **changes), base_dir=Path())


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def drop_seconds(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("epoch_seconds", "pictures_per_second")
    return [{key: value for key, value in metrics.items() if key not in timed} for metrics in curve]


def are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class TestBlending:
    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))

    @pytest.mark.parametrize("kept", [0.0, 0.25, 0.6, 1.0])
    def test_parameters_are_mixed_by_the_formula_and_statistics_are_taken_over(self, kept: float) -> None:
        model, source = self.make_model(), self.make_model()
        source(torch.randn(8, 1, 3, 3))  # moves the running statistics
        theirs = {key: value.numpy() for key, value in source.state_dict().items() if not key.startswith("3.")}
        ours = {key: value.numpy().copy() for key, value in model.state_dict().items()}
        blended = shrink_and_perturb(model, {key: source.state_dict()[key] for key in theirs}, kept=kept)
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            np.testing.assert_allclose(
                blended[name], kept * theirs[name] + (1 - kept) * ours[name], rtol=1e-6, atol=1e-7
            )
        for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            np.testing.assert_array_equal(blended[name], theirs[name])
        for name in ("3.weight", "3.bias"):
            np.testing.assert_array_equal(blended[name], ours[name])

    def test_the_model_and_the_source_are_left_as_they_are(self) -> None:
        model, source = self.make_model(), self.make_model()
        before, theirs = copy_state(model), copy_state(source)
        blended = shrink_and_perturb(model, source.state_dict())
        for value in blended.values():
            value.zero_()
        assert are_equal(model.state_dict(), before)
        assert are_equal(source.state_dict(), theirs)

    def test_numbers_of_another_width_become_the_models(self) -> None:
        model = self.make_model()
        wide = {
            key: value.double() if value.is_floating_point() else value for key, value in model.state_dict().items()
        }
        blended = shrink_and_perturb(model, wide)
        assert all(blended[key].dtype == value.dtype for key, value in model.state_dict().items())


def epoch(train_loss: float, *validation: float) -> dict[str, float]:
    """Return the metrics of an epoch; `validation` is nothing, or loss and accuracy."""
    return {"train_loss": train_loss, **dict(zip(("val_loss", "val_accuracy"), validation, strict=False))}


class TestComparing:
    @pytest.mark.parametrize(
        ("scratch", "warm", "measure", "won"),
        [
            (epoch(1, 1, 0.5), epoch(2, 2, 0.6), "val_accuracy", True),
            (epoch(2, 2, 0.6), epoch(1, 1, 0.5), "val_accuracy", False),
            (epoch(1, 1, 0.5), epoch(2, 0.9, 0.5), "val_loss", True),
            (epoch(2, 1, 0.5), epoch(1, 1, 0.5), "val_loss", False),
            (epoch(1), epoch(0.9), "train_loss", True),
            (epoch(1), epoch(1.1), "train_loss", False),
            (epoch(math.nan), epoch(5, 2, 0.1), "train_loss", True),
            (epoch(5, 2, 0.1), epoch(math.inf), "train_loss", False),
            (epoch(1, 1, 0.1), epoch(1, math.nan, 0.9), "val_accuracy", False),
            (epoch(math.nan), epoch(math.nan), "train_loss", False),
        ],
    )
    def test_the_better_epoch_wins(
        self, scratch: dict[str, float], warm: dict[str, float], measure: str, won: bool
    ) -> None:
        race = compare_epochs(scratch, warm)
        assert (race["measure"], race["won"]) == (measure, won)
        json.dumps(race, allow_nan=False)

    def test_by_is_how_much_better_the_warm_epoch_was(self) -> None:
        better = epoch(1.0, 1.0, 0.75)
        worse = epoch(2.0, 1.5, 0.5)
        assert compare_epochs(worse, better)["by"] == 0.25
        assert compare_epochs(better, worse)["by"] == -0.25
        equal = {**better, "val_loss": 1.5}
        assert compare_epochs(equal, better) | {"by": 0.5} == compare_epochs(equal, better)


class TestRacing:
    @pytest.mark.parametrize("optimizer", [{"name": "Adam", "lr": 0.01}, {"name": "SGD", "lr": 0.05, "momentum": 0.9}])
    def test_a_race_that_scratch_wins_goes_on_as_a_training_without_one(
        self, pictures: Path, optimizer: dict[str, Any]
    ) -> None:
        """Weights, momenta, random numbers, scheduler: all as if there had been no race; drop-out and crops draw."""
        transform = [{"RandomCrop": {"size": 8, "padding": 1}}, "ToTensor"]
        layers = make_commands("new", pictures).model["layers"]
        layers = [*layers[:-1], {"name": "Dropout", "p": 0.3}, layers[-1]]
        changes = {
            "optimizer": optimizer, "transform": transform, "model": {"layers": layers},
            "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 0.5},
        }  # fmt: skip
        plain = train_attempt(prepare(pictures, **changes), MemoryRecorder())
        prepared, trained = prepare(pictures, **changes), Trained()
        spoilt = {key: 100 * value for key, value in prepared.model.state_dict().items()}
        race = race_against_scratch(prepared, trained, spoilt)
        assert not race["won"]
        assert len(trained.curve) == 1
        train_attempt(prepared, MemoryRecorder(), trained=trained)
        assert drop_seconds(trained.curve) == drop_seconds(plain.curve)
        assert trained.kept_epoch == plain.kept_epoch
        assert are_equal(trained.state, plain.state)

    def test_a_race_that_is_won_goes_on_as_a_training_that_began_there(self, pictures: Path) -> None:
        teacher = prepare(pictures, n_epoch=8)
        train_attempt(teacher, MemoryRecorder())
        warm = copy_state(teacher.model)
        begun = prepare(pictures)
        begun.model.load_state_dict(warm)
        plain = train_attempt(begun, MemoryRecorder())
        prepared, trained = prepare(pictures), Trained()
        race = race_against_scratch(prepared, trained, warm)
        assert race["won"]
        assert race["warm"] == pytest.approx(trained.curve[0][race["measure"]], abs=1e-6)
        train_attempt(prepared, MemoryRecorder(), trained=trained)
        assert drop_seconds(trained.curve) == drop_seconds(plain.curve)
        assert are_equal(trained.state, plain.state)

    def test_warm_weights_that_diverge_lose(self, pictures: Path) -> None:
        prepared, trained = prepare(pictures), Trained()
        warm = {key: torch.full_like(value, 1e30) if value.is_floating_point() else value
                for key, value in prepared.model.state_dict().items()}  # fmt: skip
        assert not race_against_scratch(prepared, trained, warm)["won"]
        assert all(math.isfinite(value) for value in trained.curve[0].values())

    def test_where_both_diverge_no_epoch_is_kept(self, pictures: Path) -> None:
        prepared, trained = prepare(pictures, optimizer={"name": "SGD", "lr": 1e30}), Trained()
        drawn = copy_state(prepared.model)
        race = race_against_scratch(prepared, trained, copy_state(prepared.model))
        assert not race["won"]
        assert trained.curve == []
        assert are_equal(prepared.model.state_dict(), drawn)


class TestStarting:
    def test_nothing_is_looked_for_unless_commanded(self, store: str, pictures: Path) -> None:
        assert look_up_start(prepare(pictures)) is None

    def test_an_empty_store_means_from_scratch(
        self, store: str, pictures: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepared, trained = prepare(pictures, initial_weights="auto"), Trained()
        drawn = copy_state(prepared.model)
        start = look_up_start(prepared)
        assert start is not None
        start_training(prepared, trained, start)
        assert are_equal(prepared.model.state_dict(), drawn)
        assert trained.initial_weights["source"] == "scratch"
        reason = "from scratch: no earlier attempt has weights that fit this model"
        assert trained.initial_weights["reason"] == reason
        assert f"mlmeta: initial weights: {reason}\n" in capsys.readouterr().err

    def test_an_attempt_from_scratch_after_the_guard_is_the_same_as_without(
        self, history: str, past: Path, pictures: Path
    ) -> None:
        """The stripes are gone, what is left are hues, which say nothing of stripes."""
        from mlmeta.tracking.store import open_client

        open_client().delete_run(find_run_id("stripes"))
        _, plain, _ = run_attempt(make_commands("plain", pictures), base_dir=Path(), test=False)
        open_client().delete_run(find_run_id("plain"))
        run_id, trained, _ = run_attempt(
            make_commands("new", pictures, initial_weights="auto"), base_dir=Path(), test=False
        )
        params = read_params(run_id)
        (candidate,) = json.loads(params["candidates"])
        assert candidate["name"] == "hues"
        assert candidate["score"] - float(params["untrained"]) < 0.1
        assert params["source"] == "scratch"
        assert "race" not in params
        assert params["reason"].startswith("from scratch: hues scores 0.")
        assert are_equal(trained.state, plain.state)

    def test_weights_that_carry_over_are_found_raced_and_recorded(
        self, history: str, pictures: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stripes = find_run_id("stripes")
        _, scratch, _ = run_attempt(make_commands("plain", pictures), base_dir=Path(), test=False)
        from mlmeta.tracking.store import open_client

        open_client().delete_run(find_run_id("plain"))
        run_id, trained, _ = run_attempt(make_commands("new", pictures, initial_weights="auto"), base_dir=Path())
        params = read_params(run_id)
        assert params["source"] == stripes
        assert params["name"] == "stripes"
        candidates = {one["name"]: one for one in json.loads(params["candidates"])}
        assert candidates.keys() == {"stripes", "hues"}
        assert candidates["stripes"]["score"] == float(params["transferability"]) > candidates["hues"]["score"]
        assert candidates["stripes"]["run_id"] == stripes
        assert float(params["overlap"]) == candidates["stripes"]["overlap"] == 1.0
        race = json.loads(params["race"])
        assert race["won"]
        assert (
            race["by"] == pytest.approx(race["warm"] - race["scratch"], abs=1e-6) or race["measure"] != "val_accuracy"
        )
        assert race["scratch"] == pytest.approx(scratch.curve[0][race["measure"]], abs=1e-6)
        assert race["warm"] == pytest.approx(trained.curve[0][race["measure"]], abs=1e-6)
        assert trained.curve[0]["train_loss"] < scratch.curve[0]["train_loss"]
        shown = capsys.readouterr().err
        assert f"mlmeta: initial weights: {params['reason']}\n" in shown
        assert [f"new: epoch {n}/3" in shown for n in (1, 2, 3)] == [True, True, True]

    def test_every_epoch_is_recorded_once_also_the_one_that_won(self, history: str, pictures: Path) -> None:
        from mlflow import MlflowClient

        commands = make_commands("new", pictures, initial_weights="auto")
        run_id, trained, _ = run_attempt(commands, base_dir=Path(), test=False)
        points = MlflowClient().get_metric_history(run_id, "train_loss")
        assert sorted((point.step, point.value) for point in points) == list(enumerate(trained.train_losses, start=1))

    def test_weights_that_score_well_and_lose_the_race_are_not_used(self, history: str, past: Path) -> None:
        """The score does not see the head, taken over with equal labels; here it is sure, and always wrong."""
        stripes = past.parent / "stripes"
        plain = train_attempt(prepare(stripes), MemoryRecorder())
        prepared, trained = prepare(stripes, initial_weights="auto"), Trained()
        start = look_up_start(prepared)
        assert start is not None
        (source,) = (source for source in start.sources if source.name == "stripes")
        wrong = {key: -1000 * value if key.startswith("7.") else value for key, value in source.weights.items()}
        start_training(prepared, trained, replace(start, sources=[replace(source, weights=wrong)]))
        told = trained.initial_weights
        (candidate,) = json.loads(told["candidates"])
        assert candidate["score"] > told["untrained"]
        assert not json.loads(told["race"])["won"]
        assert told["source"] == "scratch"
        assert told["reason"].startswith("from scratch: stripes scores")
        assert ", but " in told["reason"]
        train_attempt(prepared, MemoryRecorder(), trained=trained)
        assert are_equal(trained.state, plain.state)

    @pytest.mark.parametrize("by_id", [True, False])
    def test_named_weights_are_taken_without_guard_and_race(self, history: str, pictures: Path, by_id: bool) -> None:
        source = find_run_id("hues")
        commands = make_commands("new", pictures, initial_weights=source if by_id else "hues")
        run_id, _, _ = run_attempt(commands, base_dir=Path(), test=False)
        params = read_params(run_id)
        assert (params["source"], params["name"]) == (source, "hues")
        assert "race" not in params
        assert params["reason"].startswith("from hues: as commanded; hues scores")
        assert params["reason"].endswith("it may do no better than weights from scratch")

    def test_an_attempt_of_one_epoch_may_be_raced_too(self, history: str, pictures: Path) -> None:
        commands = make_commands("new", pictures, initial_weights="auto", n_epoch=1)
        run_id, trained, metrics = run_attempt(commands, base_dir=Path())
        assert len(trained.curve) == 1
        assert "race" in read_params(run_id)
        assert metrics["accuracy"] > 0.5


class TestResuming:
    @pytest.mark.parametrize("until_epoch", [1, 2])
    def test_a_resumed_attempt_is_not_raced_again_and_ends_as_one_that_was_not_stopped(
        self, history: str, pictures: Path, capsys: pytest.CaptureFixture[str], until_epoch: int
    ) -> None:
        from mlmeta.tracking.store import open_client

        _, whole, _ = run_attempt(make_commands("whole", pictures, initial_weights="auto"), base_dir=Path(), test=False)
        open_client().delete_run(find_run_id("whole"))
        commands = make_commands("new", pictures, initial_weights="auto")
        run_id, _, _ = run_attempt(commands, base_dir=Path(), test=False, until_epoch=until_epoch)
        before = read_params(run_id)
        # Were it looked up again, it would be refused: the source is no longer there.
        open_client().delete_run(before["source"])
        capsys.readouterr()
        resumed_id, trained, _ = resume_attempt("new", test=False)
        assert resumed_id == run_id
        assert "initial weights" not in capsys.readouterr().err
        assert read_params(run_id) == before
        assert drop_seconds(trained.curve)[-1]["train_loss"] == whole.curve[-1]["train_loss"]
        assert are_equal(trained.state, whole.state)

    def test_a_named_source_that_is_gone_does_not_hinder_resuming(self, history: str, pictures: Path) -> None:
        from mlmeta.tracking.store import open_client

        commands = make_commands("new", pictures, initial_weights="stripes")
        run_id, _, _ = run_attempt(commands, base_dir=Path(), test=False, until_epoch=1)
        open_client().delete_run(find_run_id("stripes"))
        assert len(resume_attempt(run_id, test=False)[1].curve) == 3


class TestCommandLine:
    def run(self, pictures: Path, tmp_path: Path, initial_weights: str) -> Any:
        document = json.loads(make_commands("new", pictures, initial_weights=initial_weights).model_dump_json())
        file = tmp_path / "commands.json"
        file.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
        return CliRunner().invoke(cli, ["train", "--no-test", str(file)])

    def test_an_unknown_name_is_one_message_and_exit_code_2_and_starts_no_run(
        self, history: str, pictures: Path, tmp_path: Path
    ) -> None:
        from mlmeta.tracking.store import open_client

        result = self.run(pictures, tmp_path, "strips")
        assert result.exit_code == 2
        message = "mlmeta: initial_weights: there is no attempt named 'strips'. Did you mean 'stripes'?"
        assert [line for line in result.stderr.splitlines() if line] == [message]
        assert len(open_client().search_runs(["0"])) == 3

    def test_a_file_that_was_changed_is_one_message_and_exit_code_2(
        self, history: str, pictures: Path, tmp_path: Path, past: Path
    ) -> None:
        from mlflow import MlflowClient

        (tmp_path / "hues.pt").write_bytes(b"something else")
        MlflowClient().log_artifact(find_run_id("hues"), str(tmp_path / "hues.pt"), "models")
        result = self.run(pictures, tmp_path, "hues")
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("mlmeta: initial_weights: hues.pt: its SHA-256 is")
        assert "Traceback" not in result.output
