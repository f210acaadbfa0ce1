"""From a loss of `torch.nn` to the criterion of a classifier.

A torch loss does not know that it trains a classifier: one wants class indices, another one-hot columns,
signed targets or pairs, and each reads the network's outputs in its own way. A `Criterion` holds both forms,
so that the training loop only gives it outputs and class indices, and a lower loss is a higher true label.

The symbols: n pictures, K labels, x (n, K) the outputs, y (n,) the class indices, e_k label k as one-hot.
A network gives one of three kinds of `outputs`, and they are read as the loss wants them (`input_form`):

    input_form          logits x         probabilities p    log_probabilities l
    outputs             x                p                  l
    values              x                p                  exp l
    logits              x                log(p / (1 - p))   l - log(1 - exp l)
    log_scores          x                log p              l
    log_probabilities   log_softmax x    log_softmax log p  log_softmax l
    probabilities       sigmoid x        p                  exp l
    rates               softplus x       p                  exp l
    distances           softplus(-x)     -log p             -l

`log_softmax` leaves the logarithm of a softmax as it is; where a network ends in a sigmoid it keeps NLLLoss
and KLDivLoss from raising every output alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name under which PyTorch's users know it
from torch import Tensor, nn

from mlmeta.errors import BadInputError, nearest_name, shorten

_OUTPUTS = ("logits", "probabilities", "log_probabilities")
_ANY = (-float("inf"), float("inf"))
_NOT_NEGATIVE = (0.0, float("inf"))
_PROBABILITY = (0.0, 1.0)
_SIGN = (-1.0, 1.0)


class Criterion(nn.Module):
    """A loss that takes a classifier's outputs and class indices; made by `make_criterion`.

    Attributes:
        loss: The wrapped torch loss; its weights move with the criterion.
        target_form: The form of target that the loss gets: that of its `LossForm`, or "class_probability".
        input_form: The form in which the loss gets the outputs.
        outputs: What the network's last layer gives: "logits", "probabilities" or "log_probabilities".
        n_labels: The number of labels, K.
        targets: None, or (K, K) float; row k is the target of label k.
    """

    targets: Tensor | None

    def __init__(self, loss: nn.Module, form: LossForm, *, n_labels: int, outputs: str, targets: Tensor | None) -> None:
        super().__init__()
        self.loss = loss
        self.target_form = form.target_form
        self.input_form = form.input_form
        self.outputs = outputs
        self.n_labels = n_labels
        self._arguments = form.arguments
        self._read = _READ[form.input_form][_OUTPUTS.index(outputs)]
        self.register_buffer("targets", targets, persistent=False)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of one batch.

        Half-precision outputs are raised to float32 first, inside autocast too (on CUDA it refuses BCELoss).

        Args:
            outputs: (n, K) float, what the network gave.
            labels: (n,) int64 class indices in 0..K-1.

        Returns:
            A scalar of the dtype (float32 for half precision) and device of `outputs`; NaN if they have one.

        Raises:
            BadInputError: The shapes do not fit.
        """
        if outputs.ndim != 2 or outputs.shape[1] != self.n_labels or labels.shape != outputs.shape[:1]:
            raise BadInputError(
                f"criterion: outputs of shape (n, {self.n_labels}) and labels of shape (n,) are wanted; "
                f"got {tuple(outputs.shape)} and {tuple(labels.shape)}"
            )
        with torch.autocast(outputs.device.type, enabled=False):
            full = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
            loss: Tensor = self.loss(*self._arguments(self, self._read(full), labels))
            return loss

    def batch_sum(self, loss: Tensor, n: int) -> Tensor:
        """Return a batch's loss summed over its n pictures, whatever the reduction of the loss.

        Args:
            loss: Scalar that `forward` gave.
            n: Number of pictures in that batch.
        """
        return loss if self.loss.reduction == "sum" else loss * n


@dataclass(frozen=True)
class LossForm:
    """What one class of losses wants.

    Attributes:
        target_form: class_index (n,) int64; one_hot (n, K) float; signed (n, K) of -1 and +1; index_list
            (n, K) int64, the label and then -1; ranking, pairs and triplets are made of the batch itself.
        input_form: How the outputs are read: a row of the table at the top of this module.
        arguments: Gives what the loss is called with, from a criterion, outputs so read and class indices.
        target_range: The least and the greatest entry that a given target row may have; None where the loss
            has no place for such rows.
    """

    target_form: str
    input_form: str
    arguments: Callable[[Criterion, Tensor, Tensor], tuple[Tensor, ...]]
    target_range: tuple[float, float] | None = None


