from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from mlmeta import spec_builder
from mlmeta.commands import catalog
from mlmeta.errors import CommandsError
from mlmeta.models.criteria import Criterion
from mlmeta.models.layers import first_tensor
from mlmeta.spec_builder import build_criterion, build_model, output_form, summarize_model

Spec = dict[str, Any]
PICTURE = (3, 16, 16)
N_LABELS = 4
HEAD: list[Spec] = [
    {"name": "Flatten"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True)
class Case:
    """A layer of the catalog: what stands before it, its arguments, and what its "auto" stands for."""

    before: list[Spec]
    arguments: Spec = field(default_factory=dict)
    auto: Spec = field(default_factory=dict)


MAPS: list[Spec] = []  # 3×16×16
VOLUME: list[Spec] = [{"name": "Unflatten", "dim": 3, "unflattened_size": [4, 4]}]  # 3×16×4×4
LINE: list[Spec] = [{"name": "Flatten", "start_dim": 2}]  # 3×256
ROWS: list[Spec] = [{"name": "Flatten", "end_dim": 2}]  # 48×16
FEATURES: list[Spec] = [{"name": "Flatten"}]  # 768
SPACE = {1: LINE, 2: MAPS, 3: VOLUME}


def make_spatial_cases(n: int) -> dict[str, Case]:
    before, channels, features = SPACE[n], {"in_channels": 3}, {"num_features": 3}
    pooling = {"name": f"MaxPool{n}d", "kernel_size": 2, "return_indices": True}
    conv = {"out_channels": 5, "kernel_size": 3, "stride": 2, "padding": 1}
    transposed = {"out_channels": 6, "kernel_size": 3, "stride": 2, "output_padding": 1, "groups": 3}
    cases = {
        "Conv": Case(before, {"in_channels": "auto", **conv}, channels),
        "LazyConv": Case(before, conv),
        "ConvTranspose": Case(before, {"in_channels": "auto", **transposed}, channels),
        "LazyConvTranspose": Case(before, transposed),
        "BatchNorm": Case(before, {"num_features": "auto"}, features),
        "LazyBatchNorm": Case(before),
        "InstanceNorm": Case(before, {"num_features": "auto", "affine": True}, features),
        "LazyInstanceNorm": Case(before),
        "AdaptiveAvgPool": Case(before, {"output_size": 2}),
        "AdaptiveMaxPool": Case(before, {"output_size": 3}),
        "AvgPool": Case(before, {"kernel_size": 2, "ceil_mode": True}),
        "MaxPool": Case(before, {"kernel_size": 3, "stride": 2, "padding": 1}),
        "LPPool": Case(before, {"norm_type": 2.0, "kernel_size": 2}),
        "MaxUnpool": Case([*before, pooling], {"kernel_size": 2}),
        "Dropout": Case(before, {"p": 0.2}),
        "CircularPad": Case(before, {"padding": 1}),
        "ConstantPad": Case(before, {"padding": [1, 2] * n, "value": 0.5}),
        "ReflectionPad": Case(before, {"padding": 1}),
        "ReplicationPad": Case(before, {"padding": 2}),
        "ZeroPad": Case(before, {"padding": 1}),
    }
    return {f"{stem}{n}d": case for stem, case in cases.items()}


def make_recurrent_cases() -> dict[str, Case]:
    whole = {"input_size": "auto", "hidden_size": 6, "num_layers": 2, "bidirectional": True}
    cases = {name: Case(ROWS, whole, {"input_size": 16}) for name in ("RNN", "LSTM", "GRU")}
    cell = Case(FEATURES, {"input_size": "auto", "hidden_size": 6}, {"input_size": 768})
    return cases | {f"{name}Cell": cell for name in cases}


def make_attention_cases() -> dict[str, Case]:
    block = {"d_model": "auto", "nhead": 4, "dim_feedforward": 8}
    norm = {"name": "LayerNorm", "normalized_shape": "auto"}
    encoder = {"encoder_layer": {"name": "TransformerEncoderLayer", **block}, "num_layers": 2, "norm": norm}
    decoder = {"decoder_layer": {"name": "TransformerDecoderLayer", **block}, "num_layers": 2, "norm": None}
    first = {"batch_first": True}  # mlmeta's own; without it torch warns in making a Transformer
    return {
        "MultiheadAttention": Case(ROWS, {"embed_dim": "auto", "num_heads": 4}, {"embed_dim": 16}),
        "TransformerEncoderLayer": Case(ROWS, block, {"d_model": 16}),
        "TransformerDecoderLayer": Case(ROWS, block, {"d_model": 16}),
        "TransformerEncoder": Case(ROWS, encoder),
        "TransformerDecoder": Case(ROWS, decoder),
        "Transformer": Case(
            ROWS, {**block, "num_encoder_layers": 1, "num_decoder_layers": 2}, {"d_model": 16, **first}
        ),
    }


ELEMENTWISE = (
    "AlphaDropout CELU Dropout ELU FeatureAlphaDropout GELU Hardshrink Hardsigmoid Hardswish Hardtanh Identity "
    "LeakyReLU LogSigmoid Mish RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax2d Softplus Softshrink Softsign Tanh "
    "Tanhshrink"
).split()
WIDE: Spec = {"name": "Conv2d", "in_channels": "auto", "out_channels": 8, "kernel_size": 1}
INNER: list[Spec] = [{"name": "Conv2d", "in_channels": "auto", "out_channels": 4, "kernel_size": 3, "padding": 1}]
CASES: dict[str, Case] = {
    **make_spatial_cases(1),
    **make_spatial_cases(2),
    **make_spatial_cases(3),
    **make_recurrent_cases(),
    **make_attention_cases(),
    **{name: Case(MAPS) for name in ELEMENTWISE},
    **{name: Case(FEATURES, auto={"dim": 1}) for name in ("Softmax", "Softmin", "LogSoftmax")},
    "Bilinear": Case(
        FEATURES,
        {"in1_features": "auto", "in2_features": "auto", "out_features": 2},
        {"in1_features": 768, "in2_features": 768},
    ),
    "ChannelShuffle": Case([WIDE], {"groups": 2}),
    "Concat": Case(MAPS, {"layers": [*INNER, {"name": "ReLU"}]}),
    "CrossMapLRN2d": Case(MAPS, {"size": 3}),
    "Embedding": Case(FEATURES, {"num_embeddings": 256, "embedding_dim": 2}),
    "EmbeddingBag": Case(FEATURES, {"num_embeddings": 256, "embedding_dim": 5}),
    "Flatten": Case(MAPS),
    "Fold": Case(
        [{"name": "Unfold", "kernel_size": 2, "stride": 2}], {"output_size": [16, 16], "kernel_size": 2, "stride": 2}
    ),
    "FractionalMaxPool2d": Case(MAPS, {"kernel_size": 2, "output_ratio": 0.5}),
    "FractionalMaxPool3d": Case(VOLUME, {"kernel_size": 2, "output_size": 2}),
    "GLU": Case(MAPS, {"dim": 2}),
    "GroupNorm": Case(MAPS, {"num_groups": 3, "num_channels": "auto"}, {"num_channels": 3}),
    "LayerNorm": Case(MAPS, {"normalized_shape": "auto"}, {"normalized_shape": [3, 16, 16]}),
    "LazyLinear": Case(FEATURES, {"out_features": 7}),
    "Linear": Case(FEATURES, {"in_features": "auto", "out_features": 7}, {"in_features": 768}),
    "LocalResponseNorm": Case(MAPS, {"size": 2}),
    "PReLU": Case(MAPS, {"num_parameters": "auto"}, {"num_parameters": 3}),
    "PixelShuffle": Case([WIDE], {"upscale_factor": 2}),
    "PixelUnshuffle": Case(MAPS, {"downscale_factor": 2}),
    "RMSNorm": Case(ROWS, {"normalized_shape": "auto"}, {"normalized_shape": [16]}),
    "Residual": Case(MAPS, {"layers": INNER}),
    "Sequential": Case(MAPS, {"layers": INNER}),
    "Threshold": Case(MAPS, {"threshold": 0.1, "value": 20.0}),
    "Unflatten": Case(FEATURES, {"dim": 1, "unflattened_size": [12, -1]}),
    "Unfold": Case(MAPS, {"kernel_size": [2, 3], "stride": 2}),
    "Upsample": Case(MAPS, {"scale_factor": 2, "mode": "bilinear"}),
    "UpsamplingBilinear2d": Case(MAPS, {"size": 20}),
    "UpsamplingNearest2d": Case(MAPS, {"scale_factor": 2}),
}


def case_layers(name: str) -> list[Spec]:
    case = CASES[name]
    layers = [*case.before, {"name": name, **case.arguments}, *HEAD]
    return list(json.loads(json.dumps(layers)))


def build(layers: Sequence[Spec], *, shape: Sequence[int] = PICTURE, n_labels: int = N_LABELS) -> nn.Module:
    return build_model({"layers": layers}, n_labels=n_labels, input_shape=shape)


def make_batch(n: int = 3, *, whole_numbers: bool = False) -> Tensor:
    return torch.randint(0, 256, (n, *PICTURE)).float() if whole_numbers else torch.randn(n, *PICTURE)


def batch_for(name: str) -> Tensor:
    return make_batch(whole_numbers=name.startswith("Embedding"))


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Find the module of a path in the commands: model.layers.2.layers.0."""
    found: Any = model
    for key in path.split(".")[2:]:
        if key == "layers":
            found = found.body if hasattr(found, "body") else [b[0] for b in getattr(found, "branches", [])] or found
        elif key == "projection":
            found = found.projection
        else:
            found = found[int(key)]
    assert isinstance(found, nn.Module)
    return found


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layer_by_hand(name: str) -> nn.Module:
    """The layer of a case made with torch alone, lazy ones made whole by what arrives."""
    case = CASES[name]
    block = {"d_model": 16, "nhead": 4, "dim_feedforward": 8, "batch_first": True}
    if name == "TransformerEncoder":
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(**block), 2, nn.LayerNorm(16))
    if name == "TransformerDecoder":
        return nn.TransformerDecoder(nn.TransformerDecoderLayer(**block), 2)
    layer: nn.Module = getattr(nn, name)(**{**case.arguments, **case.auto})
    if name.startswith("Lazy"):
        before = nn.Sequential(
            *[getattr(nn, s["name"])(**{k: v for k, v in s.items() if k != "name"}) for s in case.before]
        )
        layer(before(make_batch()))
    return layer


LAYERS = catalog.list_names("layer")
TORCH_LAYERS = [name for name in LAYERS if name not in ("Sequential", "Residual", "Concat")]


def test_every_layer_of_the_catalog_has_a_case_with_auto_wherever_it_may_stand() -> None:
    assert CASES.keys() == set(LAYERS)
    written = {name: {key for key, value in case.arguments.items() if value == "auto"} for name, case in CASES.items()}
    possible = {name: catalog.find_entry("layer", name).arguments.keys() & catalog.AUTO_ARGUMENTS for name in LAYERS}
    assert written == possible


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gives_the_traced_shapes_and_gradients_to_all_its_weights(name: str) -> None:
    rows = summarize_model({"layers": case_layers(name)}, n_labels=N_LABELS, input_shape=PICTURE)
    model = build(case_layers(name))
    seen: dict[str, tuple[int, ...]] = {}
    for row in rows:
        module_at(model, row.path).register_forward_hook(
            lambda _module, _inputs, output, path=row.path: seen.update({path: tuple(first_tensor(output).shape)})
        )
    outputs = model(batch_for(name))
    assert outputs.shape == (3, N_LABELS)
    assert seen == {row.path: (3, *row.output_shape) for row in rows}
    assert [count(module_at(model, row.path)) for row in rows] == [row.n_parameters for row in rows]
    assert sum(row.n_parameters for row in rows) == count(model)
    outputs.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("name", TORCH_LAYERS)
def test_a_layer_is_the_one_that_torch_makes_of_the_concrete_arguments(name: str) -> None:
    layer = module_at(build(case_layers(name)), f"model.layers.{len(CASES[name].before)}")
    expected = layer_by_hand(name)
    assert type(layer) is type(expected)
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in layer.state_dict().items()} == shapes
    assert layer.extra_repr().replace(", batch_first=True", "") == expected.extra_repr()


@pytest.mark.parametrize("name", LAYERS)
def test_a_picture_does_not_change_the_output_of_another(name: str) -> None:
    model = build(case_layers(name)).eval()
    batch = batch_for(name)
    changed = torch.cat([batch_for(name)[:1], batch[1:]])
    torch.manual_seed(1)  # FractionalMaxPool draws its regions, in eval mode too
    before = model(batch)
    torch.manual_seed(1)
    after = model(changed)
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_leaves_the_pictures_as_they_were(name: str) -> None:
    layers = case_layers(name)
    layer = layers[len(CASES[name].before)]
    if "inplace" in catalog.find_entry("layer", name).arguments:
        layer["inplace"] = True
    model, batch = build(layers), batch_for(name)
    kept = batch.clone()
    model(batch).sum().backward()
    assert torch.equal(batch, kept)


# Weights and composites


CNN: list[Spec] = [
    {"name": "Conv2d", "in_channels": 3, "out_channels": 6, "kernel_size": 5},
    {"name": "BatchNorm2d", "num_features": "auto"},
    {"name": "ReLU", "inplace": True},
    {"name": "MaxPool2d", "kernel_size": 2, "stride": 2},
    {"name": "Flatten", "start_dim": 1},
    {"name": "Linear", "in_features": "auto", "out_features": 10},
    {"name": "Linear", "in_features": 10, "out_features": "n_labels"},
]


def cnn_by_hand() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 2),
        nn.Flatten(1),
        nn.Linear(216, 10),
        nn.Linear(10, N_LABELS),
    )


def test_weights_are_those_of_a_sequential_made_by_hand_after_the_same_seed() -> None:
    torch.manual_seed(5)
    model = build(CNN)
    torch.manual_seed(5)
    expected = cnn_by_hand()
    assert list(model.state_dict()) == list(expected.state_dict())
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    batch = make_batch()
    torch.testing.assert_close(model(batch), expected(batch), rtol=0, atol=0)


def test_a_state_dict_goes_from_a_sequential_into_the_model_and_back() -> None:
    model, expected, batch = build(CNN).eval(), cnn_by_hand().eval(), make_batch()
    model.load_state_dict(expected.state_dict())
    torch.testing.assert_close(model(batch), expected(batch), rtol=0, atol=0)
    expected.load_state_dict(build(CNN).state_dict())


@pytest.mark.parametrize("model", [{"layers": CNN}, {"name": "squeezenet1_1"}])
def test_a_summary_draws_no_random_numbers(model: Spec) -> None:
    state = torch.get_rng_state()
    summarize_model(model, n_labels=N_LABELS, input_shape=(3, 64, 64) if "name" in model else PICTURE)
    assert torch.equal(torch.get_rng_state(), state)


def test_older_string_values_and_labels_in_lists_are_read() -> None:
    layers = [
        {"name": "Conv2d", "in_channels": "auto", "out_channels": 8, "kernel_size": "(3, 5)", "padding": "'same'"},
        {"name": "AdaptiveAvgPool2d", "output_size": ["n_labels", None]},
        {"name": "Upsample", "scale_factor": 2, "mode": "'nearest'"},
        *HEAD,
    ]
    model = build(layers)
    assert module_at(model, "model.layers.0").kernel_size == (3, 5)
    assert summarize_model({"layers": layers}, n_labels=N_LABELS, input_shape=PICTURE)[1].output_shape == (8, 4, 16)


def nested(depth: int) -> list[Spec]:
    inside = nested(depth - 1) if depth else INNER
    return [
        {"name": "Residual", "layers": [*inside, {"name": "ReLU", "inplace": True}]},
        {"name": "Concat", "layers": [{"name": "ReLU", "inplace": True}, {"name": "Sequential", "layers": inside}]},
    ]


def test_composites_lie_in_each_other_and_train() -> None:
    layers = [*nested(2), {"name": "MaxPool2d", "kernel_size": 4}, *HEAD]
    model, batch = build(layers), make_batch(8)
    labels = torch.arange(8) % N_LABELS
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    rows = summarize_model({"layers": layers}, n_labels=N_LABELS, input_shape=PICTURE)
    assert sum(row.n_parameters for row in rows) == count(model)


# torchvision's models


def picture_size(name: str) -> int:
    return 299 if name == "inception_v3" else 224


def published_counts(name: str) -> set[int]:
    return {weights.meta["num_params"] for weights in torchvision.models.get_model_weights(name)}


@pytest.mark.parametrize("name", catalog.list_names("model"))
def test_the_summary_of_a_torchvision_model_has_the_published_number_of_parameters(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(2**40))  # the largest would not fit a small machine
    size = picture_size(name)
    rows = summarize_model({"name": name}, n_labels=1000, input_shape=(3, size, size))
    assert math.prod(rows[-1].output_shape) == 1000
    # 3,326,696 of Inception's are an auxiliary classifier that is left out.
    without = 3_326_696 if name == "inception_v3" else 0
    assert sum(row.n_parameters for row in rows) in {n - without for n in published_counts(name)}


SMALL_MODELS = ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet", "inception_v3", "vit_b_32"]
WITHOUT_AUXILIARY = {"googlenet": {"aux_logits": False, "init_weights": True}}
WITHOUT_AUXILIARY["inception_v3"] = WITHOUT_AUXILIARY["googlenet"]


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_torchvision_model_is_built_with_a_head_for_the_labels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in ("trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "normal_"):
        # Drawing 90 million weights takes seconds, and what they are is not looked at here.
        monkeypatch.setattr(nn.init, draw, lambda tensor, *_args, **_kwargs: tensor)
    size = picture_size(name)
    model = build_model({"name": name}, n_labels=5, input_shape=(3, size, size))
    expected = torchvision.models.get_model(name, num_classes=5, **WITHOUT_AUXILIARY.get(name, {}))
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    rows = summarize_model({"name": name}, n_labels=5, input_shape=(3, size, size))
    assert sum(row.n_parameters for row in rows) == count(expected)


def test_a_torchvision_model_has_the_weights_that_its_builder_draws() -> None:
    torch.manual_seed(3)
    model = build_model({"name": "squeezenet1_1"}, n_labels=5, input_shape=(3, 64, 64))
    torch.manual_seed(3)
    expected = torchvision.models.squeezenet1_1(num_classes=5)
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_a_torchvision_model_trains_a_step(name: str) -> None:
    model = build_model({"name": name}, n_labels=3, input_shape=(3, 64, 64))
    criterion = build_criterion({"name": "CrossEntropyLoss"}, n_labels=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    outputs = first_tensor(model(torch.randn(2, 3, 64, 64)))
    assert outputs.shape == (2, 3)
    criterion(outputs, torch.tensor([0, 2])).backward()
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("name", "size"), [("vit_b_32", 64), ("maxvit_t", 448), ("swin_t", 50)])
def test_a_torchvision_model_is_fitted_to_the_size_of_the_pictures(name: str, size: int) -> None:
    rows = summarize_model({"name": name}, n_labels=3, input_shape=(3, size, size))
    assert rows[-1].output_shape == (3,) or rows[-1].name == "(own parameters)"


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("resnet18", (1, 64, 64), r"resnet18 takes pictures of 3 channels; 1×64×64 arrives .*convert.*RGB"),
        ("vit_b_32", (3, 50, 50), r"vit_b_32 cannot be built for 3×50×50 pictures. torch says: .*indivisible"),
        ("vit_b_32", (3, 64, 32), r"3×64×32 pictures do not fit vit_b_32. torch says: .*height"),
        ("alexnet", (3, 16, 16), r"3×16×16 pictures do not fit alexnet"),
    ],
)
@pytest.mark.parametrize("make", [summarize_model, build_model])
def test_pictures_that_do_not_fit_a_torchvision_model_are_refused(
    make: Any, name: str, shape: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(CommandsError, match=said) as caught:
        make({"name": name}, n_labels=3, input_shape=shape)
    assert [fault.path for fault in caught.value.faults] == ["model.name"]


def test_a_torchvision_model_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(2**30))
    with pytest.raises(CommandsError, match=r"138,357,544 parameters up to vgg16 .* 2\.6 GiB to train; .* 1\.0 GiB"):
        build_model({"name": "vgg16"}, n_labels=1000, input_shape=(3, 224, 224))


# Criteria


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "log_probabilities"])
@pytest.mark.parametrize("name", catalog.list_names("criterion"))
def test_every_criterion_is_built_with_its_defaults_and_gives_gradients(name: str, outputs: str) -> None:
    criterion = build_criterion({"name": name}, n_labels=3, outputs=outputs)
    given = torch.randn(5, 3)
    values = {"logits": given, "probabilities": given.softmax(1), "log_probabilities": given.log_softmax(1)}[outputs]
    values = values.clone().requires_grad_()
    loss = criterion(values, torch.tensor([0, 1, 2, 0, 1]))
    loss.backward()
    assert isinstance(criterion, Criterion)
    assert isinstance(criterion.loss, getattr(nn, name))
    assert loss.shape == ()
    assert bool(loss.isfinite())
    assert bool(values.grad.isfinite().all())  # type: ignore[union-attr]  # set by backward


def weighted_criteria() -> list[tuple[str, str]]:
    names = catalog.list_names("criterion")
    arguments = {name: catalog.find_entry("criterion", name).arguments for name in names}
    return [(name, key) for name in names for key in ("weight", "pos_weight") if key in arguments[name]]


@pytest.mark.parametrize("weights", [[1, 0.5, 2.0], "(1, 0.5, 2.0)"])
@pytest.mark.parametrize(("name", "argument"), weighted_criteria())
def test_weights_of_labels_are_a_list(name: str, argument: str, weights: object) -> None:
    criterion = build_criterion({"name": name, argument: weights}, n_labels=3)
    assert torch.equal(getattr(criterion.loss, argument), torch.tensor([1, 0.5, 2.0]))
    assert bool(criterion(torch.randn(3, 3), torch.arange(3)).isfinite())


def test_weights_enter_the_loss_as_torch_says() -> None:
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    criterion = build_criterion({"name": "CrossEntropyLoss", "weight": [1, 2, 3], "label_smoothing": 0.1}, n_labels=3)
    expected = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)(outputs, labels)
    torch.testing.assert_close(criterion(outputs, labels), expected)


@pytest.mark.parametrize(
    ("criterion", "path", "said"),
    [
        ({"name": "CrossEntropyLoss", "weight": [1, 2]}, "criterion", "weight has 2 entries.*; 3 are wanted"),
        ({"name": "CrossEntropyLoss", "weight": []}, "criterion", "weight has 0 entries"),
        ({"name": "CrossEntropyLoss", "weight": [1, "a", 2]}, "criterion.weight", "must be a list of numbers"),
        ({"name": "CrossEntropyLoss", "weight": [[1], [2], [3]]}, "criterion.weight", "must be a list of numbers"),
        ({"name": "NLLLoss", "weight": [1, -1, 2]}, "criterion.weight", "must be a list of numbers of 0 or above"),
        ({"name": "NLLLoss", "weight": 2.0}, "criterion.weight", "must be a list of numbers"),
        ({"name": "CrossEntropyLoss", "label_smoothing": 2.0}, "criterion", "label_smoothing must be between 0.0 and"),
        ({"name": "CrossEntropyLoss", "reduction": "none"}, "criterion", "reduction must be mean or sum"),
        ({"name": "MultiMarginLoss", "p": 3}, "criterion", "MultiMarginLoss refuses its arguments: only p == 1 and"),
        ({"name": "HuberLoss", "delta": -1.0}, "criterion", "HuberLoss refuses its arguments: .*delta"),
    ],
)
def test_a_criterion_that_cannot_be_used_is_refused(criterion: Spec, path: str, said: str) -> None:
    with pytest.raises(CommandsError, match=said) as caught:
        build_criterion(criterion, n_labels=3)
    assert [fault.path for fault in caught.value.faults] == [path]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["Linear"], "logits"),
        (["Linear", "Sigmoid"], "probabilities"),
        (["Linear", "Softmax", "Flatten"], "probabilities"),
        (["Softmax2d", "Flatten", "Identity"], "probabilities"),
        (["Linear", "LogSoftmax"], "log_probabilities"),
        (["LogSoftmax", "Linear"], "logits"),
        ([], "logits"),
    ],
)
def test_the_last_layer_says_what_the_outputs_are(layers: list[str], expected: str) -> None:
    specs = [{"name": name} for name in layers]
    assert output_form({"layers": specs}) == expected
    assert output_form({"layers": [{"name": "Sequential", "layers": specs}]}) == expected


def test_a_torchvision_model_gives_logits() -> None:
    assert output_form({"name": "resnet18"}) == "logits"


def test_the_parts_that_other_modules_build_can_be_had_here() -> None:
    assert all(callable(getattr(spec_builder, name)) for name in spec_builder.__all__)
