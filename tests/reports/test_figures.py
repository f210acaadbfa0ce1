"""Places of tasks in the plane, and the map of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform

from mlmeta.analysis.task_similarity import place_tasks
from mlmeta.reports.figures import plot_task_map


@pytest.mark.parametrize("n", [2, 3, 13, 40])
def test_distances_of_points_in_the_plane_are_kept(n: int) -> None:
    distances = squareform(pdist(np.random.default_rng(n).uniform(size=(n, 2))))
    places, stress = place_tasks(distances)
    assert stress < 1e-6
    np.testing.assert_allclose(squareform(pdist(places)), distances, atol=1e-6)


def test_stress_is_that_of_kruskal_and_no_worse_than_classical_scaling() -> None:
    distances = squareform(pdist(np.random.default_rng(0).uniform(size=(12, 8))))
    places, stress = place_tasks(distances)
    made = squareform(pdist(places))
    assert stress == pytest.approx(np.sqrt(((distances - made) ** 2).sum() / (distances**2).sum()))
    values, vectors = np.linalg.eigh(-0.5 * (np.eye(12) - 1 / 12) @ distances**2 @ (np.eye(12) - 1 / 12))
    classical = squareform(pdist(vectors[:, -2:] * np.sqrt(values[-2:])))
    assert ((distances - made) ** 2).sum() < ((distances - classical) ** 2).sum()


def test_the_same_tasks_always_give_the_same_map() -> None:
    distances = squareform(pdist(np.random.default_rng(1).uniform(size=(9, 4))))
    np.testing.assert_array_equal(place_tasks(distances)[0], place_tasks(distances)[0])


def test_equal_tasks_stand_at_one_place() -> None:
    places, stress = place_tasks(np.zeros((4, 4)))
    assert stress == 0
    np.testing.assert_allclose(places, 0, atol=1e-9)


def test_an_unknown_distance_counts_as_one() -> None:
    places, _ = place_tasks(np.array([[0, np.nan], [np.nan, 0]]))
    assert np.linalg.norm(places[0] - places[1]) == pytest.approx(1)


TASKS = pd.DataFrame({"task": ["a", "b", "far", "<b>"], "n_attempts": [1, 4, 9, 16]})
DISTANCES = pd.DataFrame([[0, 0, 1, np.nan], [0, 0, 1, 0.5], [1, 1, 0, 0.5], [np.nan, 0.5, 0.5, 0]])


def test_the_map_names_every_task_and_tells_tasks_at_one_place_apart() -> None:
    figure, stress = plot_task_map(TASKS, DISTANCES.fillna(0.5), ["A", "B", "C", "D"])
    (points,) = figure.data
    assert list(points.ids) == ["a", "b", "far", "<b>"]
    assert list(points.text) == ["a", "b", "far", "&lt;b&gt;"]
    assert points.x[0] == pytest.approx(points.x[1])
    assert points.textposition[0] != points.textposition[1]
    assert 0 <= stress < 1


def test_lines_lead_from_the_chosen_task_to_those_whose_distance_is_known() -> None:
    *lines, points = plot_task_map(TASKS, DISTANCES, ["", "", "", ""], chosen="a")[0].data
    assert [(line.x[0], line.x[1]) for line in lines] == [(points.x[0], points.x[1]), (points.x[0], points.x[2])]
    assert [colour == points.marker.color[1] for colour in points.marker.color] == [False, True, True, True]
    assert len(plot_task_map(TASKS, DISTANCES, ["", "", "", ""], chosen="?")[0].data) == 1
