"""Initial weights: whether a training starts from an earlier attempt's weights, and how.

Notation: theta_s the weights of the source, theta_init those drawn for this training.

    theta = lambda theta_s + (1 - lambda) theta_init

Weights that are only copied generalise worse than fresh ones though they train faster; shrunk and perturbed so, they
do not (Ash and Adams, On Warm-Starting Neural Network Training, 2020). Running statistics are taken over whole: they
say what the data looks like. The head is new, see `mlmeta.training.weight_sources`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from torch import Tensor, nn

from mlmeta.models.weights import StateDict
from mlmeta.training.checkpoints import capture_state, restore_state
from mlmeta.training.loop import Metrics, Trained, finish_epoch, has_diverged, run_epoch
from mlmeta.training.preparation import Prepared, seed_everything
from mlmeta.training.transferability import Probe, find_head, find_margin, is_better, make_probe
from mlmeta.training.weight_sources import Fit, Source, find_named_source, find_sources

KEPT = 0.6
AUTO = "auto"
SCRATCH = "scratch"


def shrink_and_perturb(model: nn.Module, weights: StateDict, *, kept: float = KEPT) -> dict[str, Tensor]:
    """Return a model's state with an earlier one's weights blended into it.

    Args:
        model: With freshly drawn weights, which are left as they are.
        weights: Tensors of names and shapes that the model has.
        kept: Lambda, the share of the earlier parameters, 0 to 1; 1 copies them.
    """
    parameters = {name for name, _ in model.named_parameters()}
    blended = {key: value.detach().clone() for key, value in model.state_dict().items()}
    for key, theirs in weights.items():
        ours = blended[key]
        theirs = theirs.to(device=ours.device, dtype=ours.dtype)
        blended[key] = kept * theirs + (1 - kept) * ours if key in parameters else theirs.clone()
    return blended


@dataclass(frozen=True)
class Start:
    """What a training may start from.

    Attributes:
        probe: Scores weights of the prepared model.
        sources: Attempts whose weights fit; may be none.
        is_named: Whether the commands name the only one.
    """

    probe: Probe
    sources: Sequence[Source]
    is_named: bool


def look_up_start(prepared: Prepared) -> Start | None:
    """Return what the commands would have a training start from, or None where that is from scratch.

    Args:
        prepared: Not trained yet.

    Raises:
        BadInputError: If an attempt is named that is not there, or whose weights are refused or do not fit.
        MlmetaError: If the tracking store cannot be read.
    """
    commands, task = prepared.commands, prepared.task
    if commands.initial_weights is None:
        return None
    head = find_head(prepared.model, task.input_shape)
    probe = make_probe(prepared.model, head, task, batch_size=commands.batch_size, seed=commands.seed)
    fit = Fit(prepared.model, head, str(commands.model.get("name") or ""), task.pictures.label_names)
    if commands.initial_weights != AUTO:
        return Start(probe, [find_named_source(commands.initial_weights, fit)], is_named=True)
    from mlmeta.history.loading import load_attempts

    return Start(probe, find_sources(task, fit, load_attempts()), is_named=False)


def start_training(prepared: Prepared, trained: Trained, start: Start) -> None:
    """Put weights into a prepared training, and say in one line which and why.

    Args:
        prepared: Not trained yet. Afterwards it has the weights to go on from: those drawn, those of a source, or
            those after one epoch.
        trained: Gets what was decided and, where there was a race, the first epoch.
        start: From `look_up_start`.
    """
    choose = _start_from_named if start.is_named else _start_from_best
    choose(prepared, trained, start.probe, start.sources)
    click.echo(f"mlmeta: initial weights: {trained.initial_weights['reason']}", err=True)


def _start_from_best(prepared: Prepared, trained: Trained, probe: Probe, sources: Sequence[Source]) -> None:
    """Choose the source that carries over best, if one does; it must then win the first epoch."""
    untrained, scores = _score(prepared.model, probe, sources)
    trained.initial_weights = _describe(untrained, sources, scores)
    if not sources:
        return _start_from_scratch(trained, "no earlier attempt has weights that fit this model")
    best = max(range(len(sources)), key=scores.__getitem__)
    source, score = sources[best], scores[best]
    compared = f"{source.name} scores {score:.3f}, the untrained network {untrained:.3f}"
    if not is_better(score, untrained, probe.n):
        margin = find_margin(untrained, probe.n)
        return _start_from_scratch(trained, f"{compared}: not more by {margin:.3f}")
    race = race_against_scratch(prepared, trained, shrink_and_perturb(prepared.model, source.weights, kept=KEPT))
    trained.initial_weights["race"] = json.dumps(race)
    ran = f"{race['measure']} after one epoch {_format(race['warm'])}, from scratch {_format(race['scratch'])}"
    if not race["won"]:
        return _start_from_scratch(trained, f"{compared}, but {ran}")
    _start_from(trained, source, score, f"{compared}; {ran}")


def _start_from_named(prepared: Prepared, trained: Trained, probe: Probe, sources: Sequence[Source]) -> None:
    """Take the only source, which the user chose: no guard, no race."""
    (source,) = sources
    untrained, (score,) = _score(prepared.model, probe, sources)
    trained.initial_weights = _describe(untrained, [source], [score])
    prepared.model.load_state_dict(shrink_and_perturb(prepared.model, source.weights, kept=KEPT))
    compared = f"{source.name} scores {score:.3f}, the untrained network {untrained:.3f}"
    warning = "" if is_better(score, untrained, probe.n) else "; it may do no better than weights from scratch"
    _start_from(trained, source, score, f"as commanded; {compared}{warning}")


def _score(model: nn.Module, probe: Probe, sources: Sequence[Source]) -> tuple[float, list[float]]:
    """Return the scores of the drawn weights and of each source's; the model is as before."""
    drawn = {key: value.detach().clone() for key, value in model.state_dict().items()}
    untrained = probe.score()
    scores = []
    for source in sources:
        model.load_state_dict({**drawn, **source.weights})
        scores.append(probe.score())
    model.load_state_dict(drawn)
    return untrained, scores


