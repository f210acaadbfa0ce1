"""Draws a whole dog of a breed with Pillow: a drawing, not a photograph.

The breeds are tables in ``dogs.json``, whose order counts: another one makes other pictures. Two streams of random
numbers decide the rest: `looks` the lengths, colours and markings within the breed, `pose` how the dog stands and
where. `random.Random` gives the same numbers on every machine.

Points are complex numbers in the dog's own frame: it looks along +x, y points down, the ground is y = 0 and the
height at the withers is 1. A limb is a list of nodes (point, radius).
"""

from __future__ import annotations

import cmath
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from random import Random
from typing import Any

from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Node = tuple[complex, float]
Nodes = Sequence[Node]
Outline = list[complex]

NOSE: Colour = (30, 26, 26)
SHADE: Colour = (10, 8, 20)


@dataclass(frozen=True)
class Coat:
    """The colours of one dog: most of it, its dark markings, its white parts, its tan points."""

    base: Colour
    dark: Colour
    trim: Colour = (240, 237, 230)
    points: Colour = (176, 112, 62)


@dataclass(frozen=True)
class Breed:
    """What the dogs of a breed share; lengths in heights at the withers.

    Attributes:
        marks: The markings, by the names that `_mark_body` and `_mark_head` know.
        ears: A key of `EARS`.
        tail: A key of `TAILS`.
        coats: The colours that occur.
        fur: How far tufts stand out of the outline.
        muzzle: Its length in skull radii.
    """

    marks: frozenset[str]
    ears: str
    tail: str
    coats: tuple[Coat, ...]
    fur: float
    length: float
    chest: float
    waist: float
    leg: float
    neck: float
    skull: float
    muzzle: float


def read_colours(text: str) -> list[Colour]:
    """Return colours of hexadecimal numbers with spaces between: ``"dea492 96685c"``."""
    return [(r, g, b) for r, g, b in map(bytes.fromhex, text.split())]


def _read_breed(row: dict[str, Any]) -> Breed:
    coats = tuple(Coat(*read_colours(coat)) for coat in row["coats"])
    return Breed(**row | {"marks": frozenset(row["marks"]), "coats": coats})


# A coat is the colours of base, dark and, where it is not the usual white, trim; a point of an ear is x and y, one of a
# tail x, y and the radius; spots are how many, their least and their greatest radius.
TABLES: dict[str, Any] = json.loads((files("mlmeta.data") / "dogs.json").read_text(encoding="utf-8"))
BREEDS: dict[str, Breed] = {name: _read_breed(row) for name, row in TABLES["breeds"].items()}
EARS: dict[str, list[complex]] = {name: [complex(*at) for at in ear] for name, ear in TABLES["ears"].items()}
TAILS: dict[str, list[Node]] = {
    name: [(complex(x, y), r) for x, y, r in tail] for name, tail in TABLES["tails"].items()
}
SPOTS: dict[str, tuple[int, float, float]] = TABLES["spots"]


@dataclass(frozen=True)
class Pen:
    """Draws on an image in a frame of its own: scaled and turned by `turn`, moved, perhaps mirrored."""

    image: Image.Image
    origin: complex
    turn: complex
    mirrored: bool = False

    def joined(self, at: complex, turn: complex) -> Pen:
        """The frame that stands at `at` in this one, scaled and turned by `turn`."""
        here = self.turn * (turn.conjugate() if self.mirrored else turn)
        return replace(self, origin=self._pixel(at), turn=here)

    def _pixel(self, z: complex) -> complex:
        return self.origin + self.turn * (complex(-z.real, z.imag) if self.mirrored else z)

    def fill(self, outline: Sequence[complex], colour: Colour | int) -> None:
        """Fill a closed outline."""
        pixels = [(p.real, p.imag) for p in map(self._pixel, outline)]
        ImageDraw.Draw(self.image).polygon(pixels, fill=colour)

    def stroke(self, points: Sequence[complex], colour: Colour, width: float) -> None:
        """Draw a line; `width` in units of the frame."""
        pixels = [(p.real, p.imag) for p in map(self._pixel, points)]
        ImageDraw.Draw(self.image).line(pixels, fill=colour, width=max(1, round(width * abs(self.turn))))

    def mask(self, outlines: Sequence[Outline], value: int = 255) -> Image.Image:
        """An image of mode L: `value` inside the outlines, 0 elsewhere."""
        pen = replace(self, image=Image.new("L", self.image.size, 0))
        for outline in outlines:
            pen.fill(outline, value)
        return pen.image

    def shade(self, outlines: Sequence[Outline], within: Image.Image, value: int = 62) -> None:
        """Darken what lies inside both the outlines and the mask `within`."""
        self.image.paste(SHADE, mask=ImageChops.darker(self.mask(outlines, value), within))


