from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlmeta.errors import BadInputError
from mlmeta.models.layers import (
    Chain,
    Concat,
    PoolingIndices,
    Residual,
    apply_layer,
    first_tensor,
    forward_pictures,
    make_projection,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    return apply_layer(layer, x, [])


# One layer


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_recurrent_layer_passes_its_outputs_on(name: str) -> None:
    layer = getattr(nn, name)(4, 5, batch_first=True)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(apply(layer, x), layer(x)[0])


def test_an_lstm_cell_passes_its_hidden_state_on() -> None:
    layer, x = nn.LSTMCell(4, 5), torch.randn(2, 4)
    torch.testing.assert_close(apply(layer, x), layer(x)[0])


def test_attention_is_of_the_input_to_itself() -> None:
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
    torch.testing.assert_close(apply(layer, x), layer(x, x, x)[0])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Bilinear(4, 4, 3), (2, 4)),
        (nn.TransformerDecoderLayer(8, 2, 8, batch_first=True, dropout=0.0), (2, 3, 8)),
        (nn.Transformer(8, 2, 1, 1, 8, batch_first=True, dropout=0.0), (2, 3, 8)),
    ],
)
def test_a_layer_of_two_inputs_gets_the_same_twice(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    torch.testing.assert_close(apply(layer, x), layer(x, x))


def test_an_embedding_reads_whole_numbers_of_any_dtype() -> None:
    layer = nn.Embedding(256, 2)
    x = torch.randint(0, 256, (2, 5), dtype=torch.uint8)
    expected = layer.weight[x.long()]
    assert torch.equal(apply(layer, x), expected)
    assert torch.equal(apply(layer, x.float() + 0.25), expected)


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (0, 10), (float("nan"), 2)])
def test_a_number_without_a_row_is_told_with_the_allowed_ones(low: float, high: float) -> None:
    with pytest.raises(BadInputError, match=r"an embedding of 10 rows takes the whole numbers 0 to 9; .* arrive"):
        apply(nn.Embedding(10, 2), torch.tensor([[low, high]]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_unpooling_takes_the_indices_of_the_newest_pooling(n: int) -> None:
    pool, unpool = (getattr(nn, f"Max{kind}{n}d") for kind in ("Pool", "Unpool"))
    x, pooled = torch.randn((2, 3) + (9,) * n), PoolingIndices()
    first = apply_layer(pool(2, return_indices=True), x, pooled)
    second = apply_layer(pool(2, return_indices=True), first, pooled)
    assert [tuple(shape) for _, shape in pooled] == [tuple(x.shape), tuple(first.shape)]
    back = apply_layer(unpool(2), second, pooled)
    assert back.shape == first.shape
    assert set(back[back != 0].tolist()) == set(second.flatten().tolist())
    assert apply_layer(unpool(2), back, pooled).shape == x.shape
    assert pooled == []


def test_unpooling_without_a_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="no MaxPool with return_indices stands before it"):
        apply(nn.MaxUnpool2d(2), torch.randn(1, 1, 2, 2))


@pytest.mark.parametrize("output", [torch.ones(2), (torch.ones(2), None)])
def test_the_first_of_a_tuple_is_passed_on(output: Any) -> None:
    assert torch.equal(first_tensor(output), torch.ones(2))


# Composites


def make_chains(n: int) -> list[Chain]:
    return [Chain(nn.Linear(4, 4), nn.ReLU()) for _ in range(n)]


def test_a_chain_has_the_state_dict_of_a_sequential() -> None:
    chain = Chain(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 4)))
    other = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 4)))
    assert list(chain.state_dict()) == list(other.state_dict())
    other.load_state_dict(chain.state_dict())
    x = torch.randn(5, 2)
    assert torch.equal(chain(x), other(x))


def test_a_chain_of_pooling_and_unpooling_keeps_its_indices_to_itself() -> None:
    chain = Chain(nn.MaxPool2d(2, return_indices=True), Chain(nn.ReLU()), nn.MaxUnpool2d(2))
    assert chain(torch.rand(2, 3, 5, 5)).shape == (2, 3, 5, 5)
    with pytest.raises(ValueError, match="no MaxPool"):
        Chain(nn.MaxPool2d(2, return_indices=True), Chain(nn.MaxUnpool2d(2)))(torch.rand(2, 3, 4, 4))


IN_PLACE: list[list[nn.Module]] = [
    [nn.ReLU(inplace=True)],
    [nn.Identity(), nn.ReLU(inplace=True)],
    [nn.Flatten(), nn.Threshold(0.5, 9.0, inplace=True), nn.Unflatten(1, (3, 4))],
    [nn.Dropout(0.0), nn.Hardtanh(inplace=True), nn.SiLU(inplace=True)],
    [Chain(nn.Identity()), Chain(Chain(nn.ELU(inplace=True)))],
]