def _describe(untrained: float, sources: Sequence[Source], scores: Sequence[float]) -> dict[str, Any]:
    candidates = [
        {
            "run_id": source.run_id,
            "name": source.name,
            "task": source.task,
            "distance": round(source.distance, 4) if math.isfinite(source.distance) else None,
            "overlap": round(source.overlap, 4),
            "score": round(score, 4),
        }
        for source, score in zip(sources, scores, strict=True)
    ]
    return {"untrained": round(untrained, 4), "candidates": json.dumps(candidates, ensure_ascii=False)}


def _start_from_scratch(trained: Trained, reason: str) -> None:
    trained.initial_weights |= {"source": SCRATCH, "reason": f"from scratch: {reason}"}


def _start_from(trained: Trained, source: Source, score: float, reason: str) -> None:
    trained.initial_weights |= {
        "source": source.run_id,
        "name": source.name,
        "overlap": round(source.overlap, 4),
        "transferability": round(score, 4),
        "reason": f"from {source.name}: {reason}",
    }


def race_against_scratch(prepared: Prepared, trained: Trained, warm: StateDict) -> dict[str, Any]:
    """Train one epoch from the drawn weights and one from others, and keep the better as the first epoch.

    Both see the pictures in the same order with the same random numbers, so that a training from scratch goes on as if
    there had been no race. Where both losses stop being finite none is kept.

    Args:
        prepared: Not trained yet; afterwards as after the first epoch.
        trained: Without an epoch; gets the first.
        warm: A whole state of the model.

    Returns:
        ``measure`` (what was compared), ``scratch``, ``warm`` (its values), ``won`` (whether ``warm`` is kept) and
        ``by`` (how much better it was, below 0 where it was worse).
    """
    start = copy.deepcopy(capture_state(prepared, trained))
    scratch = _run_first_epoch(prepared)
    after_scratch = copy.deepcopy(capture_state(prepared, scratch))
    restore_state(prepared, start)
    prepared.model.load_state_dict(warm)
    kept = _run_first_epoch(prepared)
    race = compare_epochs(scratch.curve[0], kept.curve[0])
    if not race["won"]:
        diverged = has_diverged(scratch.curve[0])
        kept = restore_state(prepared, start if diverged else after_scratch)
    trained.curve, trained.kept_epoch, trained.state = kept.curve, kept.kept_epoch, kept.state
    return race


def _run_first_epoch(prepared: Prepared) -> Trained:
    trained = Trained()
    seed_everything(prepared.commands.seed)
    finish_epoch(prepared, trained, run_epoch(prepared, 1))
    return trained


def compare_epochs(scratch: Metrics, warm: Metrics) -> dict[str, Any]:
    """Return which of two epochs is better, see `race_against_scratch`.

    By val_accuracy; where that is equal by val_loss; without validation pictures by train_loss. An epoch whose loss is
    not finite is worse than any other; of two equal ones that from scratch is kept.
    """
    has_validation = "val_accuracy" in scratch and "val_accuracy" in warm
    measure = "train_loss" if not has_validation else "val_accuracy"
    if has_validation and scratch["val_accuracy"] == warm["val_accuracy"]:
        measure = "val_loss"
    by = (warm[measure] - scratch[measure]) * (1 if measure == "val_accuracy" else -1)
    won = not has_diverged(warm) and (has_diverged(scratch) or by > 0)
    return {
        "measure": measure,
        "scratch": _keep_finite(scratch[measure]),
        "warm": _keep_finite(warm[measure]),
        "won": won,
        "by": _keep_finite(by),
    }


def _keep_finite(value: float) -> float | None:
    """Return a number that JSON has, None for what it has not."""
    return round(value, 6) if math.isfinite(value) else None


def _format(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