@dataclass(frozen=True)
class _Pose:
    """Where the parts of a dog are; the last node of the neck is the middle of the skull."""

    trunk: Nodes
    fore: Nodes
    hind: Nodes
    neck: Nodes
    tail: Nodes


def draw_dog(picture: Image.Image, breed: Breed, *, looks: Random, pose: Random) -> None:
    """Draw a dog of a breed on a square RGB picture, in place.

    Args:
        picture: The background; edges are not smoothed, so make it larger than what is wanted.
        breed: What kind of dog.
        looks: Decides lengths, colours and markings.
        pose: Decides pose, place and size; the breed does not change which numbers it gives.
    """
    turn = cmath.rect(picture.width * pose.uniform(0.47, 0.53), pose.gauss(0, 0.03))
    place = picture.width * complex(pose.uniform(0.47, 0.53), pose.uniform(0.91, 0.95))
    pen = Pen(picture, place, turn, mirrored=pose.random() < 0.5)
    dog = _vary(breed, looks)
    parts = (_sit if pose.random() < 0.14 else _stand)(dog, pose)
    _draw_body(pen, dog, parts, looks)
    front, tilt = pose.random() < 0.3, pose.gauss(0, 0.12)
    _draw_head(pen.joined(parts.neck[-1][0], cmath.rect(dog.skull, tilt)), dog, looks, front=front)


def _vary(breed: Breed, rng: Random) -> Breed:
    """One dog of the breed: lengths up to 10 % off, one coat of its own colour, a marking missing now and then."""
    names = ("fur", "length", "chest", "waist", "leg", "neck", "skull", "muzzle")
    lengths = {name: getattr(breed, name) * rng.uniform(0.9, 1.1) for name in names}
    coat, lighter, warmer = rng.choice(breed.coats), rng.gauss(0, 11), rng.gauss(0, 6)
    r, g, b = lighter + warmer, lighter, lighter - warmer
    shades = [colour(c[0] + r, c[1] + g, c[2] + b) for c in (coat.base, coat.dark, coat.trim, coat.points)]
    marks = frozenset(mark for mark in sorted(breed.marks) if rng.random() < 0.95)
    return replace(breed, marks=marks, coats=(Coat(*shades),), **lengths)


def colour(r: float, g: float, b: float) -> Colour:
    """The nearest colour of three whole numbers from 0 to 255."""
    return (min(255, max(0, round(r))), min(255, max(0, round(g))), min(255, max(0, round(b))))


def _darker(c: Colour, share: float = 0.7) -> Colour:
    return colour(*(channel * share for channel in c))


def _smooth(nodes: Nodes, n: int) -> list[Node]:
    """Nodes joined by a Catmull-Rom spline, `n` steps between two."""
    padded = [nodes[0], *nodes, nodes[-1]]
    path: list[Node] = []
    for (a, ra), (b, rb), (c, rc), (d, rd) in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for t in (i / n for i in range(n)):
            u, v = t * t, t * t * t
            wa, wb, wc, wd = u - (v + t) / 2, 1.5 * v - 2.5 * u + 1, 2 * u - 1.5 * v + t / 2, (v - u) / 2
            path.append((a * wa + b * wb + c * wc + d * wd, ra * wa + rb * wb + rc * wc + rd * wd))
    return [*path, nodes[-1]]


