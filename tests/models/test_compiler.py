"""torch's compiler is not imported by what mlmeta does, and is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys

TRAIN = """
import sys
from mlmeta.models.compiler import put_off_compiler
put_off_compiler()
import torch
from mlmeta.models.optimizers import build_optimizer, build_scheduler
from mlmeta.models.shapes import construct_chain, trace_layers

layers, _ = trace_layers(
    [{"name": "Conv2d", "in_channels": "auto", "out_channels": 2, "kernel_size": 3}, {"name": "BatchNorm2d",
     "num_features": "auto"}, {"name": "GELU"}, {"name": "Dropout"}, {"name": "Flatten"},
     {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}], n_labels=3, input_shape=(1, 8, 8))
model = construct_chain(layers, "model.layers", device="cpu")
optimizer = build_optimizer({"name": "Adam"}, model.parameters())
scheduler = build_scheduler({"name": "StepLR", "step_size": 1}, optimizer, n_epoch=2)
optimizer.zero_grad()
model(torch.ones(2, 1, 8, 8)).sum().backward()
optimizer.step()
scheduler.step()
optimizer.load_state_dict(optimizer.state_dict())
assert not [name for name in sys.modules if name.startswith("torch._dynamo.")]
"""
COMPILE = """
import torch._dynamo
import torch._dynamo.utils
from torch._dynamo import config

assert torch._dynamo.__file__ and torch._dynamo.config is config

seen = []

def keep(graph, inputs):
    seen.append(graph)
    return graph.forward

doubled = torch.compile(lambda x: x * 2, backend=keep)
assert doubled(torch.ones(2)).tolist() == [2, 2]
assert len(seen) == 1

def change(x):
    optimizer.zero_grad()
    return x + 1

assert torch.compile(change, backend=keep)(torch.ones(2)).tolist() == [2, 2]
assert all(parameter.grad is None for parameter in model.parameters())
optimizer.step()
"""


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_shapes_and_optimizers_need_no_compiler() -> None:
    run_python(TRAIN)


def test_who_compiles_later_gets_torchs_own_compiler() -> None:
    run_python(TRAIN + COMPILE)


def test_a_compiler_that_is_there_stays() -> None:
    run_python(
        "import torch._dynamo as there\n"
        + TRAIN.rpartition("\nassert")[0]
        + "\nassert sys.modules['torch._dynamo'] is there"
    )
