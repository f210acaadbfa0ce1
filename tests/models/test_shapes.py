from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from torch import nn

from mlmeta.commands import catalog, validation
from mlmeta.errors import BadInputError, CommandsError, MlmetaError
from mlmeta.models import shapes
from mlmeta.models.shapes import (
    LayerRow,
    SizeGuard,
    construct_chain,
    count_numbers,
    format_bytes,
    memory_bytes,
    refuse_outputs,
    refuse_weights,
    trace_layers,
)

Spec = dict[str, Any]
PICTURE = (3, 16, 16)
HEAD: list[Spec] = [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]
FLATTEN: Spec = {"name": "Flatten"}
ROWS: Spec = {"name": "Flatten", "end_dim": 2}
VOLUME: Spec = {"name": "Unflatten", "dim": 3, "unflattened_size": [4, 4]}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def trace(layers: list[Spec], *, n_labels: int = 4) -> tuple[list[Spec], list[LayerRow]]:
    concrete, found = trace_layers(layers, n_labels=n_labels, input_shape=PICTURE)
    return concrete, found.rows


# What is filled in


def test_the_rows_say_what_each_layer_gives() -> None:
    conv = {"name": "Conv2d", "in_channels": "auto", "out_channels": 6, "kernel_size": 5}
    concrete, rows = trace([conv, {"name": "ReLU"}, {"name": "MaxPool2d", "kernel_size": 2}, *HEAD])
    assert rows == [
        LayerRow("model.layers.0", "Conv2d", (6, 12, 12), 6 * 3 * 25 + 6, 4 * 6 * 12 * 12),
        LayerRow("model.layers.1", "ReLU", (6, 12, 12), 0, 4 * 6 * 12 * 12),
        LayerRow("model.layers.2", "MaxPool2d", (6, 6, 6), 0, 4 * 6 * 6 * 6),
        LayerRow("model.layers.3", "Flatten", (216,), 0, 4 * 216),
        LayerRow("model.layers.4", "Linear", (4,), 216 * 4 + 4, 16),
    ]
    assert concrete[0]["in_channels"] == 3
    assert concrete[-1] == {"name": "Linear", "in_features": 216, "out_features": 4}


def test_the_commands_are_left_as_they_are() -> None:
    layers = [{"name": "Residual", "layers": [{"name": "LazyConv2d", "out_channels": 5, "kernel_size": 1}]}, *HEAD]
    kept = json.dumps(layers)
    trace(layers)
    assert json.dumps(layers) == kept


def test_paths_lead_to_the_layers_inside_others() -> None:
    conv = {"name": "LazyConv2d", "out_channels": 5, "kernel_size": 3, "stride": 2, "padding": 1}
    concat = {"name": "Concat", "layers": [{"name": "Sequential", "layers": [conv]}, conv]}
    _, rows = trace([{"name": "Residual", "layers": [concat]}, *HEAD])
    assert [(row.path, row.name, row.output_shape) for row in rows[:3]] == [
        ("model.layers.0.layers.0.layers.0.layers.0", "Conv2d", (5, 8, 8)),
        ("model.layers.0.layers.0.layers.1", "Conv2d", (5, 8, 8)),
        ("model.layers.0.projection.0", "Conv2d", (10, 8, 8)),
    ]


def test_long_sequences_and_high_stacks_are_traced_without_running_through_them() -> None:
    long = [{"name": "Unflatten", "dim": 3, "unflattened_size": [-1, 1]}, {"name": "Flatten", "end_dim": 3}]
    _, rows = trace(
        [{"name": "Upsample", "size": [200, 200]}, *long, {"name": "LSTM", "input_size": 1, "hidden_size": 2}, *HEAD]
    )
    assert rows[3].output_shape == (120_000, 2)
    block = {"name": "TransformerEncoderLayer", "d_model": "auto", "nhead": 2, "dim_feedforward": 4}
    _, rows = trace([ROWS, {"name": "TransformerEncoder", "encoder_layer": block, "num_layers": 300}, *HEAD])
    per_layer = 3 * (16 * 16 + 16) + (16 * 16 + 16) + (16 * 4 + 4) + (4 * 16 + 16) + 2 * 2 * 16
    assert rows[1] == LayerRow("model.layers.1", "TransformerEncoder", (48, 16), 300 * per_layer, 4 * 48 * 16)


