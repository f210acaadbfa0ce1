from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlmeta.commands import catalog
from mlmeta.commands.catalog import (
    Argument,
    Entry,
    check_arguments,
    explain_unknown,
    find_entry,
    list_names,
    list_unsupported,
    read_value,
)
from mlmeta.errors import CommandsError

ENTRIES = [(role, name) for role in catalog.ROLES for name in list_names(role)]
KINDS = {"int", "float", "bool", "str", "list", "null", "layer", "layers", "schedulers", "transforms", "any"}
RECURRENT = ("RNN", "LSTM", "GRU")
# Arguments that mlmeta reads itself, so that no signature has them.
OWN = {("Sequential", "layers"), ("Residual", "layers"), ("Concat", "layers")}
# Required arguments that mlmeta gives itself.
GIVEN = {"params", "optimizer", "self", "distance_function"}
FILLED_IN = {("CosineAnnealingLR", "T_max")}


def hold(found: Any, expected: Any, *libraries: str) -> None:
    """Assert that both are equal; where they differ and a library has another version, list what is new there."""
    installed = {library: ".".join(version(library).split(".")[:2]) for library in libraries}
    others = {library: number for library, number in installed.items() if number != catalog.made_with()[library]}
    if found != expected and others:
        pytest.xfail(f"{others} is not what the catalog was read off: {expected} listed, {found} there")
    assert found == expected


def signature_of(role: str, name: str) -> Mapping[str, inspect.Parameter]:
    if name in RECURRENT and role == "layer":
        parameters = dict(inspect.signature(nn.RNNBase).parameters)
        own = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
        return parameters | ({"nonlinearity": own} if name == "RNN" else {})
    return inspect.signature(find_entry(role, name).load()).parameters


@pytest.mark.parametrize(("role", "name"), ENTRIES)
def test_every_entry_stands_for_a_class_or_function_of_that_name(role: str, name: str) -> None:
    loaded = find_entry(role, name).load()
    assert inspect.isclass(loaded) or inspect.isfunction(loaded)
    assert loaded.__name__ == name


@pytest.mark.parametrize(
    ("role", "base"),
    [
        ("layer", nn.Module),
        ("criterion", nn.Module),
        ("optimizer", torch.optim.Optimizer),
        ("scheduler", torch.optim.lr_scheduler.LRScheduler),
    ],
)
def test_every_entry_is_of_its_roles_base_class(role: str, base: type) -> None:
    others = [name for name in list_names(role) if not issubclass(find_entry(role, name).load(), base)]
    assert others == []


@pytest.mark.parametrize(("role", "name"), ENTRIES)
def test_every_argument_stands_in_the_real_signature(role: str, name: str) -> None:
    listed = {argument for argument in find_entry(role, name).arguments if (name, argument) not in OWN}
    assert listed <= signature_of(role, name).keys()


@pytest.mark.parametrize(("role", "name"), [e for e in ENTRIES if e[0] != "model"])
def test_the_required_arguments_are_those_of_the_real_signature(role: str, name: str) -> None:
    listed = {key for key, argument in find_entry(role, name).arguments.items() if argument.required}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    real = {
        key
        for key, parameter in signature_of(role, name).items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variable
    }
    if name in ("Sequential", "Residual", "Concat"):
        real = {"layers"}
    elif name in RECURRENT and role == "layer":
        real = {"input_size", "hidden_size"}
    else:
        real = {key for key in real - GIVEN if (name, key) not in FILLED_IN}
    hold(real, listed, "torch", "torchvision", "pillow")


@pytest.mark.parametrize(("role", "name"), [e for e in ENTRIES if e[0] not in ("model", "image_op", "transform")])
def test_a_listed_default_is_the_real_one(role: str, name: str) -> None:
    parameters = signature_of(role, name)
    listed = {k: a.default for k, a in find_entry(role, name).arguments.items() if a.default is not None}
    hold({key: as_json(parameters[key].default) for key in listed}, listed, "torch")


def as_json(default: Any) -> Any:
    """Return a default as a file would write it: a function by its name."""
    return default.__name__ if callable(default) else list(default) if isinstance(default, tuple) else default


@pytest.mark.parametrize(("role", "name"), ENTRIES)
def test_every_argument_has_kinds_that_the_rules_know(role: str, name: str) -> None:
    for key, argument in find_entry(role, name).arguments.items():
        assert argument.kinds, key
        assert set(argument.kinds) <= KINDS
        assert not argument.choices or "str" in argument.kinds


