from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneOut, StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import mlmeta.data.metafeatures
from mlmeta.data.metafeatures import META_FEATURES, describe_pictures, feature_folder, remember_features
from mlmeta.errors import PicturesError


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The real handwritten digits: (1797, 8, 8, 1) uint8 and their labels."""
    data = load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8)[..., None], data.target


def _colour_pictures(n: int, *, seed: int = 0, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(i[..., 0]).resize((16, 16), Image.Resampling.BOX)).ravel() for i in images]
    )


def _unlike_chance(accuracy: float, labels: np.ndarray) -> float:
    chance = max(Counter(labels.tolist()).values()) / len(labels)
    return (accuracy - chance) / (1 - chance)


def test_the_table_names_each_meta_feature_with_its_range_and_meaning(digits):
    found = describe_pictures(digits[0][:100], digits[1][:100], n_labels=10)
    assert list(found) == list(META_FEATURES)
    outside = {
        name: value
        for name, value in found.items()
        if not META_FEATURES[name][0][0] <= value <= META_FEATURES[name][0][1]
    }
    assert outside == {}
    assert {type(value) for value in found.values()} == {float}
    assert all(meaning.endswith(".") and meaning.count(". ") == 0 for _, meaning in META_FEATURES.values())


def test_counts_are_logarithms_of_all_pictures_and_all_labels(digits):
    found = describe_pictures(digits[0][:300], digits[1][:300], n_labels=12, max_pictures=50)
    assert found["ln_n"] == pytest.approx(math.log(300))
    assert found["ln_n_labels"] == pytest.approx(math.log(12))
    assert found["ln_n_per_label"] == pytest.approx(math.log(25))


@pytest.mark.parametrize(
    ("labels", "n_labels", "expected"),
    [
        ([0, 1, 2, 3], 4, 0.0),
        ([0, 0, 0, 0], 4, 1.0),
        ([0, 0, 1, 1], 4, 0.5),
        ([0, 0, 0, 1], 2, 1 - (0.75 * math.log2(4 / 3) + 0.25 * 2)),
        ([0, 0, 0, 0], 1, 0.0),
    ],
)
def test_imbalance_is_one_less_the_normalised_entropy_of_the_labels(labels, n_labels, expected):
    found = describe_pictures(_colour_pictures(4), labels, n_labels=n_labels)
    assert found["imbalance"] == pytest.approx(expected, abs=1e-12)


def test_height_and_width_are_medians_and_channels_the_most_common():
    images = [np.zeros(shape, np.uint8) for shape in [(5, 40, 3), (7, 20, 3), (90, 30, 1)]]
    found = describe_pictures(images, [0, 1, 0], n_labels=2)
    assert (found["height"], found["width"], found["channels"]) == (7.0, 30.0, 3.0)


def test_colour_means_and_deviations_equal_numpys_over_all_pixels():
    images = _colour_pictures(20) // np.array([1, 2, 4], np.uint8)
    found = describe_pictures(images, [0, 1] * 10, n_labels=2)
    pixels = images.reshape(-1, 3) / 255
    assert [found[f"mean_{c}"] for c in ("red", "green", "blue")] == pytest.approx(pixels.mean(axis=0))
    assert [found[f"std_{c}"] for c in ("red", "green", "blue")] == pytest.approx(pixels.std(axis=0))


def test_a_large_picture_weighs_no_more_than_a_small_one():
    images = [np.zeros((2, 2, 3), np.uint8), np.full((50, 50, 3), 255, np.uint8)]
    found = describe_pictures(images, [0, 1], n_labels=2)
    assert (found["mean_green"], found["std_green"]) == pytest.approx((0.5, 0.5))


def test_grey_pictures_are_described_as_colour_pictures_of_three_equal_channels(digits):
    images, labels = digits[0][:200], digits[1][:200]
    grey = describe_pictures(images, labels, n_labels=10)
    colour = describe_pictures(np.repeat(images, 3, axis=3), labels, n_labels=10)
    assert (grey.pop("channels"), colour.pop("channels")) == (1.0, 3.0)
    assert colour == pytest.approx(grey)
    assert grey["mean_red"] == pytest.approx(images.mean() / 255)


def test_the_alpha_channel_changes_nothing_but_the_number_of_channels():
    images = _colour_pictures(12)
    alpha = np.random.default_rng(1).integers(0, 256, (*images.shape[:3], 1), dtype=np.uint8)
    plain = describe_pictures(images, [0, 1] * 6, n_labels=2)
    with_alpha = describe_pictures(np.concatenate([images, alpha], axis=3), [0, 1] * 6, n_labels=2)
    assert with_alpha == {**plain, "channels": 4.0}


def test_difference_entropy_of_a_picture_worked_out_by_hand():
    # Steps down: 10, 10, 30; steps right: 0, 0, 0, 20. So 0 three times, 10 twice, 20 and 30 once.
    image = np.array([[0, 0, 0], [10, 10, 30]], np.uint8)[..., None]
    expected = 3 / 7 * math.log2(7 / 3) + 2 / 7 * math.log2(7 / 2) + 2 * (1 / 7) * math.log2(7)
    found = describe_pictures([image, image], [0, 1], n_labels=2)
    assert found["difference_entropy"] == pytest.approx(expected)


def test_a_step_down_and_a_step_up_are_unlike():
    image = np.array([[0, 9, 0]], np.uint8)[..., None]
    assert describe_pictures([image, image], [0, 1], n_labels=2)["difference_entropy"] == pytest.approx(1.0)


def test_knn_accuracy_equals_sklearns_leave_one_out(digits):
    images, labels = digits[0][:300], digits[1][:300]
    scores = cross_val_score(KNeighborsClassifier(3), _thumbnails(images), labels, cv=LeaveOneOut())
    found = describe_pictures(images, labels, n_labels=10)
    assert found["knn_accuracy"] == pytest.approx(_unlike_chance(scores.mean(), labels))


def test_knn_accuracy_equals_sklearns_where_votes_are_tied():
    images = np.random.default_rng(5).integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)
    labels = np.arange(60) % 7
    scores = cross_val_score(KNeighborsClassifier(3), images.reshape(60, -1), labels, cv=LeaveOneOut())
    found = describe_pictures(images, labels, n_labels=7)
    assert found["knn_accuracy"] == pytest.approx(_unlike_chance(scores.mean(), labels))


def test_logistic_accuracy_is_near_that_of_a_fully_converged_model(digits):
    images, labels = digits[0][:600], digits[1][:600]
    components = PCA(32).fit_transform(_thumbnails(images))
    components /= np.sqrt(np.mean(components**2))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(LogisticRegression(max_iter=5000), components, labels, cv=folds)
    found = describe_pictures(images, labels, n_labels=10)
    assert found["logistic_accuracy"] == pytest.approx(_unlike_chance(scores.mean(), labels), abs=0.03)


@pytest.mark.parametrize("landmarker", ["knn_accuracy", "logistic_accuracy"])
def test_digits_are_easier_than_digits_with_shuffled_labels(digits, landmarker):
    images, labels = digits[0][:500], digits[1][:500]
    shuffled = np.random.default_rng(0).permutation(labels)
    assert describe_pictures(images, labels, n_labels=10)[landmarker] > 0.8
    assert abs(describe_pictures(images, shuffled, n_labels=10)[landmarker]) < 0.15


@pytest.mark.parametrize("landmarker", ["knn_accuracy", "logistic_accuracy"])
def test_landmarkers_leave_out_labels_with_a_single_picture(digits, landmarker):
    images, labels = digits[0][:100], digits[1][:100]
    with_single = describe_pictures(digits[0][:101], [*labels, 10], n_labels=11)
    assert with_single[landmarker] == pytest.approx(describe_pictures(images, labels, n_labels=10)[landmarker])


@pytest.mark.parametrize(
    ("images", "labels", "n_labels"),
    [
        (_colour_pictures(2), [0, 1], 2),
        (_colour_pictures(3), [0, 0, 1], 2),
        (_colour_pictures(9), list(range(9)), 9),
        (_colour_pictures(6), [0] * 6, 1),
        (np.full((20, 4, 4, 3), 77, np.uint8), [0, 1] * 10, 2),
        (np.zeros((4, 1, 1, 4), np.uint8), [0, 0, 1, 1], 5),
    ],
    ids=["two pictures", "one pair", "all single", "one label", "all constant", "one pixel"],
)
def test_landmarkers_are_zero_where_nothing_can_be_learned(images, labels, n_labels):
    found = describe_pictures(images, labels, n_labels=n_labels)
    assert (found["knn_accuracy"], found["logistic_accuracy"]) == (0.0, 0.0)
    assert all(math.isfinite(value) for value in found.values())


def test_constant_pictures_have_no_deviation_and_no_difference_entropy():
    found = describe_pictures(np.full((6, 4, 4, 3), 51, np.uint8), [0, 1] * 3, n_labels=2)
    assert found["mean_blue"] == pytest.approx(0.2)
    assert found["std_blue"] == pytest.approx(0.0, abs=1e-7)
    assert found["difference_entropy"] == 0.0


def test_landmarkers_never_fall_below_minus_one():
    # The two grey pictures are the nearest to every noisy one: each answer is wrong, uncut it were -20.
    images = np.concatenate([_colour_pictures(40), np.full((2, 6, 9, 3), 128, np.uint8)])
    found = describe_pictures(images, [0] * 40 + [1, 1], n_labels=2)
    assert found["knn_accuracy"] == -1.0


def test_landmarkers_are_one_where_every_picture_shows_its_label():
    black, white = np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)
    found = describe_pictures([black] * 5 + [white] * 5, [0] * 5 + [1] * 5, n_labels=2)
    assert (found["knn_accuracy"], found["logistic_accuracy"]) == (1.0, 1.0)


class _CountingPictures:
    """Pictures that remember which of them were read."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.images[index]


