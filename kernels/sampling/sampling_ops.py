# SPDX-License-Identifier: Apache-2.0
"""The sampling operators by the field's names: softmax, filters, and one-call sampling.

Common to all: rows are independent. Parameters are a number for all rows, or a tensor [batch]; those on the
CPU are checked, those on another device are not looked at (that would synchronise). What the filters keep is
decided in one order, by value and then by token id, so results do not depend on the device. Tokens are int32;
-1 marks a row that has a NaN or nothing to draw from, and does not disturb the others.

`seed` and `position` key the random number of each row (see `philox_uniform`); without them it is drawn from
`generator`, or torch's default generator for the device.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.sampling.filters import keep_min_p, keep_top_k, keep_top_p, renormalized
from distributed_fi.kernels.sampling.row_params import Param, to_rows
from distributed_fi.kernels.sampling.sample import draw, row_uniform, scaled

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FilterOrder = Literal["top_k_first", "joint"]


def softmax(logits: Tensor, temperature: Param | None = None) -> Tensor:
    """Probabilities of the tokens.

    p = exp(logits / temperature) / sum(exp(logits / temperature)); temperature 0 gives the largest logit 1

    Args:
        logits: [batch, vocab_size], float32, bfloat16 or float16.
        temperature: number or [batch], >= 0; None is 1.
    Returns:
        [batch, vocab_size], float32.
    Raises:
        InvalidArgumentError: a shape or dtype that does not fit, a temperature that is negative or not finite.
    Notes: rows whose largest logit is not finite become NaN.
    """
    batch = check_rows("logits", logits)
    if temperature is not None:
        logits = scaled(logits, to_rows("temperature", temperature, batch))
    return logits.float().softmax(-1)


def top_k_mask_logits(logits: Tensor, top_k: Param) -> Tensor:
    """Logits with all but the top_k largest of each row at -inf.

    Args:
        logits: [batch, vocab_size], float32, bfloat16 or float16.
        top_k: number or int tensor [batch], in [0, 2^31); 0 keeps all.
    Returns:
        [batch, vocab_size], logits' dtype. Exactly min(top_k, vocab_size) stay; among equals, the smallest ids.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit.
    """
    kept = keep_top_k(logits, to_rows("top_k", top_k, check_rows("logits", logits)), -torch.inf)
    return kept.clone() if kept is logits else kept


def top_k_renorm_probs(probs: Tensor, top_k: Param) -> Tensor:
    """Probabilities of the top_k largest of each row, summing to 1.

    Args:
        probs: [batch, vocab_size], float32, bfloat16 or float16, >= 0.
        top_k: number or int tensor [batch], in [0, 2^31); 0 keeps all.
    Returns:
        [batch, vocab_size], float32. Exactly min(top_k, vocab_size) stay; among equals, the smallest ids.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit.
    """
    rows = to_rows("top_k", top_k, check_rows("probs", probs))
    return renormalized(keep_top_k(probs.float(), rows, 0.0))


def top_p_renorm_probs(probs: Tensor, top_p: Param) -> Tensor:
    """Probabilities of each row's nucleus, summing to 1.

    The nucleus is the smallest head, in descending order (equals: smallest id first), whose sum reaches
    top_p times the row's sum, float32's rounding allowed for.

    Args:
        probs: [batch, vocab_size], float32, bfloat16 or float16, >= 0.
        top_p: number or tensor [batch], in (0, 1]; 1 keeps all.
    Returns:
        [batch, vocab_size], float32.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit.
    Notes: Holtzman et al. 2020, "The curious case of neural text degeneration".
    """
    rows = to_rows("top_p", top_p, check_rows("probs", probs))
    return renormalized(keep_top_p(probs.float(), rows))


def min_p_renorm_probs(probs: Tensor, min_p: Param) -> Tensor:
    """Probabilities of at least min_p times the row's largest, summing to 1.

    Args:
        probs: [batch, vocab_size], float32, bfloat16 or float16, >= 0.
        min_p: number or tensor [batch], in [0, 1]; 0 keeps all.
    Returns:
        [batch, vocab_size], float32.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit.
    """
    rows = to_rows("min_p", min_p, check_rows("probs", probs))
    return renormalized(keep_min_p(probs.float(), rows))


def sampling_from_probs(
    probs: Tensor,
    *,
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token per row, drawn by its probability.

    token = the first i with p[0] + ... + p[i] > u * sum(p),  u = philox_uniform(seed, position)

    Args:
        probs: [batch, vocab_size], float32, bfloat16 or float16, >= 0, in any scale.
        seed: number or int64 tensor [batch], in [0, 2^63); with it, `position` is required.
        position: number or int tensor [batch], in [0, 2^63): the token's place in its request.
        generator: instead of seed and position.
    Returns:
        [batch], int32; -1 where a row has a NaN, an infinity or no probability. A token of probability zero
        is never drawn.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit; seed without position or the reverse.
    Notes: sums are exact (integers), so a row's token is the same on every device and in every batch. Current
        stream; the host does not wait for the device; graph-capturable when seed and position are tensors on
        probs' device.
    """
    check_rows("probs", probs)
    return draw(probs.float(), _uniform(probs, seed, position, generator))


