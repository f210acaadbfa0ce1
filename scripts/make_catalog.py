"""Write mlmeta/commands/catalog.json: what a commands file may name, read off the installed libraries.

    python scripts/make_catalog.py            # writes the file
    python scripts/make_catalog.py --check    # exit code 1 where it would change

The catalog is kept in the repository so that a faulty commands file is answered without importing torch.
Run this again after an upgrade of torch, torchvision or Pillow, read the difference, and commit it.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torchvision.transforms.v2

from mlmeta.data import image_ops
from mlmeta.data.transform_plan import SUPPORTED, UNSUPPORTED
from mlmeta.models import criteria

CATALOG = Path(__file__).parent.parent / "mlmeta" / "commands" / "catalog.json"

UNSUPPORTED_LAYERS = {
    "AdaptiveLogSoftmaxWithLoss": "is an output layer and a loss in one and needs the labels in its forward pass",
    "Container": "is a deprecated alias of Module",
    "CosineSimilarity": "compares two inputs; a layer here has one",
    "PairwiseDistance": "compares two inputs; a layer here has one",
    "DataParallel": "places a model on several devices; mlmeta chooses the device itself",
    "Module": "is the base class and computes nothing",
    "ModuleDict": "holds layers without saying how they follow each other; use Sequential, Residual or Concat",
    "ModuleList": "holds layers without saying how they follow each other; use Sequential, Residual or Concat",
    "ParameterDict": "holds parameters without a computation",
    "ParameterList": "holds parameters without a computation",
    "RNNBase": "is the base class of RNN, LSTM and GRU",
    "RNNCellBase": "is the base class of RNNCell, LSTMCell and GRUCell",
    "SyncBatchNorm": "works only in a distributed process group; use BatchNorm1d, 2d or 3d",
}
UNSUPPORTED_OPTIMIZERS = {
    "Optimizer": "is the base class",
    "SparseAdam": "accepts sparse gradients only, which no layer but a sparse Embedding gives",
    "Muon": "accepts two-dimensional parameters only: no bias, no convolution",
}
UNSUPPORTED_SCHEDULERS = {
    "LRScheduler": "is the base class",
    "LambdaLR": "needs a function, which a file of data cannot hold",
    "MultiplicativeLR": "needs a function, which a file of data cannot hold",
}
UNSUPPORTED_IMAGE_OPS = {
    "alpha_composite": "needs a second picture",
    "apply_transparency": "changes a palette in place; convert to RGBA does the same",
    "draft": "configures the decoder of a file, and pictures arrive decoded",
    "frombytes": "replaces the picture by bytes from elsewhere",
    "paste": "needs a second picture",
    "putalpha": "needs a second picture; convert to RGBA adds an opaque alpha channel",
    "putdata": "replaces the picture by values from elsewhere",
    "putpalette": "recolours a picture in place; remap_palette and point change colours",
    "putpixel": "changes one pixel in place",
    "seek": "moves between the frames of a file, and pictures arrive as one frame",
    "split": "gives several pictures; getchannel takes one channel",
}
# Arguments that mlmeta decides itself, that were replaced, or that only a program can give.
DROPPED = {
    "device", "dtype", "size_average", "reduce", "params", "optimizer", "last_epoch", "process_group",
    "scale_fn", "distance_function", "custom_encoder", "custom_decoder", "batch_first", "maximize",
    "differentiable", "capturable", "mask_check", "enable_nested_tensor", "args", "kwargs", "self", "sparse",
}  # fmt: skip
# Where a signature has no annotation to read.
KINDS_BY_NAME = {
    "embed_dim": ["int"], "num_heads": ["int"], "dropout": ["float"], "bias": ["bool"], "kdim": ["int", "null"],
    "vdim": ["int", "null"], "add_bias_kv": ["bool"], "add_zero_attn": ["bool"], "activation": ["str"],
}  # fmt: skip
# Where a signature says less than the class takes, more than a file can give, or what mlmeta fills in itself.
ACTIVATION = {"kinds": ["str"], "default": "relu", "choices": ["relu", "gelu"]}
OVERRIDES = {
    ("Transformer", "activation"): ACTIVATION,
    ("TransformerEncoderLayer", "activation"): ACTIVATION,
    ("TransformerDecoderLayer", "activation"): ACTIVATION,
    ("LazyConvTranspose2d", "dilation"): {"kinds": ["int", "list"], "default": 1},
    ("LazyBatchNorm1d", "momentum"): {"kinds": ["float", "null"], "default": 0.1},
    ("LazyBatchNorm2d", "momentum"): {"kinds": ["float", "null"], "default": 0.1},
    ("LazyBatchNorm3d", "momentum"): {"kinds": ["float", "null"], "default": 0.1},
    ("LBFGS", "line_search_fn"): {"kinds": ["str", "null"], "default": None, "choices": ["strong_wolfe"]},
    ("CosineAnnealingLR", "T_max"): {"kinds": ["int", "null"], "default": None},
}
# Arguments of transforms that take more than their annotation says; the transform itself checks them.
LOOSE = {
    ("RandomRotation", "degrees"),
    ("RandomAffine", "degrees"),
    ("RandomErasing", "value"),
    ("Resize", "antialias"),
    ("RandomResizedCrop", "antialias"),
}
RNN_ARGUMENTS = ["input_size", "hidden_size", "num_layers", "bias", "dropout", "bidirectional"]
RNN_EXTRA = {"RNN": ["nonlinearity"], "LSTM": ["proj_size"], "GRU": []}
LAYERS_ARGUMENT = {"layers": {"kinds": ["layers"], "required": True}}
COMPOSITES = {
    "Sequential": ("torch.nn.Sequential", LAYERS_ARGUMENT),
    "Residual": ("mlmeta.models.layers.Residual", LAYERS_ARGUMENT),
    "Concat": ("mlmeta.models.layers.Concat", {**LAYERS_ARGUMENT, "dim": {"kinds": ["int"], "default": 1}}),
}


def kinds_of(annotation: str) -> list[str]:
    """Return the JSON kinds that an annotation admits; empty where it cannot be read."""
    found = []
    if "Callable" in annotation and not annotation.startswith("str"):
        return []
    if re.search(r"Module|EncoderLayer|DecoderLayer", annotation):
        found.append("layer")
    if "LRScheduler" in annotation:
        return ["schedulers"]
    if "Tensor" in annotation and "float" not in annotation:
        found.append("list")
    for kind, pattern in (("bool", r"\bbool\b"), ("float", r"\bfloat\b"), ("int", r"\bint\b")):
        if re.search(pattern, annotation):
            found.append(kind)
    if re.search(r"\bstr\b|Literal", annotation):
        found.append("str")
    if re.search(r"tuple|list|Sequence|Iterable|Size", annotation):
        found.append("list")
    if re.search(r"None", annotation):
        found.append("null")
    return list(dict.fromkeys(found))


def describe_argument(parameter: inspect.Parameter) -> dict[str, Any] | None:
    """Return the catalog's record of one argument, or None where a file cannot give it."""
    if parameter.name in DROPPED or parameter.name.startswith("_"):
        return None
    annotation = "" if parameter.annotation is inspect.Parameter.empty else str(parameter.annotation)
    if isinstance(parameter.annotation, type):
        annotation = parameter.annotation.__name__
    kinds = kinds_of(annotation) or KINDS_BY_NAME.get(parameter.name, [])
    default = parameter.default
    if not kinds and isinstance(default, bool | int | float | str):
        kinds = [type(default).__name__]
    if default is None and "null" not in kinds:
        kinds = [*kinds, "null"]
    record: dict[str, Any] = {"kinds": kinds or ["any"]}
    choices = re.search(r"Literal\[([^\]]*)\]", annotation)
    if choices:
        record["choices"] = re.findall(r"'([^']*)'", choices.group(1))
    if default is inspect.Parameter.empty:
        record["required"] = True
    elif default is None or isinstance(default, bool | int | float | str | tuple | list):
        record["default"] = default
    return record


