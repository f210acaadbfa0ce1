"""Pillow operations of the commands: ``[{"resize": {"size": [500, 500]}}, {"convert": {"mode": "RGB"}}]``.

Each item is one method of ``PIL.Image.Image`` that gives a picture, with its keyword arguments (or ``true``
or ``{}`` for none). Values are read from tables: an enum is written by the name of its member, a list becomes
the tuple that Pillow wants, and a filter is a name or ``{"name": "GaussianBlur", "radius": 2}``. What Pillow
then refuses comes back as `BadInputError` with its place in the commands and Pillow's own words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from PIL import Image, ImageFilter

from mlmeta.commands.catalog import list_unsupported, read_value
from mlmeta.errors import BadInputError, Fault, nearest_name, shorten

T = TypeVar("T")
Reader = Callable[[Any, str], Any]

# The most pixels that an operation may make: the size from which Pillow calls a picture a bomb.
MAX_PIXELS = 178_956_970
# The widest window of a filter that sorts or counts pixels: each pixel costs a look at all of its window.
MAX_FILTER_SIZE = 99
# What Pillow and torchvision raise for a value that they do not take.
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, SystemError,
    TypeError, ValueError, Image.DecompressionBombError,
)  # fmt: skip
# Methods of ``PIL.Image.Image`` that look like an operation and cannot be one, each with the reason.
UNSUPPORTED = list_unsupported("image_op")


def refuse(path: str, message: str, *, came: object = None, nearest: str = "") -> BadInputError:
    """Return the error for one value; loader processes can carry it, as its only argument is its text."""
    return BadInputError(str(Fault(path, message, "" if came is None else shorten(came), nearest)))


def explain_refusal(path: str, error: BaseException, *, library: str, given: object) -> BadInputError:
    """Return the error for arguments that a library refused, with the library's own words."""
    words = str(error).rstrip(".") or type(error).__name__
    return refuse(path, f"{library} refuses this: {words}", came=given)


def read_step(item: object, path: str) -> tuple[str, Any]:
    """Return (name, what was given) of one item of a list: a name alone, or a dict of one name.

    Raises:
        BadInputError: If the item is anything else.
    """
    if isinstance(item, str):
        return item, True
    if isinstance(item, Mapping) and len(item) == 1:
        name, given = next(iter(item.items()))
        return str(name), given
    raise refuse(path, "must be a dict of one name and its arguments", came=item)


def read_arguments(given: object, path: str) -> dict[str, Any]:
    """Return keyword arguments from JSON; ``true``, ``null`` and ``{}`` are none, and lists become tuples.

    Raises:
        BadInputError: If `given` is anything else than those or a dict.
    """
    if given is True or given is None:
        return {}
    if not isinstance(given, Mapping):
        raise refuse(path, "must be a dict of arguments, or true for none", came=given)
    return {str(key): freeze_lists(read_value(value)) for key, value in given.items()}


def freeze_lists(value: Any) -> Any:
    """Return a JSON value with every list in it as a tuple."""
    if isinstance(value, list | tuple):
        return tuple(freeze_lists(item) for item in value)
    if isinstance(value, dict):
        return {key: freeze_lists(item) for key, item in value.items()}
    return value