def sampling_from_logits(
    logits: Tensor,
    *,
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token per row, drawn by the softmax of its logits; see `sampling_from_probs`.

    Args:
        logits: [batch, vocab_size], float32, bfloat16 or float16; -inf is never drawn.
        seed, position, generator: as there.
    Returns:
        [batch], int32; -1 where a row's largest logit is not finite.
    """
    check_rows("logits", logits)
    return draw(logits.float().softmax(-1), _uniform(logits, seed, position, generator))


def top_k_sampling_from_probs(
    probs: Tensor,
    top_k: Param,
    *,
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`sampling_from_probs` of `top_k_renorm_probs(probs, top_k)`: int32 [batch]."""
    batch = check_rows("probs", probs)
    kept = keep_top_k(probs.float(), to_rows("top_k", top_k, batch), 0.0)
    return draw(kept, _uniform(probs, seed, position, generator))


def top_p_sampling_from_probs(
    probs: Tensor,
    top_p: Param,
    *,
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`sampling_from_probs` of `top_p_renorm_probs(probs, top_p)`: int32 [batch]."""
    batch = check_rows("probs", probs)
    kept = keep_top_p(probs.float(), to_rows("top_p", top_p, batch))
    return draw(kept, _uniform(probs, seed, position, generator))


def min_p_sampling_from_probs(
    probs: Tensor,
    min_p: Param,
    *,
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`sampling_from_probs` of `min_p_renorm_probs(probs, min_p)`: int32 [batch]."""
    batch = check_rows("probs", probs)
    kept = keep_min_p(probs.float(), to_rows("min_p", min_p, batch))
    return draw(kept, _uniform(probs, seed, position, generator))


def top_k_top_p_sampling_from_probs(
    probs: Tensor,
    top_k: Param,
    top_p: Param,
    *,
    filter_apply_order: FilterOrder = "top_k_first",
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token per row, drawn from the tokens that pass both top-k and top-p; see `sampling_from_probs`.

    Args:
        probs: [batch, vocab_size], float32, bfloat16 or float16, >= 0.
        top_k, top_p: as for `top_k_renorm_probs` and `top_p_renorm_probs`.
        filter_apply_order: "top_k_first" takes top_p of what top-k has left; "joint" takes top_p of the whole row.
        seed, position, generator: as for `sampling_from_probs`.
    Returns:
        [batch], int32.
    """
    batch = check_rows("probs", probs)
    k_rows, p_rows = to_rows("top_k", top_k, batch), to_rows("top_p", top_p, batch)
    kept = probs.float()
    if filter_apply_order == "top_k_first":
        kept = keep_top_p(keep_top_k(kept, k_rows, 0.0), p_rows)
    elif filter_apply_order == "joint":
        # Both keep a head of the same order, so one after the other keeps the shorter head.
        kept = keep_top_k(keep_top_p(kept, p_rows), k_rows, 0.0)
    else:
        raise InvalidArgumentError("filter_apply_order", filter_apply_order, "one of top_k_first, joint")
    return draw(kept, _uniform(probs, seed, position, generator))


def top_k_top_p_sampling_from_logits(
    logits: Tensor,
    top_k: Param,
    top_p: Param,
    *,
    filter_apply_order: FilterOrder = "top_k_first",
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`top_k_top_p_sampling_from_probs` of the softmax of logits, [batch, vocab_size]: int32 [batch]."""
    check_rows("logits", logits)
    return top_k_top_p_sampling_from_probs(
        logits.float().softmax(-1),
        top_k,
        top_p,
        filter_apply_order=filter_apply_order,
        seed=seed,
        position=position,
        generator=generator,
    )


def check_rows(name: str, x: Tensor) -> int:
    """Raise unless x is a float [batch, vocab_size >= 1]; returns batch."""
    dims = Dims()
    check_tensor(name, x, ("batch", "vocab_size"), dims, dtype=FLOATS)
    if dims["vocab_size"] == 0:
        raise InvalidArgumentError(name, list(x.shape), "[batch, vocab_size >= 1]")
    return dims["batch"]


def _uniform(x: Tensor, seed: Param | None, position: Param | None, generator: torch.Generator | None) -> Tensor:
    batch = x.shape[0]
    seeds = None if seed is None else to_rows("seed", seed, batch)
    positions = None if position is None else to_rows("position", position, batch)
    return row_uniform(batch, x.device, seeds, positions, generator)