def test_only_so_many_pictures_are_read_and_each_label_has_its_share():
    images = _CountingPictures(_colour_pictures(400, size=(4, 4)))
    labels = [0] * 300 + [1] * 80 + [2] * 20
    describe_pictures(images, labels, n_labels=3, max_pictures=40)
    assert len(images.read) == len(set(images.read)) == 40
    assert Counter(labels[i] for i in images.read) == {0: 30, 1: 8, 2: 2}


def test_with_very_many_labels_those_looked_at_keep_several_pictures_each():
    images = _CountingPictures(_colour_pictures(600, size=(4, 4)))
    labels = [i % 200 for i in range(600)]
    describe_pictures(images, labels, n_labels=200, max_pictures=50)
    assert Counter(labels[i] for i in images.read).most_common()[-1][1] == 3
    assert len(images.read) == 30


def test_equal_seeds_give_equal_numbers_and_the_seed_decides_the_draw(digits):
    images, labels = digits
    first, again, other = (
        describe_pictures(images, labels, n_labels=10, seed=seed, max_pictures=100) for seed in (3, 3, 4)
    )
    assert first == again
    assert first["mean_red"] != other["mean_red"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([], [], "without a picture"),
        (_colour_pictures(2), [0], "2 pictures and 1 labels"),
        (_colour_pictures(2), [0, 2], "from 0 to 1; got 0 to 2"),
        (_colour_pictures(2), [-1, 0], "from 0 to 1; got -1 to 0"),
        (_colour_pictures(2) / 255, [0, 1], "float64"),
        (_colour_pictures(2)[..., 0], [0, 1], r"shape \(6, 9\)"),
        (_colour_pictures(2)[..., :2], [0, 1], r"shape \(6, 9, 2\)"),
        (_colour_pictures(2)[:, :0], [0, 1], r"shape \(0, 9, 3\)"),
    ],
)
def test_what_cannot_be_described_is_refused_with_what_came(images, labels, message):
    with pytest.raises(PicturesError, match=message):
        describe_pictures(images, labels, n_labels=2)


