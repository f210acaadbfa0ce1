"""The plan of the transforms: which run, in which order, and where a picture becomes a tensor.

This reads the commands' JSON and makes no transform yet: `plan_transforms` gives the requests in the order
in which they run, with their arguments read from tables (an enum by the name of its member, a dtype by its
name), and `place_to_tensor` puts ToTensor where it is missing. torchvision is imported where a value is one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mlmeta.data.image_ops import REFUSALS, explain_refusal, read_arguments, read_choice, read_step, refuse
from mlmeta.errors import nearest_name

SUPPORTED = (
    "ToPILImage",
    "Resize", "CenterCrop", "Pad", "RandomCrop", "RandomResizedCrop", "FiveCrop", "TenCrop",
    "RandomHorizontalFlip", "RandomVerticalFlip", "RandomRotation", "RandomAffine", "RandomPerspective",
    "ElasticTransform",
    "Grayscale", "RandomGrayscale", "ColorJitter", "RandomInvert", "RandomPosterize", "RandomSolarize",
    "RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize", "GaussianBlur",
    "AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix",
    "RandomApply", "RandomChoice", "RandomOrder", "Compose",
    "PILToTensor", "ToTensor",
    "ConvertImageDtype", "Normalize", "LinearTransformation", "RandomErasing",
)  # fmt: skip


"""Every transform, in the order in which the keys of a dict run."""


UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "Lambda": "needs a function, which cannot stand in a file",
        "InterpolationMode": "is not a transform but a value of the argument interpolation",
        "AutoAugmentPolicy": "is not a transform but a value of the argument policy",
    }
)


"""Public names of ``torchvision.transforms`` that cannot be used, each with the reason."""


TO_TENSOR = frozenset({"ToTensor", "PILToTensor"})
_ON_TENSORS = frozenset({"ConvertImageDtype", "Normalize", "LinearTransformation", "RandomErasing"})
_CONTAINERS = frozenset({"Compose", "RandomApply", "RandomChoice", "RandomOrder"})
_NOT_IN_CONTAINERS = TO_TENSOR | {"ToPILImage", "FiveCrop", "TenCrop"}
_DETERMINISTIC = _NOT_IN_CONTAINERS | {
    "Resize", "CenterCrop", "Pad", "Grayscale", "ConvertImageDtype", "Normalize", "LinearTransformation",
}  # fmt: skip
_ALWAYS_OR_NEVER = frozenset(
    "RandomHorizontalFlip RandomVerticalFlip RandomGrayscale RandomInvert RandomPosterize RandomSolarize "
    "RandomAdjustSharpness RandomAutocontrast RandomEqualize".split()
)
MAX_DEPTH = 16


"""How deep containers may lie in each other."""


MAX_TRANSFORMS = 500


"""How many transforms there may be, those inside containers too."""


_LIMITS = {
    "kernel_size": 4_095, "sigma": 512, "num_magnitude_bins": 10_000, "num_ops": 100, "mixture_width": 20,
    "chain_depth": 20,
}  # fmt: skip


"""The largest value of the arguments that set how much memory or time one picture takes."""


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    )
} | {"half": torch.float16, "float": torch.float32, "double": torch.float64}  # fmt: skip


def _read_interpolation(value: Any, path: str) -> Any:
    from torchvision.transforms import InterpolationMode

    is_pillow_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_pillow_number else read_choice(value, InterpolationMode.__members__, path=path)


def _read_policy(value: Any, path: str) -> Any:
    from torchvision.transforms import AutoAugmentPolicy

    return read_choice(value, AutoAugmentPolicy.__members__, path=path)


def _read_tensor(value: Any, path: str) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float32)
    except REFUSALS as error:
        raise explain_refusal(path, error, library="torch", given=value) from error


def _read_requests(listing: object, path: str) -> list[Request]:
    if isinstance(listing, Mapping):
        requests = [_read_request(str(name), given, path) for name, given in listing.items()]
        return sorted(requests, key=lambda request: (request.rank, request.name))
    if not isinstance(listing, Sequence) or isinstance(listing, str):
        raise refuse(path, "must be a dict or a list of transforms", came=listing)
    return [_read_request(*read_step(item, f"{path}.{index}"), f"{path}.{index}") for index, item in enumerate(listing)]


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "interpolation": _read_interpolation,
    "policy": _read_policy,
    "dtype": lambda value, path: read_choice(value, _DTYPES, path=path),
    "transformation_matrix": _read_tensor,
    "mean_vector": _read_tensor,
    "transforms": lambda value, path: tuple(_read_requests(value, path)),
}


@dataclass(frozen=True)
class Request:
    """A transform as the commands ask for it: its place, its name, its arguments read and as they came."""

    path: str
    name: str
    arguments: Mapping[str, Any]
    given: Any = None

    @property
    def members(self) -> tuple[Request, ...]:
        """What a container holds; empty for every other transform."""
        return self.arguments.get("transforms", ()) if self.name in _CONTAINERS else ()

    @property
    def all_names(self) -> frozenset[str]:
        """Its own name and those of its members, through all depths."""
        return frozenset({self.name}).union(*(member.all_names for member in self.members))

    @property
    def count(self) -> int:
        """How many transforms it is, with its members through all depths."""
        return 1 + sum(member.count for member in self.members)

    @property
    def random(self) -> bool:
        """Whether it draws at random."""
        if self.name == "Compose":
            return any(member.random for member in self.members)
        if self.name == "GaussianBlur":
            sigma = self.arguments.get("sigma", (0.1, 2.0))
            return isinstance(sigma, tuple) and any(value != sigma[0] for value in sigma)
        if self.name in _ALWAYS_OR_NEVER:
            return self.arguments.get("p") not in (0, 1)
        return self.name not in _DETERMINISTIC

    @property
    def rank(self) -> int:
        """The place among the keys of a dict; a container goes where its members belong."""
        names = {"ToTensor"} if self.all_names & TO_TENSOR else self.all_names & _ON_TENSORS
        return max(map(SUPPORTED.index, names or {self.name}))


def plan_transforms(listing: object, *, path: str, training: bool) -> list[Request]:
    """Return the requests in the order in which they run, each Compose taken apart.

    Args:
        listing: A dict of names and arguments, or a list of dicts of one name, or of names.
        path: Where it stands in the commands.
        training: Whether random transforms stay; otherwise what stands for them, if anything does.

    Raises:
        BadInputError: If the form, a name or a value cannot be used.
    """
    requests = _read_requests(listing, path)
    count = sum(request.count for request in requests)
    if count > MAX_TRANSFORMS:
        raise refuse(path, f"there may be at most {MAX_TRANSFORMS} transforms, those inside others too; got {count:,}")
    return list(_flatten(requests, training))


def _read_request(name: str, given: Any, parent: str) -> Request:
    path = f"{parent}.{name}"
    if path.count(".transforms") > MAX_DEPTH:
        raise refuse(path, f"transforms lie in each other at most {MAX_DEPTH} deep")
    if name not in SUPPORTED:
        reason = UNSUPPORTED.get(name)
        message = f"cannot be used: it {reason}" if reason else "unknown transform"
        raise refuse(path, message, came=name, nearest="" if reason else nearest_name(name, SUPPORTED))
    arguments = read_arguments(given, path)
    for key, value in arguments.items():
        _check_limit(key, value, f"{path}.{key}")
        if key in _READERS:
            arguments[key] = _READERS[key](value, f"{path}.{key}")
    request = Request(path, name, arguments, given)
    if name != "Compose":
        for member in request.members:
            _check_member(member, name)
    return request


def _check_limit(key: str, value: Any, path: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and number > _LIMITS.get(key, float("inf")):
            raise refuse(path, f"must be at most {_LIMITS[key]:,}", came=value)


def _check_member(member: Request, container: str) -> None:
    misplaced = member.all_names & _NOT_IN_CONTAINERS
    if misplaced:
        message = f"{min(misplaced)} cannot stand inside {container}: what comes out would be left to chance"
        raise refuse(member.path, message)


def _flatten(requests: Iterable[Request], training: bool) -> Iterator[Request]:
    for request in requests:
        if request.name == "Compose":
            yield from _flatten(request.members, training)
        elif training or not request.random:
            yield request
        else:
            yield from _flatten(_list_deterministic(request), training)


def _list_deterministic(request: Request) -> tuple[Request, ...]:
    """Return what stands for a random transform where nothing may be drawn."""
    if request.name == "RandomOrder":
        return request.members
    if request.name == "RandomCrop":
        return (_replace(request, "CenterCrop", ("size",)),)
    if request.name == "RandomResizedCrop":
        resize = _replace(request, "Resize", ("size", "interpolation", "antialias"))
        # A single number is a square here, and to Resize the shorter edge.
        size = resize.arguments.get("size")
        pair = size if isinstance(size, tuple) else (size,)
        arguments = {**resize.arguments, "size": pair * 2 if len(pair) == 1 else pair}
        return (Request(resize.path, "Resize", arguments, resize.given),)
    return ()


def _replace(request: Request, name: str, keys: Iterable[str]) -> Request:
    arguments = {key: request.arguments[key] for key in keys if key in request.arguments}
    return Request(request.path, name, arguments, request.given)


def place_to_tensor(requests: Sequence[Request], *, path: str) -> Iterator[Request]:
    """Yield the requests with ToTensor where it is missing, and without ToPILImage on what is a picture.

    Raises:
        BadInputError: If a transform that works on tensors stands before the ToTensor of its list.
    """
    to_tensor = Request(f"{path}.ToTensor", "ToTensor", {})
    is_tensor = False
    for index, request in enumerate(requests):
        if request.all_names & _ON_TENSORS and not is_tensor:
            for later in requests[index + 1 :]:
                if later.name in TO_TENSOR:
                    raise refuse(request.path, f"{request.name} works on tensors and stands before {later.name}")
            yield to_tensor
            is_tensor = True
        if request.name != "ToPILImage" or is_tensor:
            yield request
        is_tensor = request.name in TO_TENSOR or (is_tensor and request.name != "ToPILImage")
    if not is_tensor:
        yield to_tensor
