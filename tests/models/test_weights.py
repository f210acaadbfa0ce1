"""Weights files: a round trip, and that nothing hostile, damaged or foreign gets into a model."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlmeta.errors import NotFoundError, WeightsError
from mlmeta.models import weights
from mlmeta.models.weights import MAX_TENSORS, hash_file, load_backbone, load_weights, read_weights, save_weights


def make_model(n_labels: int = 3, *, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, n_labels))


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def save(path: Path, state: Any, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_come_back_as_they_were_saved(tmp_path: Path, suffix: str) -> None:
    state = make_model().state_dict()
    save_weights(state, tmp_path / "models", "net 1.0")
    read = read_weights(tmp_path / "models" / f"net 1.0.{suffix}")
    assert equal(read, state)
    assert all(not tensor.requires_grad for tensor in read.values())
    other = make_model(seed=1)
    load_weights(other, read, source="net")
    assert equal(other.state_dict(), state)


def test_the_sha_256_is_that_of_the_pt_file(tmp_path: Path) -> None:
    sha256 = save_weights(make_model().state_dict(), tmp_path, "net")
    assert sha256 == hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest() == hash_file(tmp_path / "net.pt")
    assert equal(read_weights(tmp_path / "net.pt", sha256=sha256), make_model().state_dict())


def test_a_file_with_another_sha_256_is_refused(tmp_path: Path) -> None:
    save_weights(make_model().state_dict(), tmp_path, "net")
    with pytest.raises(WeightsError, match=r"net\.pt: its SHA-256 is [0-9a-f]{12}…, the attempt recorded 0{12}…"):
        read_weights(tmp_path / "net.pt", sha256="0" * 64)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_tied_views_and_turned_weights_are_saved_apart(tmp_path: Path, suffix: str) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    turned = torch.arange(60.0).reshape(1, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"a": weight, "tied": weight, "view": weight[1], "turned": weight.T, "wide": weight[:1].expand(5, 4),
             "channels_last": turned}  # fmt: skip
    save_weights(state, tmp_path, "net")
    read = read_weights(tmp_path / f"net.{suffix}")
    assert equal(read, state)
    assert all(tensor.is_contiguous() for tensor in read.values())


def test_saving_changes_nothing_in_the_model(tmp_path: Path) -> None:
    model = make_model()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    save_weights(model.state_dict(), tmp_path, "net")
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch's older format"])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_what_users_save_themselves_is_read(tmp_path: Path, zipped: bool) -> None:
    model = make_model()
    tied = model.state_dict() | {"tied": model[0].weight, "parameter": nn.Parameter(torch.ones(2).half())}
    state = OrderedDict(tied)
    read = read_weights(save(tmp_path / "x.pth", state, _use_new_zipfile_serialization=zipped))
    assert equal(read, state)


class Attack:
    """What a hostile file does: on loading it makes a file beside itself."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.file}'",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch's older format"])