def test_a_chain_is_made_of_what_was_filled_in() -> None:
    concrete, rows = trace([{"name": "LazyConv2d", "out_channels": 5, "kernel_size": 3}, *HEAD])
    chain = construct_chain(concrete, "model.layers", device="meta")
    assert sum(p.numel() for p in chain.parameters()) == sum(row.n_parameters for row in rows)
    assert all(p.device.type == "meta" for p in chain.parameters())


# What is refused


def conv2d(**changed: Any) -> Spec:
    return {"name": "Conv2d", "in_channels": "auto", "out_channels": 4, "kernel_size": 3, **changed}


def linear(**changed: Any) -> Spec:
    return {"name": "Linear", "in_features": "auto", "out_features": "n_labels", **changed}


def encoder(*, num_layers: int = 1, **changed: Any) -> Spec:
    block = {"name": "TransformerEncoderLayer", "d_model": "auto", "nhead": 4, "dim_feedforward": 8, **changed}
    return {"name": "TransformerEncoder", "encoder_layer": block, "num_layers": num_layers}


MISFITS: list[tuple[list[Spec], str, str]] = [
    (
        [FLATTEN, linear(in_features=767)],
        "1",
        r"Linear does not fit: \(n, 768\) arrives, so in_features .* 768, not 767",
    ),
    ([FLATTEN, linear(in_features=769)], "1", r"in_features would have to be 768, not 769 \(write \"auto\""),
    (
        [conv2d(kernel_size=20), *HEAD],
        "0",
        r"Conv2d does not fit: \(n, 3, 16, 16\) arrives. torch says: .*Kernel size can't",
    ),
    (
        [linear()],
        "0",
        r"one number a label, \(n, 4\); it gives \(n, 3, 16, 4\); put .*Flatten.* before the last Linear",
    ),
    ([FLATTEN, linear(out_features=7)], "1", r"\(n, 4\); it gives \(n, 7\); write \"n_labels\" for its out_features"),
    (
        [FLATTEN, conv2d(), *HEAD],
        "1",
        r"Conv2d does not fit: \(n, 768\) arrives, it wants \(n, channels, height, width\)",
    ),
    (
        [FLATTEN, {"name": "BatchNorm2d", "num_features": "auto"}, linear()],
        "1",
        r"BatchNorm2d does not fit: \(n, 768\)",
    ),
    ([{"name": "MaxUnpool2d", "kernel_size": 2}, *HEAD], "0", "no MaxPool with return_indices stands before it"),
    ([conv2d(groups=2), *HEAD], "0", "Conv2d refuses its arguments: in_channels must be divisible by groups"),
    ([FLATTEN, linear(out_features=-3), *HEAD], "1", "Linear refuses its arguments: .*negative dimension"),
    ([FLATTEN, linear(out_features=0), *HEAD], "1", r"Linear must give something for each picture; it gives \(2, 0\)"),
    (
        [{"name": "Dropout", "p": 2.0}, *HEAD],
        "0",
        "Dropout refuses its arguments: dropout probability has to be between",
    ),
    ([{"name": "GroupNorm", "num_groups": 0, "num_channels": "auto"}, *HEAD], "0", "GroupNorm refuses its arguments"),
    ([{"name": "Upsample", "size": 8, "mode": "auto"}, *HEAD], "0", "Upsample does not fit: .* torch says: .*auto"),
    (
        [ROWS, encoder(nhead=3), *HEAD],
        "1.encoder_layer",
        "TransformerEncoderLayer refuses its arguments: embed_dim must",
    ),
    ([ROWS, encoder(num_layers=0), *HEAD], "1", "TransformerEncoder does not fit"),
    ([ROWS, encoder(d_model=12), *HEAD], "1", "TransformerEncoder does not fit: "),
    (
        [{"name": "Residual", "layers": [FLATTEN]}, *HEAD],
        "0",
        r"Residual does not fit: its input \(3, 16, 16\) and its output \(768,\) cannot be added",
    ),
    ([{"name": "Residual", "layers": [conv2d(in_channels=4)]}, *HEAD], "0.layers.0", "in_channels would have to be 3"),
    (
        [{"name": "Concat", "layers": [conv2d(), {"name": "Identity"}]}, *HEAD],
        "0",
        r"branches give \(n, 4, 14, 14\), \(n, 3, 16, 16\), which cannot be joined along dimension 1",
    ),
    ([{"name": "Concat", "layers": [{"name": "ReLU"}], "dim": 0}, *HEAD], "0", "along dimension 0 would join pictures"),
    (
        [{"name": "Concat", "layers": [{"name": "ReLU"}], "dim": -4}, *HEAD],
        "0",
        "along dimension -4 would join pictures",
    ),
    ([{"name": "Concat", "layers": [{"name": "ReLU"}], "dim": "n_labels"}, *HEAD], "0", "along dimension 4"),
    (
        [{"name": "Concat", "layers": [{"name": "ReLU"}, conv2d(in_channels=9)]}, *HEAD],
        "0.layers.1",
        "in_channels would have to be 3, not 9",
    ),
]


