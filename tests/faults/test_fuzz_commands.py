"""Mutations of valid commands: each trains for an epoch on a toy task or ends in an MlmetaError, and nothing else."""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from faults import mutations
from mlmeta.commands.params import flatten_params
from mlmeta.commands.parsing import load_train_commands, parse_attempt, parse_test_commands, parse_train_commands
from mlmeta.data.pictures import choose_pictures
from mlmeta.data.sources import DAMAGED, open_file, quiet_pillow
from mlmeta.data.task import describe_task
from mlmeta.errors import MlmetaError
from mlmeta.evaluate import merge_commands
from mlmeta.spec_builder import describe_model, output_form
from mlmeta.training.evaluation import compute_metrics, measure_model, score_probabilities
from mlmeta.training.loop import train_attempt
from mlmeta.training.preparation import Prepared, prepare_training
from mlmeta.training.recording import chance_loss

LIMIT_S = 20
LIMIT_BYTES = 2 * 2**30
# What a machine of this size would refuse is refused, so that no case may come near the limit.
MACHINE_BYTES = 64 * 2**20
# What the attempt makes an AttemptFailedError of, once its training has begun: see `mlmeta.train`.
BREAKS_TRAINING = (ArithmeticError, IndexError, MemoryError, RuntimeError, ValueError)

resource = pytest.importorskip("resource", reason="needs POSIX timers and figures")


class TooSlowError(BaseException):
    """A case took longer than it may; no `except Exception` holds it."""


def _raise_too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError(f"more than {LIMIT_S} s")


def peak_bytes() -> int:
    """Return the most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if what is inside takes more time or memory than a case may; end the process where it hangs in C."""
    before = signal.signal(signal.SIGALRM, _raise_too_slow)
    faulthandler.dump_traceback_later(10 * LIMIT_S, exit=True)
    peak = peak_bytes()
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    assert peak_bytes() - peak < LIMIT_BYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to start from: ``pictures`` has six 8×8 pictures of each of three colours."""
    root = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    for channel, label in enumerate(("red", "green", "blue")):
        (root / "pictures" / label).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, channel] += 120
            Image.fromarray(pixels).save(root / "pictures" / label / f"{index}.png")
    return root


@pytest.fixture(scope="module", autouse=True)
def small_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every size is checked against a small machine's memory; the picture cache is a new one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLMETA_MEMORY_BYTES", str(MACHINE_BYTES))
        patch.setenv("MLMETA_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


class Forget:
    """Takes the metrics of an epoch."""

    def log_metrics(self, metrics: Any, *, step: int | None = None) -> None:
        json.dumps(metrics)


def check_text(error: MlmetaError) -> None:
    """An error's text says something, and all of it can be written."""
    assert str(error).encode().strip()


def attempt_one_epoch(document: Any, folder: Path) -> str:
    """Do what an attempt does, MLflow and plots left out, for one epoch; return how far it came."""
    with bounded(), warnings.catch_warnings():
        # What torch and torchvision remark about odd arguments is theirs to say.
        warnings.simplefilter("ignore")
        try:
            prepared = prepare(document, folder)
        except MlmetaError as error:
            check_text(error)
            return "refused"
        try:
            run(prepared)
        except MlmetaError as error:
            check_text(error)
            return "failed"
        except BREAKS_TRAINING:
            return "broke"
    return "trained"


def prepare(document: Any, folder: Path) -> Prepared:
    commands = parse_train_commands(document)
    assert parse_train_commands(json.loads(json.dumps(commands.document()))) == commands
    flatten_params(commands.document())
    prepared = prepare_training(commands, base_dir=folder)
    chosen = commands.test
    choose_pictures(prepared.task.pictures, limit=chosen.limit, ids=chosen.ids, seed=commands.seed)
    prepared.commands = commands.model_copy(update={"n_epoch": 1})
    return prepared


def run(prepared: Prepared) -> None:
    describe_task(prepared.task)
    describe_model(prepared.commands, prepared.model)
    chance_loss(prepared)
    trained = train_attempt(prepared, Forget())
    if not trained.state:
        return
    prepared.model.load_state_dict(trained.state)
    tested = prepared.task.batches(prepared.task.select("test"), batch_size=4, device=torch.device("cpu"))
    measured = measure_model(prepared.model, prepared.criterion, tested)
    compute_metrics(measured, score_probabilities(measured.outputs, output_form(prepared.commands.model)))


def fuzz(n: int) -> Callable[[Any], Any]:
    """Return the settings of a fuzz of `n` cases, the same ones every time."""
    return settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("name", mutations.DOCUMENTS)
def test_the_documents_that_are_mutated_train(folder: Path, name: str) -> None:
    assert attempt_one_epoch(mutations.DOCUMENTS[name], folder) == "trained"