def read_choice(value: Any, choices: Mapping[str, T], *, path: str) -> T | None:
    """Return the member of a table that a value names.

    Args:
        value: A name in any case, also with a prefix (``Resampling.LANCZOS``); or the number of an integer
            enum's member; or None, which stays None and leaves the choice to the library.
        choices: What may be chosen, by name.
        path: Where the value stands, for the error.

    Raises:
        BadInputError: If the value names nothing in the table; says the nearest name.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        for member in choices.values():
            if member == value:
                return member
    elif isinstance(value, str):
        name = value.strip().rpartition(".")[2].replace("-", "_").casefold()
        for key, member in choices.items():
            if key.casefold() == name:
                return member
    nearest = nearest_name(value, choices) if isinstance(value, str) else ""
    raise refuse(path, f"must be one of {', '.join(choices)}", came=value, nearest=nearest)


def read_numbers(value: object, count: int) -> tuple[float, ...]:
    """Return the numbers of a tuple of `count`, kept within ±1e300; zeros for anything else."""
    if isinstance(value, tuple) and len(value) == count:
        numbers = [number for number in value if isinstance(number, int | float) and number == number]
        if len(numbers) == count:
            return tuple(float(max(-1e300, min(number, 1e300))) for number in numbers)
    return (0.0,) * count


def check_pixels(n_pixels: float, *, path: str, given: object) -> None:
    """Raise BadInputError if a picture of `n_pixels` is beyond `MAX_PIXELS`."""
    if n_pixels > MAX_PIXELS:
        raise refuse(path, f"would make a picture of more than {MAX_PIXELS:,} pixels", came=given)


# The filters that ``filter`` may name.
FILTERS: Mapping[str, Callable[..., ImageFilter.Filter]] = {
    made.__name__: made
    for made in (
        ImageFilter.BLUR, ImageFilter.CONTOUR, ImageFilter.DETAIL, ImageFilter.EDGE_ENHANCE,
        ImageFilter.EDGE_ENHANCE_MORE, ImageFilter.EMBOSS, ImageFilter.FIND_EDGES, ImageFilter.SHARPEN,
        ImageFilter.SMOOTH, ImageFilter.SMOOTH_MORE, ImageFilter.GaussianBlur, ImageFilter.BoxBlur,
        ImageFilter.UnsharpMask, ImageFilter.MedianFilter, ImageFilter.MinFilter, ImageFilter.MaxFilter,
        ImageFilter.ModeFilter, ImageFilter.RankFilter, ImageFilter.Kernel,
    )
}  # fmt: skip


def _read_filter(value: Any, path: str) -> ImageFilter.Filter:
    arguments = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = arguments.pop("name", None)
    make = read_choice("" if name is None else name, FILTERS, path=path)
    size = arguments.get("size", 0)
    if isinstance(size, int | float) and size > MAX_FILTER_SIZE:
        raise refuse(f"{path}.size", f"must be at most {MAX_FILTER_SIZE}", came=size)
    try:
        return make(**arguments)  # type: ignore[misc]
    except REFUSALS as error:
        raise explain_refusal(path, error, library="Pillow", given=value) from error


def _read_palette_bytes(value: Any, path: str) -> bytes | None:
    try:
        return None if value is None else bytes(value)
    except (TypeError, ValueError) as error:
        raise refuse(path, "must be a list of numbers from 0 to 255", came=value) from error


def _refuse_picture(value: Any, path: str) -> None:
    if value is not None:
        raise refuse(path, "cannot be given in a file: it is a second picture", came=value)


def _read_enum(enum: type[Enum], **older: Enum) -> Reader:
    choices = {member.name: member for member in enum} | older
    return lambda value, path: read_choice(value, choices, path=path)


# Modes that keep transparency.
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


def _convert(
    image: Image.Image, mode: str | None = None, *, background: Any = "white", **arguments: Any
) -> Image.Image:
    """Convert a picture; where the new mode has no transparency, what is transparent is laid on the background."""
    if mode and mode not in _WITH_ALPHA and image.has_transparency_data:
        ground = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert(mode, **arguments)


def _shrink_to_thumbnail(image: Image.Image, **arguments: Any) -> Image.Image:
    copy = image.copy()
    copy.thumbnail(**arguments)
    return copy


def _map_points(image: Image.Image, lut: Sequence[float], mode: str | None = None) -> Image.Image:
    n_bands = len(image.getbands())
    table = list(lut)
    return image.point(table * n_bands if len(table) == 256 else table, mode)


@dataclass(frozen=True)
class Operation:
    """What a name stands for: the function to call, and how to read arguments that are not plain values."""

    apply: Callable[..., Image.Image]
    readers: Mapping[str, Reader] = field(default_factory=dict)


_RESAMPLE = {"resample": _read_enum(Image.Resampling, ANTIALIAS=Image.Resampling.LANCZOS)}
_DITHER = {"dither": _read_enum(Image.Dither)}

# Every operation by its name in the commands.
SUPPORTED: Mapping[str, Operation] = {
    "convert": Operation(_convert, _DITHER | {"palette": _read_enum(Image.Palette)}),
    "copy": Operation(Image.Image.copy),
    "crop": Operation(Image.Image.crop),
    "effect_spread": Operation(Image.Image.effect_spread),
    "filter": Operation(Image.Image.filter, {"filter": _read_filter}),
    "getchannel": Operation(Image.Image.getchannel),
    "point": Operation(_map_points),
    "quantize": Operation(
        Image.Image.quantize, _DITHER | {"method": _read_enum(Image.Quantize), "palette": _refuse_picture}
    ),
    "reduce": Operation(Image.Image.reduce),
    "remap_palette": Operation(Image.Image.remap_palette, {"source_palette": _read_palette_bytes}),
    "resize": Operation(Image.Image.resize, _RESAMPLE),
    "rotate": Operation(Image.Image.rotate, _RESAMPLE),
    "thumbnail": Operation(_shrink_to_thumbnail, _RESAMPLE),
    "transform": Operation(Image.Image.transform, _RESAMPLE | {"method": _read_enum(Image.Transform)}),
    "transpose": Operation(Image.Image.transpose, {"method": _read_enum(Image.Transpose)}),
}


def _count_pixels(name: str, image: Image.Image, arguments: Mapping[str, Any]) -> float:
    """Return the pixels of the largest picture that an operation makes; malformed values count nothing."""
    width, height = image.size
    if name == "resize":
        # Pillow resizes the rows first: its picture in between has the new width and the old height.
        new_width, new_height = read_numbers(arguments.get("size"), 2)
        return abs(new_width) * max(abs(new_height), height)
    if name == "transform":
        new_width, new_height = read_numbers(arguments.get("size"), 2)
        return abs(new_width * new_height)
    if name == "crop":
        left, top, right, bottom = read_numbers(arguments.get("box"), 4)
        return abs((right - left) * (bottom - top))
    if name == "rotate" and arguments.get("expand"):
        (angle,) = read_numbers((arguments.get("angle"),), 1)
        cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
        return (width * cosine + height * sine) * (width * sine + height * cosine)
    return 0


@dataclass(frozen=True)
class ImageOp:
    """One operation with its arguments: a picture in, a picture out.

    Attributes:
        path: Where it stands in the commands.
        name: A key of `SUPPORTED`.
        arguments: Keyword arguments as Pillow takes them.
        given: What stood in the commands, for error text.
    """

    path: str
    name: str
    arguments: Mapping[str, Any]
    given: Any

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a new picture.

        Raises:
            BadInputError: If Pillow refuses the arguments for this picture, or the result would be too large.
        """
        check_pixels(_count_pixels(self.name, image, self.arguments), path=self.path, given=self.given)
        try:
            return SUPPORTED[self.name].apply(image, **self.arguments)
        except REFUSALS as error:
            library = f"for a picture of mode {image.mode} and {image.width}x{image.height} pixels Pillow"
            raise explain_refusal(self.path, error, library=library, given=self.given) from error


