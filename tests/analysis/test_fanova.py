from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.tree import DecisionTreeRegressor

from mlmeta.analysis.fanova import Factor, TreeEffects, find_leaf_boxes

Floats = npt.NDArray[np.float64]

VALUES = {"a": np.array([0.1, 0.4, 0.9]), "b": np.array([1.0, 2.0, 3.0, 5.0]), "c": np.array([-1.0, 0.0, 1.0])}
WEIGHTS = {"a": np.array([0.2, 0.5, 0.3]), "b": np.array([0.1, 0.2, 0.3, 0.4]), "c": np.array([0.25, 0.25, 0.5])}


@pytest.fixture(scope="module")
def tree() -> DecisionTreeRegressor:
    """A tree on a, b, c and on a - c, which two inputs make."""
    rng = np.random.default_rng(0)
    matrix = np.stack([rng.choice(VALUES[name], 200) + rng.normal(0, 0.2, 200) for name in "abc"], axis=1)
    matrix = np.column_stack([matrix, matrix[:, 0] - matrix[:, 2]])
    scores = np.sin(3 * matrix[:, 0]) * matrix[:, 1] + matrix[:, 3] ** 2 + rng.normal(0, 0.1, 200)
    return DecisionTreeRegressor(min_samples_leaf=3, random_state=0).fit(matrix, scores)


def single(name: str, column: int) -> Factor:
    values = VALUES[name]
    return Factor(np.array([column]), values[:, None], WEIGHTS[name], {name: np.arange(len(values))})


def joined() -> Factor:
    places, others = (grid.ravel() for grid in np.indices((3, 3)))
    a, c = VALUES["a"][places], VALUES["c"][others]
    weights = WEIGHTS["a"][places] * WEIGHTS["c"][others]
    return Factor(np.array([0, 2, 3]), np.stack([a, c, a - c], axis=1), weights, {"a": places, "c": others})


def predict_grid(tree: DecisionTreeRegressor) -> Floats:
    """The prediction for every combination of values, shape (3, 4, 3)."""
    rows = [(a, b, c, a - c) for a, b, c in product(*VALUES.values())]
    return tree.predict(np.array(rows)).reshape(3, 4, 3)


@pytest.fixture(scope="module")
def effects(tree: DecisionTreeRegressor) -> TreeEffects:
    return TreeEffects(tree.tree_, [single("b", 1), joined()])


def test_mean_and_variance_are_those_of_the_whole_grid(tree: DecisionTreeRegressor, effects: TreeEffects) -> None:
    predicted = predict_grid(tree)
    mean = np.einsum("abc,a,b,c", predicted, *WEIGHTS.values())
    assert effects.mean == pytest.approx(mean, abs=1e-9)
    assert effects.variance == pytest.approx(
        np.einsum("abc,a,b,c", (predicted - mean) ** 2, *WEIGHTS.values()), abs=1e-9
    )


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_marginals_are_those_of_the_whole_grid(tree: DecisionTreeRegressor, effects: TreeEffects, name: str) -> None:
    others = [weights for other, weights in WEIGHTS.items() if other != name]
    letters = "abc".replace(name, "")
    expected = np.einsum(f"abc,{letters[0]},{letters[1]}->{name}", predict_grid(tree), *others)
    np.testing.assert_allclose(effects.mean_by(name), expected, atol=1e-9)
    share = WEIGHTS[name] @ (expected - effects.mean) ** 2 / effects.variance
    assert effects.share_of(name) == pytest.approx(share, abs=1e-9)


def test_main_effects_never_explain_more_than_all(effects: TreeEffects) -> None:
    assert sum(map(effects.share_of, "abc")) <= 1 + 1e-12


def test_every_row_is_in_the_box_of_the_leaf_that_predicts_it(tree: DecisionTreeRegressor) -> None:
    rows = np.random.default_rng(1).uniform(-2, 5, (500, 4)).astype(np.float32)
    lower, upper, values = find_leaf_boxes(tree.tree_)
    inside = ((lower < rows[:, None]) & (rows[:, None] <= upper)).all(axis=2)
    assert (inside.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(values[inside.argmax(axis=1)], tree.predict(rows))


def test_thresholds_between_float32_and_float64_are_seen_as_scikit_learn_sees_them() -> None:
    values = np.array([[0.1], [np.nextafter(np.float32(0.1), np.float32(1))]], dtype=np.float64)
    tree = DecisionTreeRegressor().fit(values, [0.0, 1.0])
    effects = TreeEffects(tree.tree_, [Factor(np.array([0]), values, np.array([0.5, 0.5]), {"x": np.arange(2)})])
    np.testing.assert_array_equal(effects.mean_by("x"), tree.predict(values))


def test_a_value_without_probability_has_its_prediction_too(tree: DecisionTreeRegressor) -> None:
    b = Factor(np.array([1]), VALUES["b"][:, None], np.array([0.0, 0.5, 0.5, 0.0]), {"b": np.arange(4)})
    with_all = TreeEffects(tree.tree_, [single("b", 1), joined()]).mean_by("b")
    np.testing.assert_allclose(TreeEffects(tree.tree_, [b, joined()]).mean_by("b"), with_all, atol=1e-12)


def test_dependent_inputs_come_with_the_partners_that_they_have() -> None:
    tree = DecisionTreeRegressor().fit([[0, 0], [0, 1], [1, 0], [1, 1]], [0.0, 1.0, 2.0, 3.0])
    rows = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    places = {"x": np.array([0, 0, 1, 1]), "y": np.array([0, 1, 0, 1])}
    effects = TreeEffects(tree.tree_, [Factor(np.array([0, 1]), rows, np.array([0.4, 0.1, 0.1, 0.4]), places)])
    np.testing.assert_allclose(effects.mean_by("x"), [0.2, 2.8])


def test_a_tree_without_a_split_explains_nothing() -> None:
    tree = DecisionTreeRegressor().fit([[0.0], [1.0]], [2.0, 2.0])
    effects = TreeEffects(
        tree.tree_, [Factor(np.array([0]), np.array([[0.0], [1.0]]), np.full(2, 0.5), {"x": np.arange(2)})]
    )
    assert (effects.mean, effects.variance, effects.share_of("x")) == (2.0, 0.0, 0.0)
