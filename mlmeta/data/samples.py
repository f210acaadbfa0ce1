"""The built-in picture sets, for a first attempt without files or network.

``digits`` are the 1797 real handwritten digits that scikit-learn ships. ``dogs`` are drawn by mlmeta, not photographed:
each picture follows from its breed and index alone, whatever else is asked for and on whichever machine. Background,
light and what stands in front are drawn from numbers of their own, so that they tell nothing of the breed.

The dogs are drawn when they are asked for, in any size and number, and do not come as files: at the default size alone
the 540 of them take 7 MB without loss.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import MappingProxyType

from PIL import Image, ImageFilter

from mlmeta.data.dog_drawing import Breed, Coat, Colour, Pen, blob, colour, draw_dog
from mlmeta.errors import BadInputError, Fault, nearest_name, shorten


def _colours(text: str) -> list[Colour]:
    return [(r, g, b) for r, g, b in map(bytes.fromhex, text.split())]


def _breed(marks: str, ears: str, tail: str, coats: str, *lengths: float) -> Breed:
    palette = tuple(Coat(*_colours(coat)) for coat in coats.split(","))
    return Breed(frozenset(marks.split()), ears, tail, palette, *lengths)


# fmt: off
# Markings, ears, tail; coats as base, dark, trim; then fur, length, chest, waist, leg, neck, skull, muzzle.
BREEDS: Mapping[str, Breed] = {
    "American Hairless Terrier": _breed("patches chest", "bat", "whip",
        "dea492 96685c eccec0, be968a 685454 e8ccc0, aa7c74 604848 e6c0b4, eabeac 805c58 f2d4c8",
        0, 0.66, 0.2, 0.125, 0.042, 0.4, 0.175, 0.95),
    "Alaskan Malamute": _breed("belly legs mask saddle tip", "prick", "curl",
        "707278 3e4046, 3a3a3e 242428, 96745a 684e3e, b0b0b2 84868c",
        0.045, 0.68, 0.29, 0.25, 0.075, 0.38, 0.205, 0.75),
    "American Eskimo Dog": _breed("cream", "prick", "curl",
        "f0eee6 e8dcc6, ece2ce decaa8, e2e4e8 ceced0",
        0.05, 0.64, 0.28, 0.25, 0.06, 0.38, 0.19, 0.75),
    "Australian Shepherd": _breed("merle chest legs blaze collar points", "fold", "stub",
        "8e94a0 30323a, c09070 764028, 2c2a2c 222024, 747c8a 2c2c34, 844a2e 6c3a24",
        0.035, 0.74, 0.27, 0.22, 0.06, 0.38, 0.185, 0.9),
    "Boston Terrier": _breed("bib blaze socks", "bat", "stub",
        "262223 1a181a, 3a2822 281c1a, 543e30 2e221c",
        0, 0.58, 0.26, 0.18, 0.055, 0.34, 0.22, 0.25),
    "Boykin Spaniel": _breed("waves", "drop", "stub",
        "5c3420 462618, 704226 56301c, 462a1e 341e16",
        0.026, 0.66, 0.26, 0.2, 0.058, 0.4, 0.19, 0.9),
    "Chesapeake Bay Retriever": _breed("waves", "flap", "long",
        "744c2e 5a3822, 987048 7c5836, b8966a 9e7a50, 8c6444 684630",
        0.013, 0.74, 0.265, 0.19, 0.062, 0.42, 0.185, 1.0),
    "Catahoula Leopard Dog": _breed("leopard chest points socks", "flap", "whip",
        "90949c 34363c, be9c78 6e422a, b2aeac 3e3c42, 626670 28282e, 96785c 463024",
        0, 0.72, 0.245, 0.165, 0.055, 0.42, 0.18, 1.0),
    "Toy Fox Terrier": _breed("hood patches blaze", "prick", "stub",
        "f0ede6 262222, f0ece4 a6683a, ece6de 5c3a2a",
        0, 0.62, 0.2, 0.13, 0.044, 0.38, 0.185, 0.8),
}

# Sky above, sky at the horizon, ground at the horizon, ground in front, things that stand there. All are pale: on
# strong colours a small network learns the background by heart before it learns the dogs.
BACKGROUNDS = {
    "meadow": "87b2c6 afccce 87ac82 759c74 6c9074",
    "snow": "a3bcbe bacecc bdd0ce c6d8d4 87a09e",
    "beach": "90bcc6 b6cec8 bac0a4 b1b496 96a28c",
    "room": "b6c2b4 afbaac 96927c a19c84 879ea2",
    "street": "a0bab6 96b0b0 8b9c9a 96a6a2 ada898",
    "night": "546870 5f747e 5c726e 576c68 526664",
    "autumn": "adac94 bcbea2 9d9476 8d8670 a58a6e",
    "fog": "96a8a6 a8bab8 879892 7d8e8a 768684",
}
# fmt: on

SAMPLE_LABELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"digits": tuple(str(digit) for digit in range(10)), "dogs": tuple(BREEDS)}
)


@dataclass(frozen=True)
class SamplePicture:
    """One picture of a built-in set, made only when it is asked for.

    Attributes:
        id: Unique in the set, the same at every size: ``digits/0042``, ``dogs/Boston Terrier/0007``.
        label: One of `SAMPLE_LABELS`.
        key: What the content follows from; pictures with equal keys have equal pixels.
        draw: Makes the picture: a square of mode L (digits) or RGB (dogs), a new one at each call.
    """

    id: str
    label: str
    key: bytes
    draw: Callable[[], Image.Image]


def list_samples(name: str, *, size: int | None = None, n_per_label: int | None = None) -> list[SamplePicture]:
    """List the pictures of a built-in set; none is drawn yet.

    Args:
        name: ``digits`` (in scikit-learn's order) or ``dogs`` (breed by breed).
        size: Edge in pixels, at most 1024: digits from 8 (the default; larger ones are upscaled bicubic), dogs
            from 16 (default 128).
        n_per_label: The first so many pictures of each label, 1 to 10000. Default: all digits, 60 dogs. Where there
            are fewer digits, all of the label.

    Raises:
        BadInputError: There is no such set, or a number is out of range.
    """
    if name not in SAMPLE_LABELS:
        fault = Fault("name", "must be digits or dogs", shorten(name), nearest_name(name, SAMPLE_LABELS))
        raise BadInputError(str(fault))
    if name == "digits":
        edge = _check_number("size", size, default=8, least=8, most=1024)
        return _list_digits(edge, _check_number("n_per_label", n_per_label, default=10_000, least=1, most=10_000))
    edge = _check_number("size", size, default=128, least=16, most=1024)
    return _list_dogs(edge, _check_number("n_per_label", n_per_label, default=60, least=1, most=10_000))


def _check_number(path: str, value: int | None, *, default: int, least: int, most: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInputError(str(Fault(path, f"must be a whole number from {least} to {most}", shorten(value))))
    return value


def _list_digits(size: int, n_per_label: int) -> list[SamplePicture]:
    taken: Counter[str] = Counter()
    pictures = []
    for index, (pixels, label) in enumerate(_load_digits()):
        taken[label] += 1
        if taken[label] <= n_per_label:
            key = pixels + f"/{size}x{size}/L".encode()
            pictures.append(SamplePicture(f"digits/{index:04d}", label, key, partial(_draw_digit, pixels, size)))
    return pictures


@lru_cache(maxsize=1)
def _load_digits() -> list[tuple[bytes, str]]:
    """Each digit as 64 bytes, row by row, and its label."""
    return [(bytes(round(level * 255 / 16) for level in levels), str(label)) for *levels, label in _read_digits()]


def _read_digits() -> list[list[int]]:
    """Return each digit's 64 levels from 0 to 16, and its label; to import scikit-learn for its file takes a second."""
    spec = find_spec("sklearn")
    file = Path(str(spec and spec.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt", encoding="ascii") as lines:
            return [[int(number) for number in line.split(",")] for line in lines]
    from sklearn.datasets import load_digits

    return [[*map(int, levels), int(label)] for levels, label in zip(*load_digits(return_X_y=True), strict=True)]


def _draw_digit(pixels: bytes, size: int) -> Image.Image:
    digit = Image.frombytes("L", (8, 8), pixels)
    return digit if size == 8 else digit.resize((size, size), Image.Resampling.BICUBIC)


def _list_dogs(size: int, n_per_label: int) -> list[SamplePicture]:
    return [
        SamplePicture(
            f"dogs/{breed}/{index:04d}",
            breed,
            f"dogs-v1/{breed}/{index}/{size}".encode(),
            partial(_draw_dog_picture, breed, index, size),
        )
        for breed in BREEDS
        for index in range(n_per_label)
    ]


def _draw_dog_picture(breed: str, index: int, size: int) -> Image.Image:
    """Draw larger than asked for and shrink, so that edges come out smooth; the size changes nothing else."""
    looks, scene = (Random(f"dogs-v1/{breed}/{index}/{what}") for what in ("looks", "scene"))  # noqa: S311
    factor = max(2, -(-160 // size))
    picture = _draw_background(scene, size * factor)
    draw_dog(picture, BREEDS[breed], looks=looks, pose=scene)
    _draw_in_front(picture, scene)
    return _light(picture.reduce(factor), scene)


def _draw_background(rng: Random, edge: int) -> Image.Image:
    """Sky and ground with bushes, boxes and tufts."""
    palette = _colours(rng.choice(list(BACKGROUNDS.values())))
    sky, low, far, near, things = (_jitter(hue, rng, 12) for hue in palette)
    picture, horizon = _gradient(sky, low, edge), rng.uniform(0.4, 0.72)
    pen = Pen(picture, 0j, complex(edge))
    for _ in range(rng.randint(0, 4)):
        x, w, h = rng.random(), rng.uniform(0.04, 0.16), rng.uniform(0.06, 0.3)
        foot, top = horizon * 1j, (horizon - h) * 1j
        box = [x - w + foot, x - w + top, x + w + top, x + w + foot]
        bush = blob(x + (horizon - 0.6 * h) * 1j, max(w, 0.6 * h), rng, n=14)
        pen.fill(box if rng.random() < 0.3 else bush, _jitter(things, rng, 14))
    ground = round(horizon * edge)
    picture.paste(_gradient(far, near, edge).resize((edge, edge - ground)), (0, ground))
    for _ in range(30):
        z, w = complex(rng.random(), rng.uniform(horizon, 1)), rng.uniform(0.01, 0.05)
        pen.stroke([z, z + w * complex(1, rng.uniform(-0.5, 0.2))], _jitter(near, rng, 18), 0.008)
    return picture


def _gradient(top: Colour, bottom: Colour, edge: int) -> Image.Image:
    column = Image.new("RGB", (1, 2), top)
    column.putpixel((0, 1), bottom)
    return column.resize((edge, edge), Image.Resampling.BILINEAR)


def _jitter(hue: Colour, rng: Random, spread: float) -> Colour:
    lighter = rng.gauss(0, spread)
    return colour(*(channel + lighter + rng.gauss(0, spread / 3) for channel in hue))


def _draw_in_front(picture: Image.Image, rng: Random) -> None:
    """Now and then a post, a bush or grass hides a part of the dog."""
    what, x, pen = (
        rng.choice(("post", "bush", "grass", *[""] * 6)),
        rng.random(),
        Pen(picture, 0j, complex(picture.width)),
    )
    if what == "post":
        w, hue = rng.uniform(0.015, 0.04), _jitter((112, 84, 60), rng, 22)
        pen.fill([x - w + 0.2j, x + w + 0.2j, x + w + 1j, x - w + 1j], hue)
    for _ in range(5 if what == "bush" else 0):
        at = complex(x + rng.gauss(0, 0.06), rng.uniform(0.84, 1))
        pen.fill(blob(at, rng.uniform(0.05, 0.11), rng, n=14), _jitter((70, 104, 58), rng, 16))
    for _ in range(40 if what == "grass" else 0):
        z = rng.random() + 1j
        blade = complex(rng.gauss(0, 0.03), -rng.uniform(0.06, 0.2))
        pen.stroke([z, z + blade], _jitter((92, 132, 62), rng, 16), 0.01)


def _light(picture: Image.Image, rng: Random) -> Image.Image:
    """Brightness, warm or cold light, grain and blur, alike at every size."""
    gain, lift, warm = rng.uniform(0.78, 1.12), rng.uniform(0, 12), rng.gauss(0, 0.04)
    table = [min(255, round(v * gain * (1 + tint) + lift)) for tint in (warm, 0.0, -warm) for v in range(256)]
    picture = picture.point(table)
    grain = Image.frombytes("L", (64, 64), rng.randbytes(4096)).resize(picture.size, Image.Resampling.BILINEAR)
    picture = Image.blend(picture, Image.merge("RGB", (grain, grain, grain)), rng.uniform(0, 0.08))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.006) * picture.width))