@pytest.mark.parametrize("role", catalog.ROLES)
def test_no_name_is_both_usable_and_unsupported(role: str) -> None:
    assert set(list_names(role)) & list_unsupported(role).keys() == set()


@pytest.mark.parametrize("role", catalog.ROLES)
def test_names_are_plain_identifiers_in_alphabetical_order(role: str) -> None:
    names = list_names(role)
    assert names == sorted(set(names))
    assert all(name.isidentifier() and not name.startswith("_") for name in names)


@pytest.mark.parametrize("role", catalog.ROLES)
def test_every_unsupported_name_has_its_reason(role: str) -> None:
    assert all(len(reason.split()) > 2 for reason in list_unsupported(role).values())


@pytest.mark.parametrize(
    ("module", "base", "roles"),
    [
        (torch.nn, nn.Module, ("layer", "criterion")),
        (torch.optim, torch.optim.Optimizer, ("optimizer",)),
        (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler, ("scheduler",)),
    ],
    ids=["torch.nn", "torch.optim", "torch.optim.lr_scheduler"],
)
def test_every_public_class_is_listed_or_refused_with_a_reason(module: Any, base: type, roles: tuple[str, ...]) -> None:
    public = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and not name.startswith("_")
    }
    known = {name for role in roles for name in (*list_names(role), *list_unsupported(role))}
    hold(public - known, set(), "torch")


def test_the_catalog_is_what_its_script_writes() -> None:
    script = Path(__file__).parent.parent.parent / "scripts" / "make_catalog.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    hold(done.stdout, "", *catalog.made_with())
    assert done.returncode == 0, done.stderr


def test_a_class_that_the_installed_version_lacks_is_told() -> None:
    with pytest.raises(CommandsError, match=r"layer: Flutter is not in the installed version of torch"):
        Entry("layer", "Flutter", "torch.nn.Flutter", {}).load()


@pytest.mark.parametrize(
    ("role", "name", "says"),
    [
        ("layer", "Conv2D", "unknown layer; got 'Conv2D'. Did you mean 'Conv2d'?"),
        ("layer", "conv2d", "unknown layer; got 'conv2d'. Did you mean 'Conv2d'?"),
        ("layer", "nn.Conv2d", "unknown layer; got 'nn.Conv2d'. Did you mean 'Conv2d'?"),
        ("layer", "torch.nn.Conv2d", "unknown layer; got 'torch.nn.Conv2d'. Did you mean 'Conv2d'?"),
        ("layer", "__class__", "unknown layer; got '__class__'"),
        ("layer", "Module.__init__", "unknown layer; got 'Module.__init__'"),
        ("layer", "", "unknown layer; got ''"),
        ("layer", 5, "the layer's name must be a string; got 5"),
        ("layer", None, "the layer's name must be a string; got null"),
        ("layer", ["ReLU"], "the layer's name must be a string; got ['ReLU']"),
        ("layer", "CrossEntropyLoss", "unknown layer: this is the name of a criterion; got 'CrossEntropyLoss'"),
        ("layer", "Adam", "unknown layer: this is the name of an optimizer; got 'Adam'"),
        ("image_op", "RESIZE", "unknown image op; got 'RESIZE'. Did you mean 'resize'?"),
        ("image_op", "open", "unknown image op; got 'open'"),
        ("image_op", "save", "unknown image op; got 'save'"),
        ("model", "resnet19", "unknown model; got 'resnet19'. Did you mean 'resnet18'?"),
        ("model", "get_model", "unknown model; got 'get_model'"),
        ("optimizer", "adamw", "unknown optimizer; got 'adamw'. Did you mean 'AdamW'?"),
    ],
)
def test_an_unknown_name_is_explained(role: str, name: Any, says: str) -> None:
    assert str(explain_unknown(role, name)) == says
    with pytest.raises(CommandsError) as caught:
        find_entry(role, name)
    assert str(caught.value.faults[0]) == f"{role}: {says}"


@pytest.mark.parametrize(
    ("role", "name", "reason"),
    [
        ("optimizer", "SparseAdam", "accepts sparse gradients only"),
        ("optimizer", "torch.optim.SparseAdam", "accepts sparse gradients only"),
        ("layer", "ModuleList", "holds layers without saying how they follow each other"),
        ("scheduler", "LambdaLR", "needs a function"),
        ("transform", "Lambda", "needs a function"),
        ("image_op", "paste", "needs a second picture"),
    ],
)
def test_an_unsupported_name_says_why(role: str, name: str, reason: str) -> None:
    assert reason in explain_unknown(role, name).message