@pytest.mark.parametrize(("layers", "path", "said"), MISFITS)
def test_a_layer_that_does_not_fit_is_named_with_what_arrived(layers: list[Spec], path: str, said: str) -> None:
    with pytest.raises(CommandsError, match=said) as caught:
        trace(layers)
    assert [fault.path for fault in caught.value.faults] == [f"model.layers.{path}"]


T = 10**12
HUGE: dict[str, tuple[list[Spec], str]] = {
    "a Linear of 10^12 rows": (
        [FLATTEN, linear(out_features=T), linear()],
        "769,000,000,000,000 parameters up to Linear",
    ),
    "an Embedding of 10^12 rows": (
        [FLATTEN, {"name": "Embedding", "num_embeddings": T, "embedding_dim": 1}, *HEAD],
        "1,000,000,000,000 parameters up to Embedding",
    ),
    "an LSTM of 10^7": ([ROWS, {"name": "LSTM", "input_size": "auto", "hidden_size": 10**7}, *HEAD], "up to LSTM"),
    "layers that are too much together": (
        [FLATTEN, *[linear(out_features=50_000) for _ in range(400)], linear()],
        r"model.layers.\d+: the model has .* up to Linear and would need .* to train",
    ),
    "buffers": (
        [{"name": "InstanceNorm2d", "num_features": T, "track_running_stats": True}, *HEAD],
        "up to InstanceNorm2d",
    ),
    "an Upsample": ([{"name": "Upsample", "size": [10**6, 10**6]}, *HEAD], "Upsample would make .* this machine has"),
    "a ConvTranspose2d": (
        [{"name": "ConvTranspose2d", "in_channels": 3, "out_channels": 3, "kernel_size": 2, "stride": 10**6}, *HEAD],
        "ConvTranspose2d would make",
    ),
    "a ZeroPad2d": ([{"name": "ZeroPad2d", "padding": 10**6}, *HEAD], "ZeroPad2d would make"),
    "an AdaptiveAvgPool2d": ([{"name": "AdaptiveAvgPool2d", "output_size": [10**6, 10**6]}, *HEAD], "would make"),
    "a LocalResponseNorm of small output": ([{"name": "LocalResponseNorm", "size": T}, *HEAD], "would make"),
    "an Unfold": ([{"name": "Unfold", "kernel_size": 10**4, "padding": 10**4}, *HEAD], "Unfold would make"),
    "a hidden layer of a Transformer": ([ROWS, encoder(dim_feedforward=T), *HEAD], "up to TransformerEncoder"),
    "branches": (
        [{"name": "Concat", "layers": [{"name": "Upsample", "size": [40_000, 40_000]}] * 1000}, *HEAD],
        "(Upsample|Concat) would make .* this machine",
    ),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process took at the most")
def test_what_no_machine_holds_is_refused_before_memory_is_taken() -> None:
    program = r"""
        import json, re, sys
        from mlmeta.errors import CommandsError
        from mlmeta.spec_builder import build_model, summarize_model
        for name, (layers, said) in json.load(sys.stdin).items():
            for make in (summarize_model, build_model):
                try:
                    make({"layers": layers}, n_labels=4, input_shape=(3, 16, 16))
                    print(name, "was not refused")
                except CommandsError as error:
                    if not re.search(said, str(error)):
                        print(name, "was refused with", error)
        print(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read()).group(1))
    """
    arguments = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(arguments, input=json.dumps(HUGE), capture_output=True, text=True, check=True)
    *wrong, last = done.stdout.splitlines()
    assert wrong == [], done.stdout
    assert int(last) < 2**20  # KiB at the most


def test_outputs_that_are_too_much_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        *[conv2d(out_channels=8, kernel_size=1) for _ in range(5)],
        {"name": "AdaptiveAvgPool2d", "output_size": 1},
        *HEAD,
    ]
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(4 * 5 * 8 * 256 + 4 * 4))
    trace(layers)
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(4 * 5 * 8 * 256 - 1))
    with pytest.raises(CommandsError, match=r"model.layers.4: the outputs up to Conv2d take 40.0 KiB for one picture"):
        trace(layers)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_output_padding_is_refused_where_torch_refuses_it(n: int) -> None:
    before: Spec = {"name": "Unflatten", "dim": 1, "unflattened_size": [12, *[4] * (n - 1), 4 ** (4 - n)]}
    for padding, stride, dilation in itertools.product((0, 1, 2), (1, 2), (1, 2)):
        given = {"output_padding": padding, "stride": [stride] * n, "dilation": dilation}
        spec = {"name": f"LazyConvTranspose{n}d", "out_channels": 1, "kernel_size": 1, **given}
        said = said_by_torch = ""
        try:
            getattr(nn, f"ConvTranspose{n}d")(1, 1, 1, **given)(torch.rand(2, 1, *[3] * n))
        except RuntimeError as error:
            said_by_torch = str(error)
        try:
            trace([FLATTEN, before, spec, *HEAD])
        except CommandsError as error:
            said = str(error)
        assert ("output_padding must be smaller than stride or dilation" in said) == bool(said_by_torch), given


