"""Functional ANOVA of regression trees: which inputs a tree's prediction varies with, exactly.

A tree is constant on the box of each of its leaves, so that its mean over some inputs is a weighted sum over leaves
(F. Hutter, H. Hoos, K. Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014).
Inputs are taken as independent of each other, each with a distribution of its own, given as values with weights: the
values that attempts had, rather than the paper's uniform distribution.

Notation: L leaves with values c and boxes B = B_1 × ... × B_F over F independent factors, P_i the distribution of
factor i; f(x) = c of the leaf whose box holds x; E f = Σ c Π P_i(B_i), the sum over leaves, the product over factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlmeta.history.table import Floats, Ints

# Below it a variance is what rounding left.
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Factor:
    """Columns that vary together: one input, or more of them; two rows differ in the value of one of them at least.

    Attributes:
        columns: Indices of the columns, shape (c,).
        rows: Their values, shape (k, c), a row for each combination of the inputs' values.
        weights: The probability of each row, shape (k,), sum 1.
        places: For each input, by name, the index of its value in each row, shape (k,).
    """

    columns: Ints
    rows: Floats
    weights: Floats
    places: Mapping[str, Ints]

    def weigh_values(self, name: str) -> Floats:
        """Return the probability of each of an input's values, shape (n_values,)."""
        return np.bincount(self.places[name], weights=self.weights).astype(np.float64)

    def weigh_rows(self, name: str) -> Floats:
        """Return the probability of each row among those with the same value of an input, shape (k,).

        Rows of a value that has no probability itself all have the same.
        """
        places = self.places[name]
        totals = self.weigh_values(name)[places]
        alike: Floats = 1.0 / np.bincount(places)[places]
        return np.divide(self.weights, totals, out=alike, where=totals > 0)


class TreeEffects:
    """How the prediction of one tree varies with its inputs.

    Attributes:
        mean: E f.
        variance: E f² - (E f)², at least 0.
    """

    def __init__(self, tree: Any, factors: Sequence[Factor]) -> None:
        """Weigh the leaves.

        Args:
            tree: The `tree_` of a scikit-learn regression tree with one output.
            factors: All columns that the tree splits on stand in one of them; a name of an input in only one.
        """
        lower, upper, self._leaf_values = find_leaf_boxes(tree)
        self._factors = factors
        self._factor_of = {name: i for i, factor in enumerate(factors) for name in factor.places}
        self._holds = [_hold(lower[:, factor.columns], upper[:, factor.columns], factor.rows) for factor in factors]
        shares = [holds @ factor.weights for holds, factor in zip(self._holds, factors, strict=True)]
        self._shares = np.stack(shares, axis=1) if shares else np.ones((len(lower), 0))
        probabilities = np.prod(self._shares, axis=1)
        self.mean = float(probabilities @ self._leaf_values)
        self.variance = float(probabilities @ (self._leaf_values - self.mean) ** 2)

    def mean_by(self, name: str) -> Floats:
        """Return E[f | input = value] for each of an input's values, shape (n_values,)."""
        place = self._factor_of[name]
        factor = self._factors[place]
        # Each leaf's value times the probability of its box in all other factors.
        weighed = self._leaf_values * np.prod(np.delete(self._shares, place, axis=1), axis=1)
        by_row = weighed @ self._holds[place]
        return np.bincount(factor.places[name], weights=factor.weigh_rows(name) * by_row).astype(np.float64)

    def share_of(self, name: str) -> float:
        """Return Var(E[f | input]) / Var(f), 0 to 1: what the input explains by itself; 0 where f is constant."""
        if not self.variance > _LEAST_VARIANCE:
            return 0.0
        chances = self._factors[self._factor_of[name]].weigh_values(name)
        return float(chances @ (self.mean_by(name) - self.mean) ** 2) / self.variance


def find_leaf_boxes(tree: Any) -> tuple[Floats, Floats, Floats]:
    """Return lower and upper ends of the leaves' boxes, both shape (L, d), and the leaves' values, shape (L,).

    A leaf holds x where lower < x <= upper in each of the d columns, x as float32: so scikit-learn sees it.
    """
    lower = np.full((tree.node_count, tree.n_features), -np.inf)
    upper = np.full((tree.node_count, tree.n_features), np.inf)
    # Level by level: a child starts with its parent's box.
    nodes = np.array([0])
    while (nodes := nodes[tree.children_left[nodes] >= 0]).size:
        left, right = tree.children_left[nodes], tree.children_right[nodes]
        for children in (left, right):
            lower[children], upper[children] = lower[nodes], upper[nodes]
        upper[left, tree.feature[nodes]] = tree.threshold[nodes]
        lower[right, tree.feature[nodes]] = tree.threshold[nodes]
        nodes = np.concatenate([left, right])
    is_leaf = tree.children_left < 0
    return lower[is_leaf], upper[is_leaf], tree.value[is_leaf, 0, 0].astype(np.float64)


def _hold(lower: Floats, upper: Floats, rows: Floats) -> Floats:
    """Return 1 where a leaf's box holds a row, else 0, shape (L, k)."""
    seen = rows.astype(np.float32)
    holds = np.ones((len(lower), len(rows)), dtype=bool)
    for i in range(seen.shape[1]):
        holds &= (lower[:, i, None] < seen[:, i]) & (seen[:, i] <= upper[:, i, None])
    return holds.astype(np.float64)