CONV = find_entry("layer", "Conv2d")
SIZES = {"in_channels": 3, "out_channels": 6, "kernel_size": 5}


@pytest.mark.parametrize(
    ("entry", "given"),
    [
        (CONV, SIZES),
        (CONV, {**SIZES, "in_channels": "auto", "out_channels": "n_labels"}),
        (CONV, {**SIZES, "kernel_size": [5, 3], "padding": "same", "stride": (1, 2), "padding_mode": "reflect"}),
        (find_entry("layer", "AdaptiveAvgPool2d"), {"output_size": [None, 7]}),
        (find_entry("layer", "ReLU"), {}),
        (find_entry("optimizer", "Adam"), {"lr": 1, "betas": [0.9, 0.999], "foreach": None}),
        (find_entry("criterion", "CrossEntropyLoss"), {"weight": [1, 2.5]}),
        (find_entry("image_op", "resize"), {"size": [5, 5], "resample": "LANCZOS"}),
        (
            find_entry("transform", "LinearTransformation"),
            {"transformation_matrix": [[1, 0], [0, 1]], "mean_vector": [0, 0]},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Entry) else None,
)
def test_arguments_of_the_right_kind_have_no_fault(entry: Entry, given: dict[str, Any]) -> None:
    assert list(check_arguments(entry, given)) == []


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"out_channels": "abc"}, "out_channels", "must be a whole number or \"n_labels\"; got 'abc'"),
        ({"out_channels": True}, "out_channels", 'must be a whole number or "n_labels"; got true'),
        ({"out_channels": 1.5}, "out_channels", 'must be a whole number or "n_labels"; got 1.5'),
        ({"out_channels": "auto"}, "out_channels", "must be a whole number or \"n_labels\"; got 'auto'"),
        ({"in_channels": None}, "in_channels", 'must be a whole number, "auto" or "n_labels"; got null'),
        ({"kernel_size": "2*3"}, "kernel_size", "must be a whole number or a list of whole numbers; got '2*3'"),
        ({"kernel_size": []}, "kernel_size", "must be a whole number or a list of whole numbers; got []"),
        ({"kernel_size": [True]}, "kernel_size", "must be a whole number or a list of whole numbers; got [true]"),
        ({"kernel_size": [1.5]}, "kernel_size", "must be a whole number or a list of whole numbers; got [1.5]"),
        ({"kernel_size": [[1]]}, "kernel_size", "must be a whole number or a list of whole numbers; got [[1]]"),
        ({"kernel_size": {"a": 1}}, "kernel_size", "must be a whole number or a list of whole numbers; got {'a': 1}"),
        ({"bias": 1}, "bias", "must be true or false; got 1"),
        (
            {"padding_mode": "zero"},
            "padding_mode",
            "must be one of 'zeros', 'reflect', 'replicate', 'circular'; got 'zero'. Did you mean 'zeros'?",
        ),
        (
            {"kernal_size": 3},
            "kernal_size",
            "Conv2d has no such argument; it has: in_channels, out_channels, kernel_size, stride, padding, dilation, "
            "groups, bias, padding_mode; got 3. Did you mean 'kernel_size'?",
        ),
        ({"self": 1}, "self", None),
        (
            {"device": "cuda"},
            "device",
            "mlmeta chooses the device that a model is trained on; leave this argument out; got 'cuda'",
        ),
        (
            {"dtype": "torch.float16"},
            "dtype",
            "layers compute in torch.float32; leave this argument out; got 'torch.float16'",
        ),
        ({"__class__": 1}, "__class__", None),
    ],
)
def test_a_wrong_argument_is_explained(changes: dict[str, Any], key: str, says: str | None) -> None:
    [(argument, fault)] = check_arguments(CONV, SIZES | changes)
    assert argument == key
    assert "no such argument" in str(fault) if says is None else str(fault) == says


def test_every_missing_argument_is_named_with_what_it_may_be() -> None:
    assert [(key, str(fault)) for key, fault in check_arguments(CONV, {})] == [
        ("in_channels", 'Conv2d needs this argument: a whole number, "auto" or "n_labels"'),
        ("out_channels", 'Conv2d needs this argument: a whole number or "n_labels"'),
        ("kernel_size", "Conv2d needs this argument: a whole number or a list of whole numbers"),
    ]


def test_an_argument_of_any_kind_is_needed_without_words() -> None:
    [(_, fault)] = check_arguments(find_entry("image_op", "resize"), {})
    assert str(fault) == "resize needs this argument"


