"""What first epochs are good for: several recommendations are begun together and only the best of them finished.

A round begins `size` recommendations for one epoch each and finishes `keep`; what the others showed is observed as the
score that is to be expected of them, with its standard deviation. Final score = a + b · score after one epoch, both as
shares of the way from chance to 1; a, b and the standard deviation are fitted to the past attempts. The documents'
accuracies after each epoch are of the test pictures: they stand in for those of validation pictures, which they lack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from meta_data import Floats, Scene
from meta_methods import Mlmeta

AFTER = (3, 5, 10, 20)
REPEATS = 2


@dataclass(frozen=True)
class Rounds:
    """A way to spend epochs.

    Attributes:
        size: So many are begun together.
        keep: So many of them are finished.
        by_surrogate: Whether those are finished that the surrogate expects most of after their first epoch, or those
            with the best first epochs.
    """

    size: int
    keep: int
    by_surrogate: bool = True

    def __str__(self) -> str:
        if self.size == self.keep:
            return "all finished" + (f", {self.size} together" if self.size > 1 else "")
        return f"{self.keep} of {self.size}, by " + ("what is expected" if self.by_surrogate else "first epoch")


ALL = (
    Rounds(1, 1), Rounds(5, 5), Rounds(5, 1, by_surrogate=False), Rounds(5, 1), Rounds(10, 3), Rounds(10, 2),
    Rounds(20, 6),
)  # fmt: skip


class Curves:
    """The accuracy of every attempt after each epoch, by its name."""

    def __init__(self, documents: Sequence[Mapping[str, Any]]) -> None:
        self.of = {one["name"]: np.array(one["test_accuracies"], dtype=np.float64) for one in documents}
        self.chance = {one["name"]: 1 / len(one["task"]["label_names"]) for one in documents}

    def fit(self, names: Sequence[str]) -> tuple[float, float, float]:
        """Return a, b and the standard deviation about a + b x, x a share after the first epoch."""
        first, last = (np.array([self._share(name, place) for name in names]) for place in (0, -1))
        slope, start = np.polyfit(first, last, 1)
        return float(start), float(slope), float(np.std(last - start - slope * first))

    def expect(self, name: str, fitted: tuple[float, float, float]) -> tuple[float, float]:
        """Return what final score an attempt's first epoch lets expect, and its standard deviation."""
        start, slope, deviation = fitted
        chance = self.chance[name]
        return chance + (1 - chance) * (start + slope * self._share(name, 0)), (1 - chance) * deviation

    def _share(self, name: str, place: int) -> float:
        chance = self.chance[name]
        return float((np.nan_to_num(self.of[name][place], nan=chance) - chance) / (1 - chance))


def play(rounds: Rounds, ask: Callable[[Scene], Any], scene: Scene, curves: Curves) -> tuple[list[float], float]:
    """Return the normalized regret after each of `AFTER` attempts, and the share of their epochs that was trained.

    NaN where no round ends with that attempt.
    """
    names = list(scene.trials.rows["model_name"])
    scores = scene.trials.scores
    fitted = curves.fit(list(scene.past["model_name"]))
    surrogate = ask(scene)
    tried: list[int] = []
    reached: list[float] = []
    epochs = 0.0
    while len(tried) < min(max(AFTER), len(scores)):
        begun = surrogate.choose(rounds.size, len(scores), tried=tried)
        tried += begun
        finished = begun
        if rounds.keep < rounds.size:
            expected = {row: curves.expect(names[row], fitted) for row in begun}
            finished = choose_finished(rounds, surrogate, expected)
        for row in begun:
            if row in finished:
                surrogate.observe(row, float(scores[row]))
            else:
                surrogate.observe(row, expected[row][0], std=expected[row][1])
        best = max([float(scores[row]) for row in finished] + reached[-1:])
        reached += [best] * len(begun)
        length = len(curves.of[names[0]])
        epochs += len(begun) + len(finished) * (length - 1)
    regret = (scores.max() - np.array(reached)) / max(scores.max() - scores.min(), 1e-12)
    ended = [n % rounds.size == 0 and n <= len(regret) for n in AFTER]
    shown = [float(regret[n - 1]) if is_ended else np.nan for n, is_ended in zip(AFTER, ended, strict=True)]
    return shown, epochs / (length * len(tried))


def choose_finished(rounds: Rounds, surrogate: Any, expected: Mapping[int, tuple[float, float]]) -> list[int]:
    """Return which of those that were begun are finished."""
    # A surrogate is not changed by what its copy observes.
    seen = copy.copy(surrogate)
    for row, (score, std) in expected.items():
        seen.observe(row, score, std=std)
    z: Floats = seen.predict().z
    value = {row: float(z[row]) if rounds.by_surrogate else expected[row][0] for row in expected}
    return sorted(expected, key=lambda row: -value[row])[: rounds.keep]


def measure_pruning(
    ours: Mlmeta, makes: Mapping[int, Callable[..., Scene]], held_out: Sequence[str], documents: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return a row for each way and number of past attempts."""
    curves = Curves(documents)
    rows = []
    for level, make in makes.items():
        scenes = []
        for place, task in enumerate(held_out):
            scenes += [make(task, np.random.default_rng([repeat, place])) for repeat in range(REPEATS)]
        for rounds in ALL:
            played = [play(rounds, ours.ask, scene, curves) for scene in scenes]
            regret = np.mean([one for one, _ in played], axis=0)
            share = float(np.mean([epochs for _, epochs in played]))
            ended = [(str(n), value) for n, value in zip(AFTER, regret, strict=True) if np.isfinite(value)]
            named = {n: round(float(value), 4) for n, value in ended}
            rows.append({"method": str(rounds), "past_attempts": level, "regret": named, "epochs": round(share, 3)})
    return rows


def print_pruning(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a way and number of past attempts."""
    print(
        f"{'past':>5}  {'finished':<32}" + "".join(f"{'after ' + str(n):>10}" for n in AFTER) + "   share of the epochs"
    )
    for row in rows:
        regret = "".join(f"{row['regret'].get(str(n), np.nan):>10.3f}" for n in AFTER).replace("nan", "  -")
        print(f"{row['past_attempts']:>5}  {row['method']:<32}{regret}   {row['epochs']:.2f}", flush=True)
