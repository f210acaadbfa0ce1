"""Valid command documents, and how hypothesis breaks them: keys, values, places, layers and depth."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import strategies
from hypothesis import strategies as st

from mlmeta.commands import catalog

Place = tuple[Any, Any]
ROLES = ("criterion", "optimizer", "scheduler")

HEAD: list[dict[str, Any]] = [
    {"name": "Flatten"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]
CONV = [
    {"name": "Conv2d", "in_channels": "auto", "out_channels": 4, "kernel_size": 3, "padding": 1},
    {"name": "BatchNorm2d", "num_features": "auto"},
    {"name": "ReLU", "inplace": True},
    {"name": "MaxPool2d", "kernel_size": 2, "stride": 2},
    *HEAD,
]
RESIDUAL = [
    {"name": "Residual", "layers": [{"name": "Conv2d", "in_channels": "auto", "out_channels": 6, "kernel_size": 3}]},
    {
        "name": "Concat",
        "layers": [
            {"name": "Conv2d", "in_channels": "auto", "out_channels": 2, "kernel_size": 1},
            {"name": "Sequential", "layers": [{"name": "GELU"}, {"name": "Dropout2d", "p": 0.1}]},
        ],
    },
    {"name": "AdaptiveAvgPool2d", "output_size": 1},
    *HEAD,
]
ROWS = [
    {"name": "Flatten", "end_dim": 2},
    {"name": "LSTM", "input_size": "auto", "hidden_size": 6, "num_layers": 2},
    {"name": "MultiheadAttention", "embed_dim": 6, "num_heads": 2},
    {"name": "LayerNorm", "normalized_shape": "auto"},
    *HEAD,
]
PROBABILITIES = [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": "n_labels"}, {"name": "LogSoftmax"}]
RANDOM = {
    "RandomCrop": {"size": 6, "padding": 1},
    "RandomHorizontalFlip": {"p": 0.5},
    "ColorJitter": {"brightness": 0.2, "hue": 0.1},
    "RandomApply": {"transforms": [{"GaussianBlur": {"kernel_size": 3}}], "p": 0.3},
    "ToTensor": True,
    "Normalize": {"mean": [0.5, 0.5, 0.5], "std": "(0.5, 0.5, 0.5)"},
    "RandomErasing": {"p": 0.5},
}
OPERATIONS = [
    {"convert": {"mode": "'RGB'"}},
    {"resize": {"size": [9, 7], "resample": "Image.ANTIALIAS"}},
    {"filter": {"name": "GaussianBlur", "radius": 1}},
    {"rotate": {"angle": 10, "expand": True}},
    {"crop": {"box": [0, 0, 8, 8]}},
]
CHAINED = {
    "name": "SequentialLR",
    "schedulers": [{"name": "LinearLR", "total_iters": 2}, {"name": "CosineAnnealingLR"}],
    "milestones": [2],
}


def _document(layers: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
    return {
        "model_name": "toy",
        "label_names": ["red", "green", "blue"],
        "data": {"source": "folder", "path": "pictures", "test_fraction": 0.3},
        "transform": {"ToTensor": True},
        "model": {"name": "", "layers": layers},
        "criterion": {"name": "CrossEntropyLoss", "label_smoothing": 0.1},
        "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9},
        "scheduler": {"name": "ReduceLROnPlateau", "mode": "min"},
        "batch_size": 4,
        "n_epoch": 3,
        "seed": 1,
        "validation": 0.2,
        "test": {"limit": 3, "ids": []},
        **others,
    }


DOCUMENTS: dict[str, dict[str, Any]] = {
    "convolutions": _document(CONV, image_ops=OPERATIONS),
    "residuals": _document(
        RESIDUAL,
        transform=RANDOM,
        optimizer={"name": "AdamW", "lr": 0.01, "betas": "(0.9, 0.99)", "weight_decay": 0.01},
        scheduler={"name": "OneCycleLR", "max_lr": 0.1},
    ),
    "rows": _document(
        ROWS,
        criterion={"name": "MultiMarginLoss", "p": 2, "margin": 1.5, "weight": [1, 2, 3]},
        optimizer={"name": "Rprop", "lr": 0.01, "etas": [0.5, 1.2]},
        scheduler=CHAINED,
    ),
    "probabilities": _document(
        PROBABILITIES,
        target_transform={"ToTensor": True, "Normalize": {"mean": [0], "std": [2]}},
        criterion={"name": "KLDivLoss", "reduction": "batchmean"},
        optimizer={"name": "LBFGS", "lr": 0.1, "max_iter": 3, "history_size": 4},
        scheduler={"name": "CyclicLR", "base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    ),
    "samples": _document(
        [{"name": "FiveCrop"}, *HEAD][1:],
        label_names=[],
        data={"source": "sample", "name": "digits", "n_per_label": 4},
        transform=[{"FiveCrop": {"size": 6}}, "ToTensor"],
        criterion={"name": "TripletMarginLoss", "margin": 0.5},
        optimizer={"name": "Adadelta", "lr": 1.0},
        scheduler=None,
    ),
}

EXTREMES: list[Any] = [
    0, 1, -1, 2, 3, 255, 1000, 65_536, 2**31, 2**40, 2**63, 10**30, -(10**30), 0.0, -0.0, 0.5, 1.5, -2.5, 1e-30, 1e30,
    1e308, -1e308, 5e-324, True, False, None, "", " ", "x", "auto", "n_labels", "NaN", "nan", "Infinity", "-1", "'RGB'",
    "(1, 2)", "(3)", "[1, 2, 3]", "Image.NEAREST", "None", "True", "2 * 3", "__import__('os').abort()", "../../etc",
    "x" * 5_000, "\0", "\ud800", "mean", "sum", "none", "replicate", "same", "valid", "min", "max", [], {}, [[]], [1],
    [1, 1], [2, 3], [1, 2, 3], [-1, -1], [1e308, 1], [None], ["a"], [True, False], [1, [2, [3]]], {"name": "ReLU"},
    {"": ""}, {"name": None}, [{"name": "Linear"}], [0.1] * 50, [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
]  # fmt: skip
KEYS = [
    "", "name", "layers", "weights", "lr", "dim", "padding", "bias", "kernel_size", "p", "size", "data", "self",
    "__class__", "transforms", "schedulers", "device", "dtype", "params", "reduction", "momentum", "foreach", "fused",
    "capturable", "differentiable", "maximize", "inplace", "batch_first", "x" * 300, "\n", "a.b",
]  # fmt: skip


def list_places(value: Any, *, depth: int = 0) -> Iterator[Place]:
    """Yield (container, key) of every value that stands in a document, down to the sixtieth level."""
    if isinstance(value, dict | list) and depth < 60:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from list_places(value[key], depth=depth + 1)


def _replacements() -> st.SearchStrategy[Any]:
    numbers = st.one_of(st.integers(-10, 70), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
    return st.one_of(
        st.sampled_from(EXTREMES),
        numbers,
        st.lists(numbers, max_size=4),
        st.text(max_size=8),
        strategies.named("layer"),
        st.sampled_from(ROLES).flatmap(strategies.named),
        strategies.calls("transform", 2),
        strategies.calls("image_op", 1),
    )


REPLACEMENTS = _replacements()


def _find_lists(document: Any, name: str) -> list[list[Any]]:
    return [c[k] for c, k in list_places(document) if k == name and isinstance(c[k], list)]


def _replace(draw: Any, container: Any, key: Any, document: Any) -> None:
    container[key] = copy.deepcopy(draw(REPLACEMENTS))


def _delete(draw: Any, container: Any, key: Any, document: Any) -> None:
    del container[key]


def _rename(draw: Any, container: Any, key: Any, document: Any) -> None:
    if isinstance(container, dict):
        container[draw(st.sampled_from(KEYS))] = container.pop(key)


def _add(draw: Any, container: Any, key: Any, document: Any) -> None:
    value = copy.deepcopy(draw(REPLACEMENTS))
    if isinstance(container, dict):
        container[draw(st.sampled_from(KEYS))] = value
    else:
        container.insert(key, value)


def _swap(draw: Any, container: Any, key: Any, document: Any) -> None:
    other, other_key = draw(st.sampled_from(list(list_places(document))))
    value = copy.deepcopy(other[other_key])
    other[other_key] = copy.deepcopy(container[key])
    container[key] = value


def _repeat(draw: Any, container: Any, key: Any, document: Any) -> None:
    if isinstance(container, list):
        container[key:key] = [copy.deepcopy(container[key]) for _ in range(draw(st.sampled_from([1, 2, 30, 90])))]


def _nest(draw: Any, container: Any, key: Any, document: Any) -> None:
    wrap = draw(st.sampled_from(["list", "object", "Sequential", "Residual", "RandomApply"]))
    for _ in range(draw(st.sampled_from([1, 3, 15, 90]))):
        inner = container[key]
        listing = inner if isinstance(inner, list) else [inner]
        container[key] = {
            "list": [inner],
            "object": {"name": inner},
            "RandomApply": {"RandomApply": {"transforms": listing}},
        }.get(wrap, {"name": wrap, "layers": listing})


def _splice_layer(draw: Any, container: Any, key: Any, document: Any) -> None:
    lists = _find_lists(document, "layers")
    if lists:
        chosen = draw(st.sampled_from(lists))
        chosen.insert(draw(st.integers(0, len(chosen))), copy.deepcopy(draw(strategies.named("layer"))))


def _odd_argument(draw: Any, container: Any, key: Any, document: Any) -> None:
    """Give a named object an argument that it has, with a value that it may not take."""
    named = [c[k] for c, k in list_places(document) if isinstance(c[k], dict) and isinstance(c[k].get("name"), str)]
    if not named:
        return
    chosen = draw(st.sampled_from(named))
    for role in ("layer", *ROLES):
        if chosen["name"] in catalog.list_names(role):
            names = sorted(catalog.find_entry(role, chosen["name"]).arguments)
            if names:
                chosen[draw(st.sampled_from(names))] = copy.deepcopy(draw(REPLACEMENTS))


def _typed_argument(draw: Any, container: Any, key: Any, document: Any) -> None:
    """Give a named object an argument of the right kind, whatever the rest of the document wants."""
    named = [c[k] for c, k in list_places(document) if isinstance(c[k], dict) and isinstance(c[k].get("name"), str)]
    roles = [(o, r) for o in named for r in ("layer", *ROLES) if o["name"] in catalog.list_names(r)]
    if not roles:
        return
    chosen, role = draw(st.sampled_from(roles))
    entry = catalog.find_entry(role, chosen["name"])
    if entry.arguments:
        argument = draw(st.sampled_from(sorted(entry.arguments)))
        chosen[argument] = copy.deepcopy(draw(strategies.values(entry, argument, 1)))


def _perturb(draw: Any, container: Any, key: Any, document: Any) -> None:
    """Change a number to another one of its kind."""
    numbers = [(c, k) for c, k in list_places(document) if type(c[k]) in (int, float)]
    if numbers:
        at, where = draw(st.sampled_from(numbers))
        whole = isinstance(at[where], int)
        kind = [value for value in EXTREMES if type(value) is (int if whole else float)]
        at[where] = draw(st.one_of(st.integers(-2, 40) if whole else st.floats(-2, 40), st.sampled_from(kind)))


def _other_part(draw: Any, container: Any, key: Any, document: Any) -> None:
    """Put a part in its place that hypothesis draws from the whole catalog."""
    part = draw(st.sampled_from([*ROLES, "transform", "image_ops", "target_transform"]))
    if part in ROLES:
        document[part] = copy.deepcopy(draw(strategies.named(part)))
    elif part == "image_ops":
        document[part] = copy.deepcopy(draw(st.lists(strategies.calls("image_op", 1), max_size=3)))
    else:
        document[part] = copy.deepcopy(draw(strategies.transforms()))


MUTATIONS = (
    _replace, _delete, _rename, _add, _swap, _repeat, _nest, _splice_layer, _odd_argument, _odd_argument,
    _typed_argument, _typed_argument, _typed_argument, _perturb, _perturb, _other_part, _other_part,
)  # fmt: skip


@st.composite
def mutated(draw: Any, document: dict[str, Any]) -> dict[str, Any]:
    """Draw a document with one to four things changed, mostly one or two."""
    broken: dict[str, Any] = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 2, 3, 4]))):
        places = list(list_places(broken))
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        draw(st.sampled_from(MUTATIONS))(draw, container, key, broken)
    return broken