def test_importing_the_module_needs_neither_sklearn_nor_torch_nor_mlflow():
    code = "import sys, mlmeta.data.metafeatures; print({'sklearn', 'torch', 'mlflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# Kept between attempts


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path))
    return []


def remember(calls: list[int], described: object, value: float = 1.0) -> dict[str, float]:
    def compute() -> dict[str, float]:
        calls.append(1)
        return dict.fromkeys(META_FEATURES, value)

    return remember_features(described, compute)


def test_the_same_task_is_described_once(calls: list[int]) -> None:
    first = remember(calls, ["a", 1])
    assert remember(calls, ["a", 1], value=2.0) == first
    assert len(calls) == 1
    remember(calls, ["a", 2])
    remember(calls, ["b", 1])
    assert len(calls) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"ln_n": 1.0}', "null"])
def test_a_damaged_file_is_made_again(calls: list[int], text: str) -> None:
    remember(calls, "task")
    (file,) = feature_folder().glob("*.json")
    file.write_text(text, encoding="utf-8")
    assert remember(calls, "task", value=3.0)["ln_n"] == 3.0
    assert remember(calls, "task")["ln_n"] == 3.0
    assert len(calls) == 2


def test_no_folder_costs_nothing_but_time(calls: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "file"))
    assert remember(calls, "task") == remember(calls, "task")
    assert len(calls) == 2


def test_of_too_many_the_oldest_go(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlmeta.data.metafeatures, "MOST_TASKS", 3)
    for task in range(6):
        remember(calls, task)
    assert len(list(feature_folder().iterdir())) == 3