def make_criterion(
    loss: nn.Module, *, n_labels: int, outputs: str = "logits", targets: Tensor | None = None
) -> Criterion:
    """Make the criterion of a classifier from a loss of `torch.nn`.

    KLDivLoss of reduction "mean" becomes "batchmean": torch's "mean" divides by n*K, which is no divergence.
    GaussianNLLLoss gets the variance 1. TripletMarginLoss of p <= 1 reads the outputs as probabilities, for
    outside 0..1 those distances to the prototypes of labels differ by a constant. MarginRankingLoss has the
    margin 0 by default and is then content with equal outputs.

    Args:
        loss: An instance of one of the `SUPPORTED` classes, with reduction "mean" or "sum".
        n_labels: The number of labels K, at least 2.
        outputs: What the network's last layer gives: "logits"; "probabilities" where it ends in a softmax or
            sigmoid; "log_probabilities" where it ends in the logarithm of one.
        targets: (K, K) float whose row k replaces the one-hot row of label k; its greatest entry stands at k.
            CrossEntropyLoss takes the rows as class probabilities. Where a loss wants signed targets, rows of
            0..1 become -1..1, and rows with any entry below 0 are signed already.

    Raises:
        BadInputError: The loss is not supported, its reduction gives no single number, its weights are not
            one for each label, it ignores a label, or it cannot take such targets; all faults are named.
    """
    form = _find_form(loss)
    faults = list(_loss_faults(loss, n_labels, outputs))
    if targets is not None:
        faults += _target_faults(loss, form, targets, n_labels=n_labels)
    if faults:
        raise BadInputError(f"{type(loss).__name__}: {'; '.join(faults)}")
    loss, form = _adapt(loss, form)
    if targets is not None:
        targets = (_signed_rows(targets) if form.target_form == "signed" else targets).detach().clone()
        if form.target_form == "class_index":
            form = replace(form, target_form="class_probability")
    return Criterion(loss, form, n_labels=n_labels, outputs=outputs, targets=targets)


def _find_form(loss: nn.Module) -> LossForm:
    name = type(loss).__name__
    if name in UNSUPPORTED:
        raise BadInputError(f"{name} cannot train a classifier. {UNSUPPORTED[name]}")
    if name not in SUPPORTED or type(loss) is not getattr(nn, name):
        near = nearest_name(name, SUPPORTED)
        hint = f". Did you mean torch's {near!r}?" if near else ""
        raise BadInputError(f"{name} is not a loss of torch.nn; allowed: {', '.join(SUPPORTED)}{hint}")
    return SUPPORTED[name]


def _adapt(loss: nn.Module, form: LossForm) -> tuple[nn.Module, LossForm]:
    if isinstance(loss, nn.KLDivLoss) and loss.reduction == "mean":
        return nn.KLDivLoss(reduction="batchmean", log_target=loss.log_target), form
    if isinstance(loss, nn.SoftMarginLoss):
        return _StableSoftMarginLoss(reduction=loss.reduction), form
    if isinstance(loss, nn.PoissonNLLLoss) and not loss.log_input:
        return loss, replace(form, input_form="rates")
    if isinstance(loss, nn.TripletMarginLoss) and loss.p <= 1:
        return loss, replace(form, input_form="probabilities")
    return loss, form