def _limb(nodes: Nodes, fur: float = 0.0, rng: Random | None = None) -> Outline:
    """The closed outline of a limb with round ends; `fur` adds tufts of up to that length."""
    path = _smooth(nodes, 9 if fur else 5)
    left: Outline = []
    right: Outline = []
    for i, (z, r) in enumerate(path):
        along = path[min(i + 1, len(path) - 1)][0] - path[max(i - 1, 0)][0]
        normal = 1j * along / (abs(along) or 1.0)
        for side, sign in ((left, 1), (right, -1)):
            tuft = fur * rng.uniform(0.2, 1) if rng and i % 2 else 0.0
            side.append(z + sign * (r + tuft) * normal)
    (start, start_r), (end, end_r) = path[0], path[-1]
    front = [end + cmath.rect(end_r, cmath.phase(left[-1] - end) - k * math.pi / 6) for k in range(1, 6)]
    back = [start + cmath.rect(start_r, cmath.phase(right[0] - start) - k * math.pi / 6) for k in range(1, 6)]
    return [*left, *front, *reversed(right), *back]


def oval(centre: complex, width: float, height: float) -> Outline:
    """An ellipse by its half axes."""
    turns = [2 * math.pi * k / 18 for k in range(18)]
    return [centre + complex(width * math.cos(t), height * math.sin(t)) for t in turns]


def blob(centre: complex, radius: float, rng: Random, n: int = 9) -> Outline:
    """An uneven round patch with `n` corners."""
    return [centre + cmath.rect(radius * rng.uniform(0.6, 1.25), 2 * math.pi * k / n) for k in range(n)]


def _moved(nodes: Nodes, by: complex, widen: float = 1.0) -> list[Node]:
    """Nodes moved by a multiple of their radius and made wider."""
    return [(z + by * r, r * widen) for z, r in nodes]


def _within(nodes: Nodes, rng: Random) -> complex:
    """A point somewhere in a limb."""
    z, r = rng.choice(_smooth(nodes, 4))
    return z + cmath.rect(r * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi))


def _stand(dog: Breed, rng: Random) -> _Pose:
    """Standing or walking, seen from the side."""
    leg, x, back = dog.leg, dog.length / 2, 0.47 * (dog.chest + dog.waist)
    shoulder, hip = complex(x, dog.chest - 1), complex(-x, back - 0.98)
    a, b, wag = rng.uniform(-0.1, 0.14), rng.uniform(-0.12, 0.12), rng.uniform(-0.5, 0.9)
    fore = [(shoulder + 0.03 + 0.05j, 0.1), (x + 0.02 + 0.3 * a - 0.45j, 1.4 * leg)]
    fore += [(x + 0.02 + 0.6 * a - 0.2j, leg), (x + 0.02 + a - 0.05j, leg), (x + 0.09 + a - 0.042j, 0.8 * leg)]
    hind = [(hip + 0.02, 0.9 * back), (0.1 - x + 0.3 * b - 0.46j, 1.7 * leg)]
    hind += [(b - x - 0.05 - 0.25j, leg), (b - x - 0.05j, leg), (b - x + 0.08 - 0.042j, 0.8 * leg)]
    trunk = [(hip, back), (complex(0, dog.waist - 0.975), dog.waist), (shoulder, dog.chest)]
    return _Pose(trunk, fore, hind, _neck(dog, shoulder, rng), _tail(dog, hip + back * (-0.75 - 0.5j), wag))