def describe_class(cls: type, *, keep: list[str] | None = None) -> dict[str, Any]:
    """Return the catalog's records of a class's keyword arguments."""
    parameters = {p.name: p for base in reversed(cls.__mro__[:2]) for p in parameters_of(base)} if keep else {}
    chosen = [parameters[name] for name in keep] if keep else parameters_of(cls)
    records = {p.name: describe_argument(p) for p in chosen}
    overrides = {argument: record for (name, argument), record in OVERRIDES.items() if name == cls.__name__}
    return {name: record for name, record in {**records, **overrides}.items() if record is not None}


def parameters_of(cls: type) -> list[inspect.Parameter]:
    """Return the named parameters of a class's constructor."""
    try:
        signature = inspect.signature(cls)
    except ValueError:
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in signature.parameters.values() if p.kind not in variable]


def public_classes(module: Any, base: type) -> dict[str, type]:
    """Return the public classes of a module that derive from `base`."""
    found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {n: c for n, c in sorted(found.items()) if inspect.isclass(c) and issubclass(c, base)}


def make_layers() -> dict[str, Any]:
    """Return the entries of the layers of torch.nn and of mlmeta's own."""
    entries = {}
    for name, cls in public_classes(torch.nn, torch.nn.Module).items():
        if "Loss" in name or name in UNSUPPORTED_LAYERS or name in COMPOSITES:
            continue
        keep = RNN_ARGUMENTS + RNN_EXTRA[name] if name in RNN_EXTRA else None
        arguments = describe_class(cls, keep=keep) if keep is None else describe_rnn(name, keep)
        entries[name] = {"target": f"torch.nn.{name}", "arguments": arguments}
    for name, (target, arguments) in COMPOSITES.items():
        entries[name] = {"target": target, "arguments": arguments}
    return entries