STEP: Any = {"name": "StepLR", "step_size": 1}
ENDLESS = {"name": "LBFGS", "lr": 1e-12, "max_iter": 10**9, "tolerance_grad": 0, "tolerance_change": -1.0}
# What is small to write and would take minutes: how it is refused.
BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "a median of a huge window": ({"image_ops": [{"filter": {"name": "MedianFilter", "size": 9999}}]}, "at most 99"),
    "a mode of a huge window": ({"image_ops": [{"filter": {"name": "ModeFilter", "size": 10**6}}]}, "at most 99"),
    "augmentations": ({"transform": {"AugMix": {"mixture_width": 100, "chain_depth": 100}}}, "at most 20"),
    "transforms of transforms": (
        {
            "transform": [
                {"RandomApply": {"transforms": [{"RandomOrder": {"transforms": ["RandomEqualize"] * 30}}] * 30}}
            ]
        },
        "at most 500 transforms",
    ),
    "an optimizer that does not end": ({"optimizer": ENDLESS}, "between 1 and 1,000"),
    "schedulers of schedulers": (
        {
            "scheduler": {
                "name": "ChainedScheduler",
                "schedulers": [{"name": "ChainedScheduler", "schedulers": [STEP] * 30}] * 30,
            }
        },
        "at most 100 schedulers",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_minutes_is_refused(folder: Path, name: str) -> None:
    change, message = BOMBS[name]
    with bounded(), pytest.raises(MlmetaError, match=message):
        prepare({**mutations.DOCUMENTS["convolutions"], **change}, folder)


@pytest.mark.parametrize("name", mutations.DOCUMENTS)
@fuzz(230)
@given(data=st.data())
def test_mutated_train_commands_train_or_are_refused(folder: Path, name: str, data: st.DataObject) -> None:
    document = data.draw(mutations.mutated(mutations.DOCUMENTS[name]))
    assert attempt_one_epoch(document, folder) in ("trained", "refused", "failed", "broke")


def _break_bytes(draw: Any, content: bytes) -> bytes:
    """Draw what a file with a few bytes changed, added, taken out or cut off holds."""
    broken = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(broken)))
        kind = draw(st.sampled_from(["change", "insert", "delete", "cut"]))
        if kind == "change" and at < len(broken):
            broken[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            broken[at:at] = draw(
                st.one_of(st.binary(max_size=6), st.sampled_from([b'"', b"[" * 500, b"{", b"9" * 5_000]))
            )
        elif kind == "delete":
            del broken[at : at + draw(st.integers(1, 20))]
        elif kind == "cut" and draw(st.booleans()):
            del broken[at:]
    return bytes(broken)


@fuzz(300)
@given(data=st.data())
def test_damaged_commands_files_are_read_or_refused(folder: Path, data: st.DataObject) -> None:
    document = data.draw(st.sampled_from(sorted(mutations.DOCUMENTS)))
    text = json.dumps(mutations.DOCUMENTS[document], indent=data.draw(st.sampled_from([None, 1])))
    (folder / "commands.json").write_bytes(_break_bytes(data.draw, text.encode()))
    with bounded():
        try:
            load_train_commands(folder / "commands.json")
        except MlmetaError as error:
            check_text(error)


TEST_COMMANDS = {
    "model_name": "toy",
    "label_names": ["red", "green"],
    "data": {"source": "folder", "path": "pictures"},
    "transform": mutations.RANDOM,
    "criterion": {"name": "CrossEntropyLoss"},
    "batch_size": 4,
    "limit": 3,
    "ids": [],
    "seed": 2,
}


@fuzz(300)
@given(data=st.data())
def test_mutated_test_commands_and_attempts_are_read_or_refused(data: st.DataObject) -> None:
    train = mutations.DOCUMENTS["residuals"]
    attempt = {"name": "toy", "training_commands": train, "testing_commands": TEST_COMMANDS, "status": "Complete"}
    document = data.draw(mutations.mutated(data.draw(st.sampled_from([TEST_COMMANDS, attempt, train]))))
    with bounded():
        for parse in (parse_test_commands, parse_attempt):
            try:
                parsed = parse(document)
            except MlmetaError as error:
                check_text(error)
            else:
                json.dumps(parsed.document())
        try:
            merge_commands(parse_train_commands(train), parse_test_commands(document))
        except MlmetaError as error:
            check_text(error)


FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"progressive": True}, "PNG": {}, "GIF": {"save_all": True}, "WEBP": {"lossless": True}, "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
@fuzz(50)
@given(data=st.data())
def test_damaged_pictures_are_pictures_or_damaged(folder: Path, kind: str, data: st.DataObject) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(pixels)
    others = {} if kind not in ("JPEG", "PNG", "WEBP", "TIFF") else {"exif": exif}
    frames = {"append_images": [image.rotate(90)]} if kind == "GIF" else {}
    image.save(folder / "whole", kind, **FORMATS[kind], **others, **frames)
    (folder / "broken.png").write_bytes(_break_bytes(data.draw, (folder / "whole").read_bytes()))
    with bounded(), quiet_pillow():
        try:
            assert open_file(folder / "broken.png").size >= (1, 1)
        except DAMAGED:
            pass
