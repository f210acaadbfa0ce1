"""Proposals: what counts as the same training, and what becomes of a winner's model on other pictures."""

from __future__ import annotations

import copy
from typing import Any

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.tuning.proposals import digest_training, make_commands, take_training

CONVOLUTION = {"name": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3}


def with_convolution(document: dict[str, Any], channels: int | str) -> dict[str, Any]:
    layers = [CONVOLUTION | {"in_channels": channels}, *document["model"]["layers"]]
    return take_training(parse_train_commands(document | {"model": {"layers": layers}}))


def test_trainings_are_the_same_whatever_channels_their_pictures_have(toy_document: dict[str, Any]) -> None:
    colour, grey, fitted = (with_convolution(toy_document, channels) for channels in (3, 1, "auto"))
    assert digest_training(colour) == digest_training(grey) == digest_training(fitted)
    assert digest_training(colour) != digest_training(take_training(parse_train_commands(toy_document)))
    assert digest_training(colour) != digest_training(colour | {"batch_size": 1})


def test_no_scheduler_is_the_same_as_none_named(toy_document: dict[str, Any]) -> None:
    training = take_training(parse_train_commands(toy_document | {"scheduler": None}))
    without = {key: value for key, value in training.items() if key != "scheduler"}
    assert digest_training(training) == digest_training(without)


def test_a_winner_is_fitted_to_the_channels_of_the_new_pictures(toy_document: dict[str, Any]) -> None:
    base, training = parse_train_commands(toy_document), with_convolution(toy_document, 1)
    before = copy.deepcopy(training)
    commands = make_commands(base, training, "next")
    assert commands.model["layers"][0] == CONVOLUTION | {"in_channels": "auto"}
    assert training == before
    assert (commands.model_name, commands.data, commands.n_epoch) == ("next", base.data, base.n_epoch)