def describe_rnn(name: str, keep: list[str]) -> dict[str, Any]:
    """Return the arguments of RNN, LSTM and GRU, whose own signatures are (*args, **kwargs)."""
    records = describe_class(torch.nn.RNNBase)
    records["nonlinearity"] = {"kinds": ["str"], "choices": ["tanh", "relu"], "default": "tanh"}
    return {argument: records[argument] for argument in keep}


def make_simple(module: Any, base: type, prefix: str, unsupported: dict[str, str]) -> dict[str, Any]:
    """Return the entries of a module's public classes, without the unsupported ones."""
    return {
        name: {"target": f"{prefix}.{name}", "arguments": describe_class(cls)}
        for name, cls in public_classes(module, base).items()
        if name not in unsupported
    }


def make_criteria() -> dict[str, Any]:
    """Return the entries of the losses."""
    return {
        name: {"target": f"torch.nn.{name}", "arguments": describe_class(getattr(torch.nn, name))}
        for name in sorted(criteria.SUPPORTED)
    }


def make_transforms() -> dict[str, Any]:
    """Return the entries of the transforms: names of v1, classes of v2."""
    entries = {}
    for name in sorted(SUPPORTED):
        arguments = describe_class(getattr(torchvision.transforms.v2, name))
        for argument, record in arguments.items():
            if (name, argument) in LOOSE or argument in ("interpolation", "policy"):
                record["kinds"] = ["any"]
            if argument == "transforms":
                record["kinds"] = ["transforms"]
        if name == "ToTensor":
            arguments = {}
        if name == "ConvertImageDtype":
            arguments = {"dtype": {"kinds": ["str"], "default": "float32"}}
        entries[name] = {"target": f"torchvision.transforms.v2.{name}", "arguments": arguments}
    return entries


def make_image_ops() -> dict[str, Any]:
    """Return the entries of the picture operations: methods of PIL.Image.Image."""
    entries = {}
    for name in sorted(image_ops.SUPPORTED):
        method = getattr(PIL.Image.Image, name)
        parameters = inspect.signature(method).parameters.values()
        # quantize's palette is a second picture, which a file cannot hold.
        records = {p.name: describe_argument(p) for p in parameters if (name, p.name) != ("quantize", "palette")}
        arguments = {key: {**record, "kinds": ["any"]} for key, record in records.items() if record is not None}
        entries[name] = {"target": f"PIL.Image.Image.{name}", "arguments": arguments}
    return entries


def target_of(model: str) -> str:
    """Return where a torchvision builder lies: in its own module, since ``torchvision.models.alexnet`` is both."""
    return f"{torchvision.models.get_model_builder(model).__module__}.{model}"


def make_catalog() -> dict[str, Any]:
    """Return the whole catalog."""
    models = torchvision.models.list_models(module=torchvision.models)
    schedulers = torch.optim.lr_scheduler
    names = ("torch", "torchvision", "pillow")
    return {
        "made_with": {name: ".".join(version(name).split(".")[:2]) for name in names},
        "layer": make_layers(),
        "criterion": make_criteria(),
        "optimizer": make_simple(torch.optim, torch.optim.Optimizer, "torch.optim", UNSUPPORTED_OPTIMIZERS),
        "scheduler": make_simple(
            schedulers, schedulers.LRScheduler, "torch.optim.lr_scheduler", UNSUPPORTED_SCHEDULERS
        ),
        "transform": make_transforms(),
        "image_op": make_image_ops(),
        "model": {name: {"target": target_of(name), "arguments": {}} for name in sorted(models)},
        "unsupported": {
            "layer": UNSUPPORTED_LAYERS,
            "criterion": dict(criteria.UNSUPPORTED),
            "optimizer": UNSUPPORTED_OPTIMIZERS,
            "scheduler": UNSUPPORTED_SCHEDULERS,
            "transform": dict(UNSUPPORTED),
            "image_op": UNSUPPORTED_IMAGE_OPS,
        },
    }


def to_text(catalog: dict[str, Any]) -> str:
    """Return the catalog as JSON with one entry a line, so that a difference can be read."""
    roles = []
    for role, entries in catalog.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        roles.append(f" {json.dumps(role)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(roles) + "\n}\n"


def main() -> None:
    """Write the catalog, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the file would change")
    check = parser.parse_args().check
    text = to_text(make_catalog())
    if check:
        difference = difflib.unified_diff(CATALOG.read_text(encoding="utf-8").splitlines(), text.splitlines(), n=0)
        lines = [line for line in difference if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        print("\n".join(lines), end="")
        sys.exit(bool(lines))
    CATALOG.write_text(text, encoding="utf-8")
    print(f"{CATALOG.name}: {len(text):,} characters")


if __name__ == "__main__":
    main()
