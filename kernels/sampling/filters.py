# SPDX-License-Identifier: Apache-2.0
"""Top-k, top-p and min-p: each keeps the head of a row's tokens in one fixed order.

The order is by value, largest first, and among equal values by token id, smallest first. Hence exactly k tokens
pass top-k, several filters keep the shortest of their heads, and the largest token (among equals, of the smallest
id) passes everything. Rows that hold a NaN keep it, so that sampling can flag them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed_fi.kernels.sampling.row_params import Rows, to_tensor
from distributed_fi.kernels.sampling.weights import to_weights, weight_scale
from distributed_fi.kernels.upload import upload

# Probabilities carry float32's rounding: a prefix that misses top_p by less than this has reached it.
TOP_P_SLACK = 2.0**-22
# Sizes of the head that is looked at for top-p before the whole row is sorted: on a CPU the few largest cost far
# less than a sort, and nuclei of language models are mostly small.
HEAD_SIZES = (128, 2048)


def keep_top_k(x: Tensor, top_k: Rows, fill: float) -> Tensor:
    """x, [batch, vocab_size], with all but each row's top_k largest replaced by `fill`; 0 keeps all.

    Returns x itself where no row loses anything.
    """
    vocab_size = x.shape[-1]
    if isinstance(top_k, Tensor):
        count = torch.where((top_k <= 0) | (top_k > vocab_size), vocab_size, top_k).to(x.device)
        return _keep_head(x, *x.sort(descending=True), count, fill)

    def cut(rows_x: Tensor, rows_k: NDArray[np.int64]) -> Tensor:
        head = rows_x.topk(min(int(rows_k.max()) + 1, vocab_size))  # one more, to see whether it ties
        return _keep_head(rows_x, *head, to_tensor(rows_k, x.device), fill)

    return _on_rows(x, top_k, (top_k > 0) & (top_k < vocab_size), cut)


def keep_top_p(probs: Tensor, top_p: Rows) -> Tensor:
    """probs, [batch, vocab_size], zero outside each row's smallest head that holds top_p of the row's sum.

    Returns probs itself where top_p is 1 in all rows.
    """
    if isinstance(top_p, Tensor):
        kept = _nucleus(probs, top_p.to(probs.device))
        return torch.where(top_p.to(probs.device)[:, None] < 1, kept, probs)
    return _on_rows(probs, top_p, top_p < 1, lambda x, p: _nucleus(x, to_tensor(p, x.device)))


def keep_min_p(probs: Tensor, min_p: Rows) -> Tensor:
    """probs, [batch, vocab_size], zero where below min_p times the row's largest.

    Returns probs itself where min_p is 0 in all rows.
    """

    def cut(x: Tensor, p: Tensor) -> Tensor:
        floor = (x.amax(-1, keepdim=True).double() * p[:, None]).to(x.dtype)
        return x * (x >= floor)  # NaN stays NaN

    if isinstance(min_p, Tensor):
        return cut(probs, min_p.to(probs.device))
    return _on_rows(probs, min_p, min_p > 0, lambda x, p: cut(x, to_tensor(p, x.device)))


def renormalized(probs: Tensor) -> Tensor:
    """Each row divided by its sum."""
    return probs / probs.sum(-1, keepdim=True)


def _on_rows(
    x: Tensor, values: NDArray[np.generic], chosen: NDArray[np.bool_], cut: Callable[[Tensor, NDArray], Tensor]
) -> Tensor:
    """cut(rows of x, their values) on the chosen rows only."""
    if chosen.all():
        return cut(x, values) if len(values) else x
    if not chosen.any():
        return x
    index = upload(chosen.nonzero()[0], x.device)
    return x.index_copy(0, index, cut(x.index_select(0, index), values[chosen]))


def _nucleus(probs: Tensor, top_p: Tensor, sizes: Sequence[int] = HEAD_SIZES) -> Tensor:
    vocab_size = probs.shape[-1]
    # Whether a head was long enough is a question to the values: on a device, ask none and sort.
    in_part = bool(sizes) and sizes[0] < vocab_size and probs.device.type == "cpu"
    head, ids = probs.topk(sizes[0]) if in_part else probs.sort(descending=True)
    scale = weight_scale(probs)
    weights = to_weights(head, scale)
    before = weights.cumsum(-1) - weights  # of each token: the weight ahead of it
    total = to_weights(probs, scale).sum(-1, keepdim=True)
    target = (total * (top_p[:, None] * (1 - TOP_P_SLACK))).ceil().long()
    count = (before < target).sum(-1).clamp_(min=1)
    out = _keep_head(probs, head, ids, count, 0.0)
    too_short = before[:, -1] < target[:, 0]
    if in_part and too_short.any():
        out[too_short] = _nucleus(probs[too_short], top_p[too_short], sizes[1:])
    return out


def _keep_head(x: Tensor, head: Tensor, ids: Tensor, count: Tensor, fill: float) -> Tensor:
    """x with all but the count[i] first tokens of row i replaced by `fill`.

    Args:
        head: [batch, n], the n largest of each row, descending; n > count, or the whole row.
        ids: [batch, n], their tokens; in any order among equals.
        count: [batch], int64, at least 1.
    """
    last = (count - 1)[:, None]
    edge = head.gather(-1, last)
    if x.device.type != "cpu":
        return _cut_at_edge(x, edge, head, count, fill)
    columns = torch.arange(head.shape[-1])
    out = torch.full_like(x, fill).scatter_(-1, ids, head.masked_fill(columns > last, fill))
    # Only where the first token left out equals the last one kept does the order among equals matter.
    follows = head.gather(-1, (last + 1).clamp_(max=head.shape[-1] - 1))
    tied = ((follows == edge) & (last + 1 < head.shape[-1]) & (edge != fill)).squeeze(-1)
    if tied.any():
        out[tied] = _cut_at_edge(x[tied], edge[tied], head[tied], count[tied], fill)
    return out


def _cut_at_edge(x: Tensor, edge: Tensor, head: Tensor, count: Tensor, fill: float) -> Tensor:
    """As _keep_head, ties by token id; `edge` [batch, 1] is the last value kept."""
    room = count[:, None] - (head > edge).sum(-1, keepdim=True)
    equal = x == edge
    return x.masked_fill((x < edge) | (equal & (equal.cumsum(-1) > room)), fill)
