"""The built-in picture sets: the same pictures every time, at every size, in every process."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mlmeta.data import samples
from mlmeta.data.samples import SAMPLE_LABELS, SamplePicture, list_samples
from mlmeta.errors import BadInputError

BREEDS = (
    "American Hairless Terrier",
    "Alaskan Malamute",
    "American Eskimo Dog",
    "Australian Shepherd",
    "Boston Terrier",
    "Boykin Spaniel",
    "Chesapeake Bay Retriever",
    "Catahoula Leopard Dog",
    "Toy Fox Terrier",
)
PRINT_DIGEST = """
import hashlib
from mlmeta.data.samples import list_samples
pixels = b"".join(p.draw().tobytes() for p in reversed(list_samples("dogs", size=32, n_per_label=2)))
print(hashlib.sha256(pixels).hexdigest())
"""
PRINT_HEAVY_MODULES = """
import sys, mlmeta.data.samples
print(sorted({"torch", "mlflow", "sklearn", "numpy"} & set(sys.modules)))
"""


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def of_label(pictures: list[SamplePicture], label: str) -> list[SamplePicture]:
    return [picture for picture in pictures if picture.label == label]


@pytest.fixture(scope="module")
def digits() -> list[SamplePicture]:
    return list_samples("digits")


def test_the_labels_stand_in_their_order() -> None:
    assert dict(SAMPLE_LABELS) == {"digits": tuple("0123456789"), "dogs": BREEDS}


def test_the_digits_are_those_of_scikit_learn(digits: list[SamplePicture]) -> None:
    reference = load_digits()
    pixels = np.stack([as_array(picture.draw()) for picture in digits])
    np.testing.assert_allclose(pixels, reference.images * 255 / 16, atol=0.5)
    assert [picture.label for picture in digits] == [str(target) for target in reference.target]
    assert [picture.id for picture in digits] == [f"digits/{index:04d}" for index in range(1797)]


def test_the_digits_are_the_same_where_scikit_learn_keeps_its_file_elsewhere(
    digits: list[SamplePicture], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples._load_digits.cache_clear()
    monkeypatch.setattr(samples, "find_spec", lambda _name: None)
    assert [(picture.key, picture.label) for picture in list_samples("digits")] == [(p.key, p.label) for p in digits]


def test_a_larger_digit_is_upscaled_bicubic(digits: list[SamplePicture]) -> None:
    larger = list_samples("digits", size=40, n_per_label=1)[3].draw()
    assert larger == digits[3].draw().resize((40, 40), Image.Resampling.BICUBIC)


def test_fewer_digits_are_the_first_of_each_label(digits: list[SamplePicture]) -> None:
    few = list_samples("digits", n_per_label=3)
    assert Counter(picture.label for picture in few) == dict.fromkeys(SAMPLE_LABELS["digits"], 3)
    assert [p.id for p in of_label(few, "7")] == [p.id for p in of_label(digits, "7")[:3]]


def test_more_digits_than_there_are_give_all_of_them() -> None:
    assert len(list_samples("digits", n_per_label=10_000)) == 1797


def test_dogs_come_breed_by_breed_sixty_of_each_at_128_pixels() -> None:
    dogs = list_samples("dogs")
    assert [picture.label for picture in dogs] == [breed for breed in BREEDS for _ in range(60)]
    assert dogs[61].id == "dogs/Alaskan Malamute/0001"
    assert dogs[61].key == b"dogs-v1/Alaskan Malamute/1/128"
    assert dogs[61].draw().size == (128, 128)


@pytest.mark.parametrize("field", ["id", "key"])
@pytest.mark.parametrize("name", SAMPLE_LABELS)
def test_ids_and_keys_are_unique(name: str, field: str) -> None:
    values = [getattr(picture, field) for picture in list_samples(name)]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", SAMPLE_LABELS)
def test_another_size_is_another_key_and_the_same_id(name: str) -> None:
    small, large = (list_samples(name, size=size, n_per_label=1)[0] for size in (16, 32))
    assert small.id == large.id
    assert small.key != large.key


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [
        ("digits", 8, "L"),
        ("digits", 1024, "L"),
        ("dogs", 16, "RGB"),
        ("dogs", 63, "RGB"),
        ("dogs", 500, "RGB"),
        ("dogs", 1024, "RGB"),
    ],
)
def test_pictures_have_the_size_and_mode_that_are_said(name: str, size: int, mode: str) -> None:
    image = list_samples(name, size=size, n_per_label=1)[0].draw()
    assert (image.size, image.mode) == ((size, size), mode)


@pytest.mark.parametrize("breed", BREEDS)
def test_a_dog_is_the_same_however_often_and_among_however_many_it_is_drawn(breed: str) -> None:
    few = of_label(list_samples("dogs", size=64, n_per_label=3), breed)
    many = of_label(list_samples("dogs", size=64, n_per_label=9), breed)
    backwards = [picture.draw() for picture in reversed(many)]
    assert few[2].draw() == few[2].draw() == many[2].draw() == backwards[-3]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_draws_the_same_dogs(hash_seed: str) -> None:
    pixels = b"".join(p.draw().tobytes() for p in reversed(list_samples("dogs", size=32, n_per_label=2)))
    assert run_python(PRINT_DIGEST, PYTHONHASHSEED=hash_seed) == hashlib.sha256(pixels).hexdigest()


@pytest.mark.parametrize("breed", BREEDS)
def test_the_dogs_of_a_breed_differ(breed: str) -> None:
    dogs = [as_array(p.draw()) for p in of_label(list_samples("dogs", size=32, n_per_label=8), breed)]
    differences = [np.abs(a - b).mean() for i, a in enumerate(dogs) for b in dogs[:i]]
    assert min(differences) > 8


@pytest.mark.parametrize("breed", BREEDS)
def test_a_dog_is_the_same_dog_at_another_size(breed: str) -> None:
    small, large = (of_label(list_samples("dogs", size=s, n_per_label=2), breed) for s in (64, 512))
    shrunk = [as_array(picture.draw().reduce(8)) for picture in large]
    same = [np.abs(as_array(a.draw()) - b).mean() for a, b in zip(small, shrunk, strict=True)]
    other = np.abs(as_array(small[0].draw()) - shrunk[1]).mean()
    assert max(same) < 4
    assert other > 2 * max(same)


@pytest.mark.parametrize("name", SAMPLE_LABELS)
def test_a_picture_can_be_sent_to_another_process(name: str) -> None:
    picture = list_samples(name, n_per_label=1)[0]
    assert pickle.loads(pickle.dumps(picture)).draw() == picture.draw()


@pytest.mark.parametrize(("name", "nearest"), [("dog", "dogs"), ("Digts", "digits")])
def test_an_unknown_set_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(BadInputError, match=f"digits or dogs; got '{name}'. Did you mean '{nearest}'"):
        list_samples(name)


@pytest.mark.parametrize(
    ("name", "size", "allowed"),
    [
        ("digits", 7, "8 to 1024"),
        ("digits", 1025, "8 to 1024"),
        ("dogs", 15, "16 to 1024"),
        ("dogs", 1025, "16 to 1024"),
        ("dogs", 64.0, "16 to 1024"),
        ("dogs", True, "16 to 1024"),
    ],
)
def test_a_size_out_of_range_is_refused(name: str, size: int, allowed: str) -> None:
    with pytest.raises(BadInputError, match=f"size: must be a whole number from {allowed}; got"):
        list_samples(name, size=size)


@pytest.mark.parametrize("name", SAMPLE_LABELS)
@pytest.mark.parametrize("n_per_label", [0, -1, 10_001])
def test_a_number_of_pictures_out_of_range_is_refused(name: str, n_per_label: int) -> None:
    with pytest.raises(BadInputError, match="n_per_label: must be a whole number from 1 to 10000; got"):
        list_samples(name, n_per_label=n_per_label)


def test_the_import_brings_in_nothing_heavy() -> None:
    assert run_python(PRINT_HEAVY_MODULES) == "[]"