# What this machine can hold


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (2**30, "1.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (2**52, "4,096.0 TiB"),
    ],
)
def test_bytes_are_written_for_people(n_bytes: int, expected: str) -> None:
    assert format_bytes(n_bytes) == expected


@pytest.mark.parametrize(("limit", "is_read"), [("1048576\n", True), ("max\n", False), ("9223372036854771712", False)])
def test_a_containers_limit_counts_where_it_is_less_than_the_machines_memory(
    limit: str, is_read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(limit)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(shapes, "_LIMIT_FILES", (str(tmp_path / "absent"), str(file)))
    assert memory_bytes() == (1048576 if is_read else physical)


def test_a_limit_of_ones_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", "1000")
    assert memory_bytes() == 1000
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", "1 GB")
    with pytest.raises(BadInputError, match=r"^MLMETA_MEMORY_BYTES: must be a whole number of bytes; got '1 GB'$"):
        memory_bytes()


def test_buffers_are_counted_too() -> None:
    # 2 × 8 parameters, 2 × 8 running statistics, and the number of batches.
    assert count_numbers(nn.BatchNorm1d(8)) == 33


def test_weights_are_refused_from_the_first_number_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(2000))
    refuse_weights("model.layers.0", "Linear", 100)
    with pytest.raises(
        CommandsError, match=r"model.layers.0: the model has 101 parameters up to Linear and would need"
    ):
        refuse_weights("model.layers.0", "Linear", 101)


def test_outputs_are_refused_from_the_first_byte_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(2048))
    refuse_outputs("model.layers.0", "Linear", 2048)
    with pytest.raises(CommandsError, match=r"outputs up to Linear take 2.0 KiB for one picture; .* 2.0 KiB"):
        refuse_outputs("model.layers.0", "Linear", 2049)


def test_what_a_layer_makes_on_its_way_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(4 * 1000))
    x = torch.empty((2, 10), device="meta")
    with SizeGuard("model.layers.3", "Outer", n_pictures=2):
        x.expand(100, 2, 10).sum(dim=0)
    with (
        SizeGuard("model.layers.3", "Outer", n_pictures=2),
        pytest.raises(CommandsError, match=r"model.layers.3: Outer would make .*, 4.0 KiB; this machine has 3.9 KiB"),
    ):
        x[:, :1].expand(2, 1025).contiguous().sum(dim=1)