class _StableSoftMarginLoss(nn.SoftMarginLoss):
    """The same number; torch's own exp(-yx) overflows, with NaN as gradient, from yx = -89 in float32."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        each = F.softplus(-target * input)
        return each.sum() if self.reduction == "sum" else each.mean()


def _loss_faults(loss: nn.Module, n_labels: int, outputs: str) -> Iterator[str]:
    if n_labels < 2:
        yield f"a classifier needs at least 2 labels; got {n_labels}"
    if outputs not in _OUTPUTS:
        yield f"outputs must be one of {', '.join(_OUTPUTS)}; got {shorten(outputs)}"
    reductions = ("mean", "sum", "batchmean") if isinstance(loss, nn.KLDivLoss) else ("mean", "sum")
    if loss.reduction not in reductions:
        yield f"reduction must be {' or '.join(reductions)}, one number a batch; got {shorten(loss.reduction)}"
    for name in ("weight", "pos_weight"):
        weight = getattr(loss, name, None)
        if weight is not None and weight.shape != (n_labels,):
            came = f"{weight.numel()} entries in shape {tuple(weight.shape)}"
            yield f"{name} has {came}; {n_labels} are wanted, one for each label"
    ignored = getattr(loss, "ignore_index", -1)
    if 0 <= ignored < n_labels:
        yield f"ignore_index {ignored} is a label, which would never be learned; allowed: a negative number"


def _target_faults(loss: nn.Module, form: LossForm, targets: Tensor, *, n_labels: int) -> Iterator[str]:
    if form.target_range is None:
        yield f"it wants targets of the form {form.target_form}, which a target_transform cannot change"
        return
    if targets.shape != (n_labels, n_labels) or not targets.is_floating_point():
        came = f"{targets.dtype} of shape {tuple(targets.shape)}"
        yield f"targets must be float of shape {(n_labels, n_labels)}; got {came}"
        return
    low, high = form.target_range
    if not bool((targets.isfinite() & (targets >= low) & (targets <= high)).all()):
        yield f"targets must be finite, in {low:g}..{high:g}; got {targets.min():g}..{targets.max():g}"
    elif isinstance(loss, nn.HingeEmbeddingLoss) and bool((_signed_rows(targets).abs() != 1).any()):
        yield "targets must be 0 and 1, or -1 and 1"
    others = targets.clone().fill_diagonal_(-torch.inf).amax(dim=1)
    wrong = (~(targets.diagonal() > others)).nonzero().flatten().tolist()
    if wrong:
        yield f"the target row of a label must be greatest at that label; it is not at {shorten(wrong)}"
    if getattr(loss, "ignore_index", -1) >= len(targets):
        yield f"ignore_index {loss.ignore_index} does not go with targets; allowed: a negative number"


def _signed_rows(rows: Tensor) -> Tensor:
    return rows if bool((rows < 0).any()) else 2 * rows - 1


def _rows(criterion: Criterion, values: Tensor, labels: Tensor) -> Tensor:
    if criterion.targets is None:
        return F.one_hot(labels, criterion.n_labels).to(values.dtype)
    return criterion.targets.to(values.dtype)[labels]


def _with_labels(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return values, labels if criterion.targets is None else _rows(criterion, values, labels)


def _with_rows(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    rows = _rows(criterion, values, labels)
    return values, _log(rows) if getattr(criterion.loss, "log_target", False) else rows


def _with_rows_and_unit_variance(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return values, _rows(criterion, values, labels), torch.ones_like(values)


def _with_signs(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    rows = _rows(criterion, values, labels)
    return values, 2 * rows - 1 if criterion.targets is None else rows


def _with_index_list(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return values, F.pad(labels[:, None], (0, criterion.n_labels - 1), value=-1)


def _with_ranking(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Rank the true label's output above each other one of the same picture: n*(K-1) comparisons."""
    own = labels[:, None]
    others = torch.arange(criterion.n_labels - 1, device=values.device).expand(len(values), -1)
    others = others + (others >= own)
    lesser = values.gather(1, others).flatten()
    greater = values.gather(1, own).expand_as(others).flatten()
    return greater, lesser, torch.ones_like(lesser)