@dataclass(frozen=True)
class ImageOps:
    """All operations of the commands, in their order. Can be pickled."""

    ops: tuple[ImageOp, ...]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the picture after every operation; the one given is not changed.

        Raises:
            BadInputError: If Pillow refuses an operation. What Pillow raises for a file that it cannot
                decode comes through as it is.
        """
        image.load()
        for op in self.ops:
            image = op(image)
        return image


def build_image_ops(image_ops: Sequence[Mapping[str, Any]] | None) -> ImageOps:
    """Return the picture operations of the commands as one function from picture to picture.

    Raises:
        BadInputError: If an item is malformed, names no supported method, or has a value that no table and no
            filter takes. Pillow checks all other values when they are first applied.
    """
    return ImageOps(tuple(_build_op(item, f"image_ops.{index}") for index, item in enumerate(image_ops or ())))


def _build_op(item: object, path: str) -> ImageOp:
    name, given = read_step(item, path)
    path = f"{path}.{name}"
    if name not in SUPPORTED:
        reason = UNSUPPORTED.get(name)
        message = f"cannot be used: it {reason}" if reason else "unknown image op"
        raise refuse(path, message, came=name, nearest="" if reason else nearest_name(name, SUPPORTED))
    is_short_filter = name == "filter" and (isinstance(given, str) or (isinstance(given, Mapping) and "name" in given))
    arguments = read_arguments({"filter": given} if is_short_filter else given, path)
    for key, reader in SUPPORTED[name].readers.items():
        if key in arguments:
            arguments[key] = reader(arguments[key], f"{path}.{key}")
    return ImageOp(path, name, arguments, given)