def _sit(dog: Breed, rng: Random) -> _Pose:
    """Sitting upright."""
    leg, chest, x = dog.leg, dog.chest, 0.24 + rng.uniform(-0.03, 0.06)
    shoulder, hip = 0.16 - 0.74j, complex(-0.2, -0.8 * chest)
    wag = rng.uniform(-0.1, 0.35)
    fore = [(shoulder + 0.04 + 0.06j, 0.1), (x - 0.42j, 1.4 * leg)]
    fore += [(x - 0.2j, leg), (x - 0.05j, leg), (x + 0.07 - 0.042j, 0.8 * leg)]
    hind = [(hip + 0.06, 0.72 * chest), (0.06 - 0.17j, 1.6 * leg), (0.02 - 0.08j, leg)]
    hind += [(0.06 - 0.05j, leg), (0.17 - 0.045j, 0.9 * leg)]
    trunk = [(hip, 0.86 * chest), (-0.05 - 0.48j, 1.1 * dog.waist), (shoulder, 0.92 * chest)]
    return _Pose(trunk, fore, hind, _neck(dog, shoulder, rng), _tail(dog, hip + chest * (-0.8 + 0.3j), wag))


def _neck(dog: Breed, shoulder: complex, rng: Random) -> Nodes:
    head = shoulder + 0.03 + cmath.rect(dog.neck, -rng.uniform(0.8, 1.25))
    middle = (shoulder + head) / 2
    return [(shoulder + 0.02 - 0.03j, 0.8 * dog.chest), (middle, 0.62 * dog.chest), (head, 0.7 * dog.skull)]


def _tail(dog: Breed, root: complex, wag: float) -> Nodes:
    turn = cmath.rect(1, 0.2 * wag if dog.tail == "curl" else wag)
    return [(root + z * turn, r) for z, r in TAILS[dog.tail]]


def _draw_body(pen: Pen, dog: Breed, pose: _Pose, rng: Random) -> None:
    """Shadow on the ground, far legs, tail, then trunk, neck and near legs as one coat."""
    ground = oval(complex((pose.fore[-1][0] + pose.hind[-1][0]).real / 2, 0), 0.62, 0.06)
    pen.image.paste(SHADE, mask=pen.mask([ground], 80))
    _draw_far_legs(pen, dog, pose, rng)
    if dog.tail != "curl":
        _draw_tail(pen, dog, pose, rng)
    outlines = [_limb(nodes, dog.fur, rng) for nodes in (pose.trunk, pose.neck)]
    outlines += [_limb(nodes, 0.5 * dog.fur, rng) for nodes in (pose.fore, pose.hind)]
    mask, coat = pen.mask(outlines), Image.new("RGB", pen.image.size, dog.coats[0].base)
    _mark_body(replace(pen, image=coat), dog, pose, rng)
    pen.image.paste(coat, mask=mask)
    pen.shade([_limb(_moved(pose.trunk, 0.75j)), _limb(_moved(pose.neck, 0.8j))], mask)
    for nodes in (pose.fore, pose.hind):
        pen.stroke(_limb(nodes[1:])[2:-4], _darker(dog.coats[0].base, 0.55), 0.012)
    if dog.tail == "curl":
        _draw_tail(pen, dog, pose, rng)


def _draw_far_legs(pen: Pen, dog: Breed, pose: _Pose, rng: Random) -> None:
    for nodes, gap in ((pose.fore, 0.1), (pose.hind, 0.13)):
        by = gap * rng.uniform(0.6, 1.3) - 0.025j
        far = [(nodes[1][0] + 0.4 * by, nodes[1][1]), *((z + by, r) for z, r in nodes[2:])]
        pen.fill(_limb(far), _darker(dog.coats[0].base))
        if dog.marks & {"legs", "socks"}:
            pen.fill(_limb(far[1 if "legs" in dog.marks else 2 :]), _darker(dog.coats[0].trim))


