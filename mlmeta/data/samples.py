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

from PIL import Image, ImageFilter

from mlmeta.data.dog_drawing import BREEDS, TABLES, Colour, Pen, blob, colour, draw_dog, read_colours
from mlmeta.data.image_ops import refuse
from mlmeta.errors import nearest_name

# The palettes of the scenes: sky above, sky at the horizon, ground at the horizon, ground in front, things that stand
# there. All are pale: on strong colours a small network learns the background by heart before it learns the dogs.
BACKGROUNDS: list[list[Colour]] = [read_colours(text) for text in TABLES["backgrounds"].values()]
SAMPLE_LABELS: Mapping[str, tuple[str, ...]] = {"digits": tuple("0123456789"), "dogs": tuple(BREEDS)}


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
        raise refuse("name", "must be digits or dogs", came=name, nearest=nearest_name(name, SAMPLE_LABELS))
    if name == "digits":
        edge = _check_number("size", size, default=8, least=8, most=1024)
        return _list_digits(edge, _check_number("n_per_label", n_per_label, default=10_000, least=1, most=10_000))
    edge = _check_number("size", size, default=128, least=16, most=1024)
    return _list_dogs(edge, _check_number("n_per_label", n_per_label, default=60, least=1, most=10_000))


def _check_number(path: str, value: int | None, *, default: int, least: int, most: int) -> int:
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise refuse(path, f"must be a whole number from {least} to {most}", came=value)
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
    return [_make_dog(breed, index, size) for breed in BREEDS for index in range(n_per_label)]


def _make_dog(breed: str, index: int, size: int) -> SamplePicture:
    key = f"dogs-v1/{breed}/{index}/{size}".encode()
    return SamplePicture(f"dogs/{breed}/{index:04d}", breed, key, partial(_draw_dog_picture, breed, index, size))


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
    sky, low, far, near, things = (_jitter(hue, rng, 12) for hue in rng.choice(BACKGROUNDS))
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
    what, x = rng.choice(("post", "bush", "grass", *[""] * 6)), rng.random()
    pen = Pen(picture, 0j, complex(picture.width))
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