@pytest.mark.parametrize("place", ["value", "key", "whole"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, zipped: bool, place: str) -> None:
    attack = Attack(tmp_path / "made")
    state = {"value": {"a": attack}, "key": {"a": torch.ones(2), ("b", attack): 1}, "whole": attack}[place]
    file = save(tmp_path / "x.pt", state, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"x\.pt: .*it asks for (posix|nt)\.system, which no state dict needs"):
        read_weights(file)
    assert not (tmp_path / "made").exists()


def test_a_plain_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Attack(tmp_path / "made"), protocol=4))
    with pytest.raises(WeightsError, match="is not a state dict that can be loaded safely"):
        read_weights(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


class Hungry:
    """What a file does to take all memory: zeros without end, by a name that torch itself would allow."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**15,)


def test_a_pickle_that_would_take_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"it asks for (builtins|__builtin__)\.bytearray"):
        read_weights(save(tmp_path / "x.pt", {"a": Hungry()}))


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.pt", {"a": torch.zeros(1_000_000)})
    with zipfile.ZipFile(tmp_path / "x.pt") as plain, zipfile.ZipFile(tmp_path / "y.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="it would unpack to more than its own size"):
        read_weights(tmp_path / "y.pt")


def make_bytes(write: Callable[[io.BytesIO], Any]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


WHOLE = make_bytes(lambda stream: torch.save({"a": torch.arange(1000.0)}, stream))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no weights", WHOLE[: len(WHOLE) // 2], WHOLE[:-30], b"PK\x03\x04", b"\x80\x02K\x01.", os.urandom(500),
     b"\x08\0\0\0\0\0\0\0{\"a\":1}}", b"\xff" * 100],
    ids=["nothing", "text", "half", "cut", "signature", "a number", "noise", "header", "huge header"],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"x\.{suffix}: is not a state dict that can be loaded safely: .") as caught:
        read_weights(tmp_path / f"x.{suffix}")
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_random_damage_gives_weights_or_a_weights_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(200):
        damaged = bytearray(WHOLE)
        for position in rng.integers(0, len(WHOLE), 6):
            damaged[position] = rng.integers(256)
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            outcomes.append(read_weights(tmp_path / "x.pt"))
        except WeightsError as error:
            outcomes.append(str(error))
    assert len(outcomes) == 200


@pytest.mark.parametrize(
    "state",
    [
        [torch.ones(2)], torch.ones(2), {"a": 1}, {"state_dict": {"a": torch.ones(2)}}, {1: torch.ones(2)},
        {"a": torch.ones(2), "epoch": 3}, None, "weights",
    ],
    ids=["list", "tensor", "number", "wrapped", "no name", "more", "nothing", "text"],
)  # fmt: skip
def test_what_is_no_state_dict_is_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(WeightsError, match=r"x\.pt: holds more than a state dict's tensors; refused"):
        read_weights(save(tmp_path / "x.pt", state))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_too_many_tensors_is_refused_before_any_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.setattr(weights, "MAX_TENSORS", 3)
    state = {str(i): torch.ones(2) for i in range(4)}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"x\.pt: .* it holds more than 3 tensors"):
        read_weights(tmp_path / "x.pt")


def test_a_numpy_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"it asks for \w+\.\w+, which no state dict needs"):
        read_weights(save(tmp_path / "x.pt", {"a": np.ones(2)}))


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.eye(3).to_sparse(), id="sparse"),
        pytest.param(torch.ones(2, dtype=torch.complex64), id="complex"),
        pytest.param(torch.empty(10**6, 10**6, device="meta"), id="without numbers"),
    ],
)
def test_tensors_that_are_not_dense_real_numbers_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(WeightsError, match=r"x\.pt: (a is not a dense tensor|is not a state dict .* asks for torch)"):
        read_weights(save(tmp_path / "x.pt", {"a": tensor}))


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    tensor = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)
    with pytest.raises(WeightsError, match=r"asks for torch"):
        read_weights(save(tmp_path / "x.pt", {"a": tensor}))


def test_complex_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="a is not a dense tensor of real numbers"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch's older format"])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_small_file_that_claims_a_gigantic_tensor_is_refused(tmp_path: Path, zipped: bool) -> None:
    giant = torch.zeros(1).expand(10**9, 10**3)
    file = save(tmp_path / "x.pt", {"a": giant}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"x\.pt: a claims 1,000,000,000,000 numbers, more than the file holds"):
        read_weights(file)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_an_older_file_that_claims_more_bytes_than_it_has_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "x.pt", {"a": torch.zeros(3)}, _use_new_zipfile_serialization=False)
    small, huge = b"cpuq\x06K\x03N", b"cpuq\x06J\x00\x00\x00\x7fN"
    assert file.read_bytes().count(small) == 1
    file.write_bytes(file.read_bytes().replace(small, huge))
    with pytest.raises(WeightsError, match=r"x\.pt: is not a state dict that can be loaded safely"):
        read_weights(file)


def test_many_names_for_one_tensor_may_not_claim_more_than_the_file_plausibly_holds(tmp_path: Path) -> None:
    one = torch.zeros(1_000_000)
    assert len(read_weights(save(tmp_path / "x.pt", {str(index): one for index in range(3)}))) == 3
    with pytest.raises(WeightsError, match=r"its tensors claim 400,000,000 bytes, the file has 4,"):
        read_weights(save(tmp_path / "x.pt", {str(index): one for index in range(100)}))


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    one = torch.zeros(1)
    with pytest.raises(WeightsError, match="holds 50,001 tensors; at most 50,000 are read"):
        read_weights(save(tmp_path / "x.pt", {str(index): one for index in range(MAX_TENSORS + 1)}))


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_module_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt: is not a state dict"):
        read_weights(tmp_path / "x.pt")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"x\.pt: there is no such weights file"):
        read_weights(tmp_path / "x.pt")


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder, not a weights file"):
        read_weights(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(make_model().state_dict(), tmp_path, "net")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(WeightsError, match=r"net\.pt: .*Permission denied"):
        read_weights(tmp_path / "net.pt", sha256="0" * 64)


def change(**changes: Tensor | None) -> dict[str, Tensor]:
    state = make_model(seed=1).state_dict() | changes
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (change(**{"3.bias": None}), r"\(1 differences\): 3\.bias is missing"),
        (change(extra=torch.ones(1)), r"\(1 differences\): extra is not of this model"),
        (change(**{"3.bias": torch.ones(4)}), r"3\.bias is \(4,\), the model has \(3,\)"),
        (change(**{"3.bias": torch.ones(1, 3)}), r"3\.bias is \(1, 3\), the model has \(3,\)"),
        (change(**{"3.bias": torch.ones(3, dtype=torch.int64)}), r"3\.bias is torch\.int64, the model has torch\.fl"),
        (change(**{"1.num_batches_tracked": torch.tensor(1.5)}), r"num_batches_tracked is torch\.float32"),
        ({}, r"\(9 differences\): 0\.bias is missing; 0\.weight is missing; 1\.bias is missing$"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused_and_change_nothing(state: dict[str, Tensor], message: str) -> None:
    model = make_model()
    with pytest.raises(WeightsError, match=rf"^net\.pt: does not fit the model .*{message}"):
        load_weights(model, state, source="net.pt")
    assert equal(model.state_dict(), make_model().state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_numbers_of_another_width_are_taken_over(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in
             make_model(seed=1).state_dict().items()}  # fmt: skip
    model = make_model()
    load_weights(model, state, source="net")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(model[3].weight, state["3.weight"].float())


def test_a_backbone_takes_what_fits_and_leaves_the_head() -> None:
    model, other = make_model(3), make_model(3, seed=1)
    state = other.state_dict() | {"3.weight": torch.ones(5, 64), "3.bias": torch.ones(5), "more": torch.ones(1)}
    model[0] = nn.Conv2d(1, 4, 3)
    model[3] = head = nn.Linear(8, 3)
    before = head.weight.detach().clone()
    assert load_backbone(model, state, source="net") == 7
    assert torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(head.weight, before)


def test_a_backbone_that_shares_less_than_half_of_the_numbers_is_refused_and_changes_nothing() -> None:
    model, state = make_model(3), make_model(4, seed=1).state_dict()
    with pytest.raises(WeightsError, match=r"net: has 23% of the model's weights by name and shape; half are needed"):
        load_backbone(model, state, source="net")
    assert equal(model.state_dict(), make_model(3).state_dict())


@pytest.mark.parametrize(("n_shared", "taken"), [(9, False), (10, True), (11, True)])
def test_half_of_the_numbers_is_enough(n_shared: int, taken: bool) -> None:
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(n_shared)), "b": nn.Parameter(torch.zeros(20 - n_shared))})
    state = {"a": torch.ones(n_shared)}
    if taken:
        assert load_backbone(model, state, source="net") == 1
        assert torch.equal(model["a"], torch.ones(n_shared))
    else:
        with pytest.raises(WeightsError, match="has 45%"):
            load_backbone(model, state, source="net")


def test_a_backbone_takes_no_integers_for_floating_point_numbers() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(WeightsError, match="has 20%"):
        load_backbone(model, {"weight": torch.ones(4, 4, dtype=torch.int64), "bias": torch.ones(4)}, source="net")


def test_a_file_of_a_hundred_thousand_tensors_is_refused(tmp_path: Path) -> None:
    names = [f"layer.{index}.weight" for index in range(100_000)]
    with pytest.raises(WeightsError, match="holds 100,000 tensors; at most 50,000 are read"):
        read_weights(save(tmp_path / "x.pt", dict.fromkeys(names, torch.zeros(1))))