def _draw_tail(pen: Pen, dog: Breed, pose: _Pose, rng: Random) -> None:
    if dog.tail == "curl":
        pen.fill(_limb(_moved(pose.tail, 0, 1.12), dog.fur, rng), _darker(dog.coats[0].base, 0.8))
    pen.fill(_limb(pose.tail, dog.fur, rng), dog.coats[0].base)
    if "tip" in dog.marks:
        pen.fill(_limb(_moved(pose.tail[2:], 0.2j, 0.7), dog.fur, rng), dog.coats[0].trim)


def _mark_body(pen: Pen, dog: Breed, pose: _Pose, rng: Random) -> None:
    """Paint the markings of trunk, neck and near legs on the coat."""
    coat, marks, trunk, neck = dog.coats[0], dog.marks, pose.trunk, pose.neck
    if "saddle" in marks:
        pen.fill(_limb(_moved(trunk, complex(0, -rng.uniform(0.3, 0.6))), 0.05, rng), coat.dark)
    _mark_spots(pen, dog, [*trunk, *neck[:2]], rng)
    if "belly" in marks:
        pen.fill(_limb(_moved(trunk, complex(0, rng.uniform(0.7, 1.0))), 0.04, rng), coat.trim)
    if "collar" in marks:
        pen.fill(blob(neck[1][0] + 0.03, 1.3 * neck[1][1], rng), coat.trim)
    if "bib" in marks:
        pen.fill(_limb(_moved([*neck[1:], trunk[2], pose.fore[1]], 0.6, 0.55)), coat.trim)
    if "chest" in marks:
        at = trunk[2][0] + trunk[2][1] * complex(0.85, rng.uniform(-0.3, 0.4))
        pen.fill(blob(at, trunk[2][1] * rng.uniform(0.5, 0.85), rng), coat.trim)
    for nodes in (pose.fore, pose.hind):
        if "points" in marks:
            pen.fill(_limb(_moved(nodes[2:], 0, 1.4)), coat.points)
        if marks & {"legs", "socks"}:
            pen.fill(_limb(_moved(nodes[2 if "legs" in marks else 3 :], 0, 1.5)), coat.trim)


def _mark_spots(pen: Pen, dog: Breed, nodes: Nodes, rng: Random) -> None:
    """Scatter the spots or the waves of a coat over some nodes."""
    for n, least, most in (spots for name, spots in SPOTS.items() if name in dog.marks):
        for _ in range(round(n * rng.uniform(0.6, 1.3))):
            pen.fill(blob(_within(nodes, rng), rng.uniform(least, most), rng), dog.coats[0].dark)
    for _ in range(24 if "waves" in dog.marks else 0):
        z = _within(nodes, rng)
        pen.stroke([z, z - 0.03 + 0.02j, z - 0.06 + 0.01j, z - 0.09 + 0.03j], dog.coats[0].dark, 0.012)


def _draw_head(pen: Pen, dog: Breed, rng: Random, *, front: bool) -> None:
    """Head with ears, eyes and nose, from the side or turned to the viewer; unit: the skull's radius."""
    muzzle, coat = dog.muzzle, dog.coats[0]
    tip = (complex(0.75 + muzzle, 0.36), 0.33 + 0.35 * max(0.0, 0.8 - muzzle))
    side = [(0.25 + 0.2j, 0.72), (complex(0.7 + 0.3 * muzzle, 0.3), 0.5), tip]
    nose = [(0.45j, 0.5), (0.62j, 0.5)] if front else side
    skull = _limb([(-0.12 - 0.05j, 0.92), (0.12 - 0.02j, 0.92)], 0.8 * dog.fur / dog.skull, rng)
    mask = pen.mask([skull, _limb(nose)])
    face = Image.new("RGB", pen.image.size, coat.dark if "hood" in dog.marks else coat.base)
    _mark_head(replace(pen, image=face), dog, nose, rng, front=front)
    if dog.ears in ("prick", "bat"):
        _draw_ears(pen, dog, rng, front=front)
    pen.image.paste(face, mask=mask)
    pen.shade([_limb(_moved(nose, 0.95j)), oval(-0.2 + 0.95j, 0.9, 0.45)], mask)
    if dog.ears not in ("prick", "bat"):
        _draw_ears(pen, dog, rng, front=front)
    _draw_face(pen, nose, rng, front=front)