def test_what_another_optimizer_has_is_answered_with_what_this_one_has() -> None:
    [(_, fault)] = check_arguments(find_entry("optimizer", "Adam"), {"momentum": 0.9})
    assert str(fault).startswith("Adam has no such argument; it has: lr, betas, eps, weight_decay")


@pytest.mark.parametrize(
    ("role", "name", "argument", "words"),
    [
        ("layer", "Linear", "in_features", ("auto", "n_labels")),
        ("layer", "Linear", "out_features", ("n_labels",)),
        ("layer", "Linear", "bias", ()),
        ("layer", "LSTM", "num_layers", ()),
        ("layer", "Dropout", "p", ()),
        ("scheduler", "StepLR", "step_size", ()),
        ("transform", "Resize", "size", ()),
    ],
)
def test_only_sizes_of_layers_have_placeholders(role: str, name: str, argument: str, words: tuple[str, ...]) -> None:
    assert catalog.list_placeholders(find_entry(role, name), argument) == words


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("int",), "a whole number"),
        (("int", "float"), "a number"),
        (("float", "list", "null"), "a number, a list of numbers or null"),
        (("layer", "null"), "a layer or null"),
        (("any",), "a value"),
    ],
)
def test_kinds_are_told_in_words(kinds: tuple[str, ...], words: str) -> None:
    assert catalog.describe_kinds(Argument(kinds)) == words


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Image.ANTIALIAS", "LANCZOS"),
        ("PIL.Image.ANTIALIAS", "LANCZOS"),
        ("Image.Resampling.BICUBIC", "BICUBIC"),
        ("Image.FLIP_LEFT_RIGHT", "FLIP_LEFT_RIGHT"),
        ("Image.Transpose.ROTATE_90", "ROTATE_90"),
        ("InterpolationMode.BILINEAR", "BILINEAR"),
        ("transforms.InterpolationMode.BILINEAR", "BILINEAR"),
        ("AutoAugmentPolicy.CIFAR10", "CIFAR10"),
        ("'InterpolationMode.BILINEAR'", "BILINEAR"),
        ("'RGB'", "RGB"),
        ('"RGB"', "RGB"),
        ("''", ""),
        ("True", True),
        ("False", False),
        ("None", None),
        ("(0.9, 0.999)", (0.9, 0.999)),
        ("[500,500]", (500, 500)),
        (" ( 1 , -2 , +3, ) ", (1, -2, 3)),
        ("(1e-3, .5, 5.)", (0.001, 0.5, 5.0)),
        ("(5,)", (5,)),
        ("[5]", (5,)),
        ("(5)", 5),
    ],
)
def test_the_forms_of_older_documents_are_read(text: str, value: Any) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


def test_whole_numbers_in_a_row_stay_whole() -> None:
    assert [type(number) for number in read_value("(1, 2.0)")] == [int, float]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RGB",
        "2 * 3",
        "2*3",
        "5",
        "0.5",
        "__import__('os').system('x')",
        "(__import__('os'), 1)",
        "(1, 2",
        "(1, 2]",
        "(1 2)",
        "(1,, 2)",
        "(,)",
        "()",
        "((1, 2), 3)",
        "(1, 'a')",
        "(1_000, 2)",
        "(0x10, 2)",
        "(inf, 2)",
        "(٣, ٤)",
        "Image.open",
        "Image.__class__",
        "Image.Resampling.__class__",
        "os.ANTIALIAS",
        "Image.ANTIALIAS.X",
        "Image.ANTIALIAS()",
        "'it's'",
        "'RGB",
        "lambda: 0",
        "true",
        "nan",
        "(" * 1000,
        "(" + "1" * 998,
        "(1" + " " * 990,
        "(" + "1," * 499,
        "(" + "1 , " * 200 + "x)",
        "(" + "1, " * 400 + ")",
    ],
)
def test_any_other_string_stays_as_it_is(text: str) -> None:
    assert read_value(text) == text


def test_lists_and_dicts_are_read_through() -> None:
    assert read_value({"a": ["'RGB'", {"b": "None"}], "True": "x"}) == {"a": ["RGB", {"b": None}], "True": "x"}


@given(JSON)
def test_values_without_strings_stay_as_they_are(value: Any) -> None:
    assert read_value(value) == value


@given(st.text())
def test_no_string_is_refused(text: str) -> None:
    assert isinstance(read_value(text), str | bool | int | float | tuple | None)


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), min_size=2, max_size=9))
def test_a_written_row_of_numbers_is_read_as_python_reads_it(numbers: list[float]) -> None:
    assert read_value(str(tuple(numbers))) == tuple(numbers)
