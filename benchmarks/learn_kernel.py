"""Learn the numbers of the surrogate's kernel from real attempts; prints them as JSON.

    python benchmarks/learn_kernel.py [--store URI]

The marginal likelihood of the scores' normal quantiles is climbed by Adam, on other draws of attempts in each step,
with a weak pull towards equal lengths. `mlmeta.tuning.surrogate.KernelSettings` holds what comes out for all 13 tasks
of examples/attempts.jsonl.gz; benchmarks/meta_learning.py learns them again without the task that it holds out.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mlmeta.analysis.features import score_ranks
from mlmeta.analysis.task_similarity import task_distances, task_table
from mlmeta.history.loading import load_attempts
from mlmeta.tuning.surrogate import KernelSettings
from mlmeta.tuning.training_features import LENGTHS, name_features

N_STEPS = 120
N_PER_TASK = 28
_LEVEL = 3.0
_USUAL = 0.7  # the logarithm of the length that features of range about 1 are pulled towards
# Units in which all features have about the same range.
_UNITS = {
    "rate": 1.0, "travel": 1.0, "steps": 3.0, "batch": 3.0, "decay": 4.0, "pictures": 2.0, "labels": 2.0, "plain": 1.0,
    "optimizer": 2.0, "batch_norm": 1.0, "depth": 2.0, "width": 2.0, "parameters": 4.0, "dropout": 0.5, "hidden": 7.0,
    "activation": 1.0, "other": 1.0,
}  # fmt: skip


def learn_settings(table: pd.DataFrame, *, metric: str = "accuracy", seed: int = 0) -> KernelSettings:
    """Return the settings that make the scores of a table of attempts most likely."""
    tasks = task_table(table, metric)
    z = score_ranks(table, metric)
    known = table[np.isfinite(z)].reset_index(drop=True)
    codes = known["task"].map({name: i for i, name in enumerate(tasks["task"])}).to_numpy()
    named = name_features(known, tasks, shift=0.0)
    groups = [name.partition("=")[0] for name, _ in named]
    names = [name for name in LENGTHS if name in groups]
    points = torch.tensor(
        np.stack([values / _UNITS[group] for (_, values), group in zip(named, groups, strict=True)], 1)
    )
    place = torch.tensor([names.index(group) for group in groups])
    plain = points[:, groups.index("plain")]
    shifted = torch.tensor([1.0 if group in ("rate", "travel") else 0.0 for group in groups], dtype=torch.float64)
    distances = torch.tensor(task_distances(tasks).fillna(1.0).to_numpy())
    scores = torch.tensor(z[np.isfinite(z)])
    logs = {
        "lengths": torch.full((len(names),), _USUAL, dtype=torch.float64),
        "shift": torch.tensor(1.5, dtype=torch.float64),
        "variances": torch.log(torch.tensor([1.0, 0.3, 0.2, 0.1, 0.2], dtype=torch.float64)),
        "task_length": torch.tensor(np.log(0.15), dtype=torch.float64),
    }
    parameters = {key: value.requires_grad_(True) for key, value in logs.items()}
    climber = torch.optim.Adam(parameters.values(), lr=0.06)
    draw = np.random.default_rng(seed)
    for _ in range(N_STEPS):
        rows = np.concatenate([draw.permutation(np.flatnonzero(codes == i))[:N_PER_TASK] for i in np.unique(codes)])
        chosen = torch.tensor(rows)
        features = points[chosen] - shifted * parameters["shift"] * plain[chosen, None]
        features = features * torch.exp(-parameters["lengths"])[place]
        covariance = make_covariance(features, torch.tensor(codes[rows]), distances, parameters)
        loss = negative_log_likelihood(covariance, scores[chosen])
        loss = loss + 0.4 * ((parameters["lengths"] - _USUAL) ** 2).sum()
        climber.zero_grad()
        (loss / len(rows)).backward()
        climber.step()
    shared, similar, own, commands, noise = torch.exp(parameters["variances"]).tolist()
    lengths = dict(LENGTHS) | {
        name: float(torch.exp(parameters["lengths"].detach()[i])) * _UNITS[name] for i, name in enumerate(names)
    }
    return KernelSettings(
        lengths=lengths, shift=float(parameters["shift"].detach()), shared=shared, similar=similar, own=own,
        commands=commands, noise=noise, task_length=float(torch.exp(parameters["task_length"].detach())),
    )  # fmt: skip


def make_covariance(features: Tensor, codes: Tensor, distances: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """Return the covariance of scores, with noise; see `mlmeta.tuning.surrogate`."""
    squared = ((features[:, None] - features[None]) ** 2).sum(-1)
    scaled = torch.sqrt(5 * squared + 1e-10)
    matern = (1 + scaled + scaled**2 / 3) * torch.exp(-scaled)
    shared, similar, own, commands, noise = torch.exp(parameters["variances"])
    same = (codes[:, None] == codes).double()
    closeness = torch.exp(-distances * torch.exp(-parameters["task_length"]))[codes][:, codes]
    tasks = shared + similar * closeness + own * same
    identical = (squared.detach() < 1e-12).double()
    return matern * tasks + commands * identical + _LEVEL * same + noise * torch.eye(len(codes), dtype=torch.float64)


def negative_log_likelihood(covariance: Tensor, scores: Tensor) -> Tensor:
    """Return -log p(scores) up to a constant."""
    factor = torch.linalg.cholesky(covariance)
    weights = torch.cholesky_solve(scores[:, None], factor)[:, 0]
    return 0.5 * scores @ weights + torch.log(torch.diagonal(factor)).sum()


def main() -> None:
    """Learn from all attempts of a store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", help="An MLflow tracking URI; MLflow's own setting where it is not given.")
    settings = learn_settings(load_attempts(parser.parse_args().store))
    print(json.dumps({**vars(settings), "lengths": dict(settings.lengths)}, indent=1))


if __name__ == "__main__":
    main()