@pytest.mark.parametrize("layers", IN_PLACE, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_in_place_changes_no_input(layers: list[nn.Module], training: bool) -> None:
    x = torch.randn(2, 3, 4)
    kept = x.clone()
    expected = nn.Sequential(*layers).train(training)(x.clone())
    for module in (Chain(*layers), Residual(Chain(*layers)), Concat([Chain(*layers), Chain(nn.Identity())])):
        module.train(training)(x)
        assert torch.equal(x, kept)
    assert torch.equal(Chain(*layers)(x), expected)
    assert torch.equal(Residual(Chain(*layers))(x), expected + kept)
    assert torch.equal(Concat([Chain(*layers), Chain(nn.Identity())])(x), torch.cat([expected, kept], dim=1))


def test_in_place_layers_after_weights_are_still_in_place() -> None:
    relu = nn.ReLU(inplace=True)
    seen: list[tuple[int, int]] = []
    relu.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].data_ptr(), output.data_ptr())))
    chain = Chain(nn.Linear(4, 4), relu)
    linear: list[int] = []
    chain[0].register_forward_hook(lambda _module, _inputs, output: linear.append(output.data_ptr()))
    chain(torch.randn(2, 4))
    assert seen == [(linear[0], linear[0])]


def test_a_residual_adds_its_input_or_its_projection() -> None:
    x = torch.randn(5, 4)
    body, projection = make_chains(2)
    assert torch.equal(Residual(body)(x), body(x) + x)
    assert torch.equal(Residual(body, projection)(x), body(x) + projection(x))


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_a_concat_joins_its_branches(dim: int) -> None:
    first, second = make_chains(2)
    x = torch.randn(2, 3, 4)
    assert torch.equal(Concat([first, second], dim)(x), torch.cat([first(x), second(x)], dim))


# Projections


@pytest.mark.parametrize(
    ("arrives", "leaves", "expected"),
    [
        ([8], [8], []),
        ([8], [5], [("Linear", {"in_features": 8, "out_features": 5})]),
        ([7, 16], [7, 5], [("Linear", {"in_features": 16, "out_features": 5})]),
        ([3, 100], [6, 50], [("Conv1d", {"stride": [2]})]),
        ([3, 16, 16], [3, 16, 16], []),
        ([3, 16, 16], [8, 16, 16], [("Conv2d", {"stride": [1, 1]})]),
        ([3, 16, 16], [8, 8, 4], [("Conv2d", {"stride": [2, 4]})]),
        ([3, 15, 15], [8, 8, 8], [("Conv2d", {"stride": [2, 2]})]),
        ([3, 17, 17], [8, 7, 7], [("AdaptiveAvgPool2d", {"output_size": [7, 7]}), ("Conv2d", {"kernel_size": 1})]),
        ([3, 4, 4], [3, 8, 8], [("AdaptiveAvgPool2d", {"output_size": [8, 8]}), ("Conv2d", {"kernel_size": 1})]),
        ([3, 8, 8, 8], [2, 4, 4, 4], [("Conv3d", {"stride": [2, 2, 2]})]),
    ],
)
def test_a_projection_brings_the_input_to_the_shape_of_the_output(
    arrives: list[int], leaves: list[int], expected: list[tuple[str, dict[str, Any]]]
) -> None:
    specs = make_projection(arrives, leaves)
    assert [
        (spec["name"], {key: spec[key] for key in given}) for spec, (_, given) in zip(specs, expected, strict=True)
    ] == expected
    x = torch.randn(2, *arrives)
    for spec in specs:
        x = getattr(nn, spec["name"])(**{key: value for key, value in spec.items() if key != "name"})(x)
    assert list(x.shape[1:]) == leaves


@pytest.mark.parametrize(("arrives", "leaves"), [([3, 8, 8], [192]), ([4], [2, 2]), ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6])])
def test_shapes_of_other_dimensions_cannot_be_added(arrives: list[int], leaves: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot be added"):
        make_projection(arrives, leaves)


# Pictures


class Doubled(nn.Module):
    """Gives twice the mean over the picture, a channel an output, in a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return 2 * x.mean(dim=(2, 3)), None


def test_the_outputs_of_crops_are_averaged() -> None:
    x = torch.randn(2, 5, 3, 4, 4)
    torch.testing.assert_close(forward_pictures(Doubled(), x), 2 * x.mean(dim=(1, 3, 4)))
    torch.testing.assert_close(forward_pictures(Doubled(), x[:, 0]), 2 * x[:, 0].mean(dim=(2, 3)))


def test_whole_numbers_of_pictures_are_made_float() -> None:
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(forward_pictures(Doubled(), x), forward_pictures(Doubled(), x.float()))
