"""Hypothesis strategies that draw valid commands, every name and argument of the catalog among them."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

from mlmeta.commands import catalog

# The older tool wrote these words for true, false and null, and they are read so.
_OLD_WORDS = ("True", "False", "None")
LINES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12).filter(
    lambda text: text not in _OLD_WORDS
)
NUMBERS = st.one_of(st.integers(1, 50), st.floats(0.001, 50))
_JSON = st.one_of(st.none(), st.booleans(), NUMBERS, LINES, st.lists(NUMBERS, max_size=3))
# torch repeats what stands under these arguments, so only these layers may.
_REPEATED = {"encoder_layer": "TransformerEncoderLayer", "decoder_layer": "TransformerDecoderLayer"}


def values(entry: catalog.Entry, name: str, depth: int) -> st.SearchStrategy[Any]:
    """Draw what one argument may be."""
    argument = entry.arguments[name]
    kinds = set(argument.kinds)
    whole = st.integers(1, 50)
    items = whole if "int" in kinds and "float" not in kinds else NUMBERS
    inner = named("layer", depth - 1) if name not in _REPEATED else named("layer", depth - 1, only=_REPEATED[name])
    strategies = {
        "int": whole,
        "float": NUMBERS,
        "bool": st.booleans(),
        "null": st.none(),
        "str": st.sampled_from(argument.choices) if argument.choices else LINES,
        "list": st.lists(items, min_size=1, max_size=4),
        "layer": inner,
        "layers": st.lists(named("layer", depth - 1), min_size=1, max_size=3),
        "schedulers": st.lists(named("scheduler", depth - 1), min_size=1, max_size=3),
        "transforms": transforms(depth - 1),
        "any": _JSON,
    }
    words = catalog.list_placeholders(entry, name)
    return st.one_of(*(strategies[kind] for kind in argument.kinds), *([st.sampled_from(words)] if words else []))


def arguments(entry: catalog.Entry, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Draw all required arguments and some of the others."""
    made = {name: st.deferred(lambda name=name: values(entry, name, depth)) for name in entry.arguments}
    required = {name: made[name] for name, argument in entry.arguments.items() if argument.required}
    return st.fixed_dictionaries(required, optional={k: v for k, v in made.items() if k not in required})


def _entries(role: str, depth: int) -> list[catalog.Entry]:
    found = [catalog.find_entry(role, name) for name in catalog.list_names(role)]
    inside = {"layer", "layers", "schedulers", "transforms"}
    return [e for e in found if depth > 0 or not any(inside & set(a.kinds) for a in e.arguments.values())]


def named(role: str, depth: int = 2, *, only: str = "") -> st.SearchStrategy[dict[str, Any]]:
    """Draw ``{"name": …, argument: …}``."""
    entries = [catalog.find_entry(role, only)] if only else _entries(role, depth)
    return st.sampled_from(entries).flatmap(
        lambda entry: arguments(entry, depth).map(lambda given: {"name": entry.name, **given})
    )


def calls(role: str, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Draw ``{name: {argument: …}}``."""
    if_filter = st.sampled_from(["BLUR", {"name": "GaussianBlur", "radius": 2}, {"filter": "SHARPEN"}])
    return st.sampled_from(_entries(role, depth)).flatmap(
        lambda e: (if_filter if e.name == "filter" else arguments(e, depth)).map(lambda given: {e.name: given})
    )


def transforms(depth: int = 2) -> st.SearchStrategy[Any]:
    """Draw an object or a list of transforms."""
    call = calls("transform", depth)
    step = st.one_of(call, st.sampled_from(["ToTensor", "Grayscale", {"AutoAugment": True}, {"PILToTensor": None}]))
    return st.one_of(call, st.lists(step, max_size=3))


DATA = st.one_of(
    st.fixed_dictionaries(
        {"source": st.sampled_from(["folder", "manifest"]), "path": LINES},
        optional={"test_fraction": st.floats(0, 0.9)},
    ),
    st.fixed_dictionaries(
        {"source": st.just("torchvision"), "name": st.just("CIFAR10")}, optional={"download": st.booleans()}
    ),
    st.fixed_dictionaries(
        {"source": st.just("sample"), "name": st.sampled_from(["digits", "dogs"])},
        optional={"size": st.integers(8, 99)},
    ),
)
MODELS = st.one_of(
    st.lists(named("layer"), min_size=1, max_size=4).map(lambda layers: {"name": "", "layers": layers}),
    st.sampled_from(catalog.list_names("model")).map(lambda name: {"name": name}),
)
MODEL_NAMES = st.text(string.ascii_letters + string.digits + "äß犬_.,+=@()-", max_size=20).map("a{}".format)
LABELS = st.lists(LINES, min_size=2, max_size=5, unique=True)
OPTIMIZERS = named("optimizer").filter(lambda spec: spec.get("lr", 1) > 0)


def stop_rules() -> st.SearchStrategy[dict[str, Any]]:
    """Draw rules by which a training stops."""
    after = {"after": st.floats(0, 1)}
    counted = after | {"min_attempts": st.integers(1, 100)}
    return st.one_of(
        st.fixed_dictionaries({"rule": st.just("median")}, optional=counted),
        st.fixed_dictionaries({"rule": st.just("top_fraction")}, optional=counted | {"fraction": st.floats(0.01, 1)}),
        st.fixed_dictionaries({"rule": st.just("curve")}, optional=after | {"probability": st.floats(0, 1)}),
    )


def train_documents() -> st.SearchStrategy[dict[str, Any]]:
    """Draw train commands."""
    return st.fixed_dictionaries(
        {"model_name": MODEL_NAMES, "model": MODELS},
        optional={
            "$schema": LINES,
            "label_names": LABELS,
            "data": DATA,
            "image_ops": st.lists(calls("image_op", 1), max_size=3),
            "transform": transforms(),
            "target_transform": st.one_of(st.none(), transforms()),
            "criterion": named("criterion"),
            "optimizer": OPTIMIZERS,
            "scheduler": st.one_of(st.none(), named("scheduler")),
            "batch_size": st.integers(1, 1000),
            "n_epoch": st.integers(1, 1000),
            "n_labels": st.just(0),
            "seed": st.integers(0, 2**63 - 1),
            "validation": st.floats(0.01, 0.9),
            "keep": st.sampled_from(["best", "last"]),
            "initial_weights": st.one_of(st.none(), st.sampled_from(["auto", "dogs 3", "0" * 32])),
            "stop": st.one_of(st.none(), stop_rules()),
            "test": st.fixed_dictionaries({}, optional={"limit": st.integers(0, 99), "ids": st.lists(LINES)}),
        },
    )


def test_documents() -> st.SearchStrategy[dict[str, Any]]:
    """Draw test commands."""
    found_by = st.one_of(
        st.fixed_dictionaries({"model_name": MODEL_NAMES}), st.fixed_dictionaries({"run_id": st.just("0f" * 16)})
    )
    rest = st.fixed_dictionaries(
        {},
        optional={
            "label_names": LABELS,
            "data": DATA,
            "transform": transforms(),
            "model": MODELS,
            "criterion": named("criterion"),
            "batch_size": st.integers(1, 1000),
            "limit": st.integers(0, 99),
            "ids": st.lists(LINES),
            "seed": st.integers(0, 99),
        },
    )
    return st.tuples(found_by, rest).map(lambda parts: parts[0] | parts[1])


test_documents.__test__ = False  # type: ignore[attr-defined]  # a strategy, whatever its name says to pytest
