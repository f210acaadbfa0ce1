"""What past learning curves say about one that is still being trained."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from mlmeta.training.learning_curves import CurvePredictor, PastCurve, bests_at, share_fairly


def make_curve(
    values: list[float],
    *,
    task: str = "a",
    n_epoch: int | None = None,
    n_labels: int = 4,
    end: Literal["finished", "stopped", "open"] = "finished",
) -> PastCurve:
    return PastCurve(np.array(values), n_epoch or len(values), task, n_labels, end)


def make_saturating(top: float, speed: float, *, n_epoch: int = 12, task: str = "a") -> PastCurve:
    epochs = np.arange(1, n_epoch + 1)
    return make_curve((top - (top - 0.25) * np.exp(-speed * epochs)).tolist(), task=task)


def make_past(n: int, *, task: str = "a", seed: int = 0) -> list[PastCurve]:
    draw = np.random.default_rng(seed)
    return [
        make_saturating(top, speed, task=task)
        for top, speed in zip(draw.uniform(0.4, 0.95, n), draw.uniform(0.1, 0.9, n), strict=True)
    ]


class TestBests:
    def test_the_best_so_far_counts_and_what_is_not_known_is_passed_over(self) -> None:
        assert make_curve([math.nan, 0.5, 0.3, math.nan, 0.6]).bests[1:].tolist() == [0.5, 0.5, 0.5, 0.6]

    def test_only_attempts_on_the_task_are_compared(self) -> None:
        past = [make_curve([0.3, 0.6]), make_curve([0.5, 0.1]), make_curve([0.9, 0.9], task="b")]
        assert bests_at(past, "a", 1).tolist() == [0.3, 0.5]
        assert bests_at(past, "a", 2).tolist() == [0.5, 0.6]

    @pytest.mark.parametrize(("end", "expected"), [("finished", [0.3]), ("stopped", [0.3]), ("open", [])])
    def test_an_attempt_that_has_ended_counts_with_its_best_beyond_its_end(
        self, end: Literal["finished", "stopped", "open"], expected: list[float]
    ) -> None:
        assert bests_at([make_curve([0.3, 0.2], n_epoch=12, end=end)], "a", 6).tolist() == expected


class TestSharing:
    def test_all_of_the_task_and_then_the_first_of_each_other_in_turn(self) -> None:
        tasks = ["b", "b", "b", "a", "c", "b", "a"]
        assert share_fairly(tasks, "a", most=4) == [0, 3, 4, 6]
        assert share_fairly(tasks, "a", most=5) == [0, 1, 3, 4, 6]

    def test_where_all_fit_all_are_taken_in_their_order(self) -> None:
        assert share_fairly(["b", "a", "b"], "a") == [0, 1, 2]


class TestPrediction:
    def predict(self, past: list[PastCurve], values: list[float], n_epoch: int = 12) -> tuple[float, float]:
        forecast = CurvePredictor(past, task="a", n_labels=4).predict(values, n_epoch)
        assert forecast is not None
        return forecast.mean, forecast.std

    def test_without_past_curves_nothing_is_said(self) -> None:
        assert CurvePredictor([], task="a", n_labels=4).predict([0.5], 12) is None
        assert CurvePredictor(make_past(4), task="a", n_labels=4).predict([0.5], 12) is None

    def test_curves_of_one_kind_teach_where_such_a_curve_ends(self) -> None:
        past, new = make_past(60), make_past(20, seed=1)
        errors = [abs(self.predict(past, c.values[:3].tolist())[0] - c.values[-1]) for c in new]
        last = [abs(c.values[2] - c.values[-1]) for c in new]
        assert np.mean(errors) < 0.5 * np.mean(last)

    def test_nine_of_ten_ends_lie_in_the_interval(self) -> None:
        draw = np.random.default_rng(2)
        noisy = [
            make_curve(np.clip(c.values + draw.normal(0, 0.03, 12), 0, 1).tolist(), task=c.task)
            for number in range(8)
            for c in make_past(25, task="abcdefgh"[number], seed=number)
        ]
        past, new = noisy[:100], noisy[100:]
        predictor = CurvePredictor(past, task="z", n_labels=4)
        forecasts = [predictor.predict(c.values[:4].tolist(), 12) for c in new]
        inside = [f.interval[0] <= c.bests[-1] <= f.interval[1] for f, c in zip(forecasts, new, strict=True) if f]
        assert 0.8 <= np.mean(inside) <= 1.0

    def test_the_interval_widens_with_fewer_past_curves(self) -> None:
        widths = [self.predict(make_past(n), [0.4, 0.45, 0.5])[1] for n in (6, 20, 100)]
        assert widths[0] > widths[1] > widths[2]

    def test_the_interval_narrows_towards_the_end(self) -> None:
        past, curve = make_past(60), make_saturating(0.8, 0.3)
        widths = [self.predict(past, curve.values[:epoch].tolist())[1] for epoch in (1, 4, 10)]
        assert widths[0] > widths[1] > widths[2]

    def test_a_better_start_lets_expect_a_better_end(self) -> None:
        past = make_past(60)
        means = [self.predict(past, [value - 0.1, value - 0.05, value])[0] for value in (0.4, 0.5, 0.6, 0.7, 0.8)]
        assert means == sorted(means)

    def test_curves_on_the_task_itself_count_more(self) -> None:
        flat = [make_saturating(0.5, 3.0, task="b") for _ in range(30)]
        rising = [make_saturating(0.9, 0.1, task="a") for _ in range(8)]
        seen = rising[0].values[:3].tolist()
        assert self.predict(flat + rising, seen)[0] > self.predict(flat, seen)[0] + 0.1

    def test_it_is_deterministic_and_takes_in_what_is_reached(self) -> None:
        past = make_past(30)
        first = CurvePredictor(past, task="a", n_labels=4).predict([0.2, 0.93], 12)
        assert first == CurvePredictor(past, task="a", n_labels=4).predict([0.2, 0.93], 12)
        assert first is not None
        assert first.interval[0] >= 0.93
        assert first.mean <= 1

    @pytest.mark.parametrize("n_epoch", [6, 24, 100])
    def test_budgets_of_other_lengths_teach_too(self, n_epoch: int) -> None:
        past = make_past(40)
        mean, std = self.predict(past, [0.3, 0.4], n_epoch)
        assert 0.4 < mean < 1
        assert 0 < std < 0.4

    def test_past_curves_longer_than_the_budget_are_read_at_the_same_epochs(self) -> None:
        long = [make_saturating(top, 0.05, n_epoch=100) for top in np.linspace(0.6, 0.9, 20)]
        mean, _ = self.predict(long, long[10].values[:5].tolist(), 10)
        assert mean == pytest.approx(long[10].values[9], abs=0.03)

    def test_a_stopped_curve_does_not_say_where_curves_end(self) -> None:
        cut = [make_curve(c.values[:4].tolist(), n_epoch=12, end="stopped") for c in make_past(40)]
        assert CurvePredictor(cut, task="a", n_labels=4).predict([0.5, 0.5], 12) is None
        assert CurvePredictor(cut, task="a", n_labels=4).predict([0.5, 0.5], 4) is not None

    def test_the_chance_to_exceed_a_value_falls_with_it(self) -> None:
        forecast = CurvePredictor(make_past(40), task="a", n_labels=4).predict([0.4, 0.5], 12)
        assert forecast is not None
        chances = [forecast.chance_above(value) for value in (0.45, forecast.mean, 0.95, 1.0)]
        assert chances[0] == 1
        assert chances[1] == pytest.approx(0.5)
        assert chances[1] > chances[2] > chances[3]

    def test_unknown_epochs_of_past_curves_do_no_harm(self) -> None:
        past = [*make_past(20), make_curve([math.nan] * 12), make_curve([math.nan, math.nan, 0.5] + [0.6] * 9)]
        mean, std = self.predict(past, [0.4, math.nan, 0.5])
        assert math.isfinite(mean)
        assert math.isfinite(std)