def _draw_ears(pen: Pen, dog: Breed, rng: Random, *, front: bool) -> None:
    coat, upright = dog.coats[0], dog.ears in ("prick", "bat")
    hue = coat.dark if dog.marks & {"hood", "waves", "merle", "leopard", "saddle"} else coat.base
    corners = [z * rng.uniform(0.95, 1.05) for z in EARS[dog.ears]]
    ear = [z for z, _ in _smooth([(z, 0.0) for z in (*corners, corners[0])], 4)]
    if upright and not front:
        pen.fill([z + 0.3 - 0.05j for z in ear], _darker(hue))
    for outline in [[z - 0.35 for z in ear], [complex(0.35 - z.real, z.imag) for z in ear]] if front else [ear]:
        pen.fill(outline, _darker(hue, 0.92))
        pen.stroke([*outline, outline[0]], _darker(hue, 0.6), 0.06)
        middle = sum(outline) / len(outline)
        if upright:
            pink = colour(*(0.5 * c + 0.5 * p for c, p in zip(hue, (206, 150, 140), strict=True)))
            pen.fill([middle + 0.55 * (z - middle) for z in outline], pink)


def _mark_head(pen: Pen, dog: Breed, nose: Nodes, rng: Random, *, front: bool) -> None:
    """Paint the markings of the face on the coat."""
    coat, marks = dog.coats[0], dog.marks
    _mark_spots(pen.joined(0j, 4 + 0j), dog, [(0j, 0.25)], rng)
    cheeks = (-0.5 + 0.4j, 0.5 + 0.4j) if front else (0.2 + 0.55j,)
    brows = (-0.38 - 0.5j, 0.38 - 0.5j) if front else (0.5 - 0.48j,)
    if marks & {"points", "hood", "mask"}:
        wide, hue = (0.62, coat.trim) if "mask" in marks else (0.4, coat.points)
        for outline in [oval(z, wide, 0.88 * wide) for z in cheeks] + [oval(z, 0.19, 0.14) for z in brows]:
            pen.fill(outline, hue)
    if "mask" in marks:
        pen.fill(_limb(_moved(nose, 0.1j)), coat.trim)
    if "blaze" in marks:
        width = rng.uniform(0.08, 0.2)
        top = [(-1j, width), (-0.2j, width)] if front else [(0.3 - 0.95j, width), (0.72 - 0.3j, width)]
        pen.fill(_limb([*top, (nose[-1][0] - 0.1j, 0.42)]), coat.trim)


def _draw_face(pen: Pen, nose: Nodes, rng: Random, *, front: bool) -> None:
    """Eyes, nose and mouth."""
    z, r = nose[-1]
    iris = rng.choice(((58, 34, 22), (40, 26, 20), (96, 62, 34)))
    for eye in (-0.4 - 0.14j, 0.4 - 0.14j) if front else (0.5 - 0.16j,):
        for at, size, hue in ((eye, 0.17, NOSE), (eye, 0.12, iris), (eye + 0.04 - 0.05j, 0.04, (250, 250, 250))):
            pen.fill(oval(at, size, 0.9 * size), hue)
    pen.fill(oval(0.38j if front else z + complex(0.75, -0.35) * r, 0.24, 0.17), NOSE)
    if front:
        pen.stroke([-0.3 + 0.78j, -0.12 + 0.84j, 0.72j, 0.5j, 0.72j, 0.12 + 0.84j, 0.3 + 0.78j], NOSE, 0.06)
    else:
        pen.stroke([z + complex(0.7, 0.3) * r, z + complex(-0.3, 0.6) * r, z + complex(-1.4, 0.4) * r], NOSE, 0.06)