def _with_pairs(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Pair each picture with every label's prototype e_k and with the two hardest of the batch.

    The outputs are embeddings in R^K. A picture is alike (+1) to what has its label and unlike (-1) to the rest.
    cos(x, e_k) = x_k / ||x||: the prototype most similar to a picture is the argmax of its outputs. All n*n/2
    pairs of pictures would outweigh the prototypes, and whole labels then settle at the prototype of another.
    """
    points, same = _with_prototypes(values, labels)
    directions = F.normalize(values.detach())
    far, near = _hardest(-directions @ F.normalize(points.detach()).T, same)
    prototypes = points[len(values) :].repeat(len(values), 1)
    left = torch.cat([values, values, values.repeat_interleave(criterion.n_labels, dim=0)])
    right = torch.cat([points[far], points[near], prototypes])
    own = same[:, len(values) :].flatten()
    alike = torch.cat([torch.ones_like(far), torch.zeros_like(near), own]).to(values.dtype)
    return left, right, 2 * alike - 1


def _with_triplets(criterion: Criterion, values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Bring each picture nearer to what has its label than to the rest, by the loss's own distance.

    The outputs are embeddings in R^K. Each picture is the anchor of the batch's hardest triplet (batch-hard
    mining: Hermans, Beyer, Leibe 2017, arXiv:1703.07737) and of K-1 triplets of its label's prototype e_y and
    each other e_k. ||x - e_k||^2 = ||x||^2 + 1 - 2 x_k: the prototype nearest to a picture is the argmax of its
    outputs.
    """
    points, same = _with_prototypes(values, labels)
    with torch.no_grad():
        far, near = _hardest(_distances(criterion.loss, values, points), same)
    prototypes = points[len(values) :]
    picture, other = (~same[:, len(values) :]).nonzero(as_tuple=True)
    anchor = torch.cat([values, values[picture]])
    positive = torch.cat([points[far], prototypes[labels[picture]]])
    return anchor, positive, torch.cat([points[near], prototypes[other]])


def _with_prototypes(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Join the prototypes e_k to the batch; return the (n+K, K) points and who of them has whose label, (n, n+K)."""
    prototypes = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
    names = torch.cat([labels, torch.arange(values.shape[1], device=values.device)])
    return torch.cat([values, prototypes]), labels[:, None] == names


def _hardest(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Return, of (n, m) distances, the index (n,) of the farthest of the same label and of the nearest other."""
    far = distances.masked_fill(~same, -torch.inf).argmax(dim=1)
    return far, distances.masked_fill(same, torch.inf).argmin(dim=1)


def _distances(loss: Any, left: Tensor, right: Tensor) -> Tensor:
    """Return the (n, m) distances of (n, K) and (m, K) rows, as the loss itself measures them."""
    p_norm = isinstance(loss, nn.TripletMarginLoss)
    distance = nn.PairwiseDistance(loss.p, loss.eps) if p_norm else loss.distance_function
    flat: Tensor = distance(left.repeat_interleave(len(right), dim=0), right.repeat(len(left), 1))
    return flat.reshape(len(left), len(right))


def _same(x: Tensor) -> Tensor:
    return x


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def _exp(log_p: Tensor) -> Tensor:
    return log_p.exp().clamp(max=1)


def _logit(p: Tensor) -> Tensor:
    return _log(p) - torch.log1p(-p.clamp(max=1 - torch.finfo(p.dtype).eps))


def _logit_of_log(log_p: Tensor) -> Tensor:
    return log_p - torch.log(-torch.expm1(log_p.clamp(max=-torch.finfo(log_p.dtype).eps)))


_log_softmax = partial(F.log_softmax, dim=1)
_Reading = Callable[[Tensor], Tensor]
_READ: Mapping[str, tuple[_Reading, _Reading, _Reading]] = {
    "outputs": (_same, _same, _same),
    "values": (_same, _same, _exp),
    "logits": (_same, _logit, _logit_of_log),
    "log_scores": (_same, _log, _same),
    "log_probabilities": (_log_softmax, lambda p: _log_softmax(_log(p)), _log_softmax),
    "probabilities": (torch.sigmoid, _same, _exp),
    "rates": (F.softplus, _same, _exp),
    "distances": (lambda x: F.softplus(-x), lambda p: -_log(p), torch.neg),
}

SUPPORTED: Mapping[str, LossForm] = {
    "CrossEntropyLoss": LossForm("class_index", "log_scores", _with_labels, _PROBABILITY),
    "NLLLoss": LossForm("class_index", "log_probabilities", _with_labels),
    "MultiMarginLoss": LossForm("class_index", "outputs", _with_labels),
    "BCEWithLogitsLoss": LossForm("one_hot", "logits", _with_rows, _PROBABILITY),
    "BCELoss": LossForm("one_hot", "probabilities", _with_rows, _PROBABILITY),
    "MultiLabelSoftMarginLoss": LossForm("one_hot", "logits", _with_rows, _PROBABILITY),
    "MSELoss": LossForm("one_hot", "values", _with_rows, _ANY),
    "L1Loss": LossForm("one_hot", "values", _with_rows, _ANY),
    "SmoothL1Loss": LossForm("one_hot", "values", _with_rows, _ANY),
    "HuberLoss": LossForm("one_hot", "values", _with_rows, _ANY),
    "KLDivLoss": LossForm("one_hot", "log_probabilities", _with_rows, _PROBABILITY),
    "PoissonNLLLoss": LossForm("one_hot", "log_scores", _with_rows, _NOT_NEGATIVE),
    "GaussianNLLLoss": LossForm("one_hot", "values", _with_rows_and_unit_variance, _ANY),
    "SoftMarginLoss": LossForm("signed", "logits", _with_signs, _SIGN),
    "HingeEmbeddingLoss": LossForm("signed", "distances", _with_signs, _SIGN),
    "MultiLabelMarginLoss": LossForm("index_list", "outputs", _with_index_list),
    "MarginRankingLoss": LossForm("ranking", "outputs", _with_ranking),
    "CosineEmbeddingLoss": LossForm("pairs", "values", _with_pairs),
    "TripletMarginLoss": LossForm("triplets", "values", _with_triplets),
    "TripletMarginWithDistanceLoss": LossForm("triplets", "values", _with_triplets),
}


"""The losses that train a classifier: class name of `torch.nn` → what it wants."""


_OUTPUT_LAYER = "It is itself the output layer, so the network would give no output for each label."

UNSUPPORTED: Mapping[str, str] = {
    "CTCLoss": "It aligns sequences, and a picture has one label.",
    "AdaptiveLogSoftmaxWithLoss": _OUTPUT_LAYER,
    "LinearCrossEntropyLoss": _OUTPUT_LAYER,
    "NLLLoss2d": "It is a deprecated alias of NLLLoss: use that name.",
}


"""The other losses of `torch.nn`: class name → why not, in one sentence."""
