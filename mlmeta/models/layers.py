"""mlmeta's own layers, and how one layer is applied to what the one before it gave.

Every layer of ``torch.nn`` follows the one before it with a single tensor. Where a layer's own forward pass is
different (it gives a tuple, wants two or three inputs, or wants the indices of a pooling), `apply_layer` says how
it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlmeta.errors import BadInputError

_UNPOOLING = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)
_TWO_INPUTS = (nn.Bilinear, nn.Transformer, nn.TransformerDecoder, nn.TransformerDecoderLayer)
_WHOLE_NUMBERS = (nn.Embedding, nn.EmbeddingBag)
PoolingIndices = list[tuple[Tensor, torch.Size]]


def apply_layer(layer: nn.Module, x: Tensor, pooled: PoolingIndices) -> Tensor:
    """Apply one layer to the output of the one before it.

    Args:
        layer: Any layer that the catalog has.
        x: The output of the layer before, pictures first.
        pooled: Indices and input shapes of the poolings with ``return_indices`` so far, the newest last;
            such a pooling adds to it and an unpooling takes from it.

    Returns:
        The output; the first element where the layer gives a tuple (LSTM, GRU, MultiheadAttention).

    Raises:
        ValueError: If an unpooling has no pooling before it.
        BadInputError: If an embedding gets a number that it has no row for.
    """
    output = _call(layer, x, pooled)
    if not isinstance(output, tuple):
        return cast(Tensor, output)
    if getattr(layer, "return_indices", False):
        pooled.append((output[1], x.shape))
    return cast(Tensor, output[0])


def _call(layer: nn.Module, x: Tensor, pooled: PoolingIndices) -> Any:
    if isinstance(layer, _UNPOOLING):
        if not pooled:
            raise ValueError("no MaxPool with return_indices stands before it in the same list of layers")
        indices, shape = pooled.pop()
        return layer(x, indices, output_size=shape)
    if isinstance(layer, nn.MultiheadAttention):
        return layer(x, x, x, need_weights=False)
    if isinstance(layer, _TWO_INPUTS):
        return layer(x, x)
    if isinstance(layer, _WHOLE_NUMBERS):
        return layer(_read_rows(x, layer.num_embeddings))
    return layer(x)


def _read_rows(x: Tensor, n_rows: int) -> Tensor:
    """Return the numbers of an embedding's rows; looked at here, since CUDA would end the process for a wrong one."""
    rows = x.long()
    if x.device.type != "meta":
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= n_rows:
            raise BadInputError(
                f"an embedding of {n_rows} rows takes the whole numbers 0 to {n_rows - 1}; {low} to {high} arrive "
                f"(PILToTensor gives 0 to 255, ToTensor 0 to 1)"
            )
    return rows


class Chain(nn.Sequential):
    """Layers that follow each other, as ``torch.nn.Sequential`` with the calls of `apply_layer`.

    Its state dict has the names of a Sequential of the same layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order; `x` itself is never changed, whatever is ``inplace``."""
        arrived, pooled = x, PoolingIndices()
        for layer in self:
            if getattr(layer, "inplace", False) and _share_memory(x, arrived):
                x = x.clone()
            x = apply_layer(layer, x, pooled)
        return x


def _share_memory(x: Tensor, other: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


class Residual(nn.Module):
    """Layers whose input is added to their output: ``body(x) + projection(x)`` (He et al. 2016).

    The projection is the identity where input and output have one shape.
    """

    def __init__(self, body: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.projection = nn.Identity() if projection is None else projection

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, of the shape of the body's output."""
        return cast(Tensor, self.body(x) + self.projection(x))


class Concat(nn.Module):
    """Layers that all see the same input; their outputs are joined along `dim`."""

    def __init__(self, branches: Sequence[nn.Module], dim: int = 1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs side by side."""
        return torch.cat([branch(x) for branch in self.branches], dim=self.dim)


def make_projection(arrives: Sequence[int], leaves: Sequence[int]) -> list[dict[str, Any]]:
    """Return the layers that bring a residual's input to the shape of its output.

    Args:
        arrives: Shape of the input without the pictures' dimension.
        leaves: Shape of the body's output, likewise.

    Returns:
        Layer specs: none where the shapes agree; a 1×1 convolution with a stride (after an average pooling
        where no stride gives the size) for maps; a Linear for features and for rows of features.

    Raises:
        ValueError: If the numbers of dimensions differ.
    """
    if list(arrives) == list(leaves):
        return []
    if len(arrives) != len(leaves) or len(arrives) > 4:
        raise ValueError(f"its input {tuple(arrives)} and its output {tuple(leaves)} cannot be added")
    if len(arrives) == 1 or (len(arrives) == 2 and arrives[0] == leaves[0]):
        return [{"name": "Linear", "in_features": arrives[-1], "out_features": leaves[-1]}]
    dims = f"{len(arrives) - 1}d"
    strides = [max(1, round(a / b)) for a, b in zip(arrives[1:], leaves[1:], strict=True)]
    conv = {"name": f"Conv{dims}", "in_channels": arrives[0], "out_channels": leaves[0], "kernel_size": 1}
    if all((a - 1) // s + 1 == b for a, s, b in zip(arrives[1:], strides, leaves[1:], strict=True)):
        return [{**conv, "stride": strides}]
    return [{"name": f"AdaptiveAvgPool{dims}", "output_size": list(leaves[1:])}, conv]


def forward_pictures(model: nn.Module, x: Tensor) -> Tensor:
    """Return the model's outputs for a batch, averaged over the crops of a picture where there are some.

    Args:
        model: A classifier.
        x: Pictures (n, channels, height, width), or crops of pictures (n, crops, channels, height, width); whole
            numbers are made float32.

    Returns:
        Outputs (n, n_labels).
    """
    if not x.is_floating_point():
        x = x.float()
    if x.ndim < 5:
        return first_tensor(model(x))
    n, crops = x.shape[:2]
    outputs = first_tensor(model(x.flatten(0, 1)))
    return outputs.reshape(n, crops, -1).mean(dim=1)


def first_tensor(output: Any) -> Tensor:
    """Return a tensor, or the first element of a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)