def test_a_batch_that_the_machine_could_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(4 * 3 * 100 * 100 * 8))
    shapes.refuse_batch((3, 100, 100), 8)
    with pytest.raises(CommandsError, match=r"a batch of 9 pictures of 3×100×100 .* 1\.0 MiB; .* at most 8"):
        shapes.refuse_batch((3, 100, 100), 9)
    with pytest.raises(CommandsError, match=r"at most 4 would fit"):
        shapes.refuse_batch((3, 100, 100), 5, kept_bytes=4 * 3 * 100 * 100)
    with pytest.raises(CommandsError, match=r"make the pictures smaller"):
        shapes.refuse_batch((3, 400, 400), 1)


# Anything that a file can hold


def argument_values(layer: str, key: str, argument: catalog.Argument) -> st.SearchStrategy[Any]:
    small = st.integers(1, 4)
    if "num_" in key and "layers" in key:
        return st.sampled_from([-1, 0, 1, 2, 10**6])
    whole = st.one_of(small, small, small, small, st.integers(-3, 20), st.integers(5, 44).map(lambda e: int(2**e)))
    number = st.one_of(st.sampled_from([0.0, 0.5, 1.0, -1.0, 2.0, 1e30, 1e-30]), whole.map(float))
    words = argument.choices or ("nearest", "bilinear", "trilinear", "same", "valid", "sum", "max", "tanh", "auto")
    by_kind: dict[str, st.SearchStrategy[Any]] = {
        "int": whole,
        "float": number,
        "bool": st.booleans(),
        "str": st.sampled_from(words),
        "list": st.lists(whole, min_size=1, max_size=4),
        "null": st.none(),
        "layer": st.sampled_from(["TransformerEncoderLayer", "TransformerDecoderLayer", "LayerNorm", "ReLU"]).flatmap(
            lambda name: layer_specs([name])
        ),
        "layers": st.lists(st.deferred(lambda: layer_specs(PLAIN)), min_size=1, max_size=3),
    }
    values = st.one_of([by_kind[kind] for kind in argument.kinds])
    return st.one_of(*[st.just("auto")] * 4, values) if key in catalog.AUTO_ARGUMENTS else values


@st.composite
def layer_specs(draw: st.DrawFn, names: list[str]) -> Spec:
    name = draw(st.sampled_from(names))
    spec: Spec = {"name": name}
    for key, argument in catalog.find_entry("layer", name).arguments.items():
        if argument.required or draw(st.integers(0, 7)) == 0:
            spec[key] = draw(argument_values(name, key, argument))
    return spec


LAYERS = catalog.list_names("layer")
PLAIN = [n for n in LAYERS if n not in ("Residual", "Concat", "Sequential") and not n.startswith("Transformer")]
BEFORE: list[list[Spec]] = [[], [FLATTEN], [ROWS], [{"name": "Flatten", "start_dim": 2}], [VOLUME]]


@pytest.mark.filterwarnings("ignore")  # torch warns of many a strange argument; here it may
@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    layers=st.lists(layer_specs(LAYERS), min_size=1, max_size=4),
    before=st.sampled_from(BEFORE),
)
@example(
    layers=[{"name": "LazyConvTranspose3d", "out_channels": 1, "kernel_size": 1, "output_padding": 1}], before=[VOLUME]
)
def test_any_layers_are_built_and_run_or_refused(
    layers: list[Spec], before: list[Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlmeta.spec_builder import build_model

    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(2**27))
    model = {"layers": [*before, *layers, *HEAD]}
    if list(validation.check_model(model)):
        return
    torch.manual_seed(0)
    try:
        network = build_model(model, n_labels=4, input_shape=PICTURE)
        outputs = network(torch.rand(3, *PICTURE))
    except MlmetaError:
        event("refused")
    else:
        event("built")
        assert outputs.shape == (3, 4)


@pytest.mark.parametrize(
    "older", [{"dtype": "torch.float32"}, {"dtype": "'torch.float32'"}, {"dtype": None, "device": None}]
)
def test_what_older_documents_say_of_dtype_and_device_makes_the_same_layer(older: dict[str, Any]) -> None:
    plain = {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}
    assert list(validation.check_layers([{**plain, **older}])) == []
    made = [trace_layers([layer], n_labels=3, input_shape=(4,))[0] for layer in (plain, {**plain, **older})]
    assert made[0] == made[1]
