# SPDX-License-Identifier: Apache-2.0
"""From the requests of a step to its plan: pure, host arrays only, once for all ranks."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed_fi.config import check_range
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.plan.item import StepItem
from distributed_fi.plan.layout import Int32Array, StepPlan

MAX_GRAPH_BUCKET = 512
_FLOAT32 = np.finfo(np.float32)
_INT32, _INT64 = "i", "q"  # typecodes


def graph_bucket(num_tokens: int, *, max_bucket: int = MAX_GRAPH_BUCKET) -> int:
    """Tokens of the CUDA graph that fits: the next power of two, or 0 (eager) for none and beyond `max_bucket`."""
    bucket = 1 << max(num_tokens - 1, 0).bit_length()
    return bucket if num_tokens > 0 and bucket <= max_bucket else 0


def plan_batch(
    items: Sequence[StepItem], *, page_size: int, dp: int, max_graph_bucket: int = MAX_GRAPH_BUCKET
) -> StepPlan:
    """Compute everything of a step that does not depend on the rank.

    Requests are laid out by dp rank and, within a replica, in the order given; samples in the order of their
    requests. A step in which each request appends one token gets the graph bucket of its largest replica.

    Args:
        items: the requests of the step; none is a step that runs nothing.
        page_size: tokens per KV page.
        dp: number of replicas.
        max_graph_bucket: tokens beyond which a step runs eagerly.
    Returns:
        The plan.
    Raises:
        InvalidArgumentError: an item has no token, a dp_rank outside the mesh, a slot used twice, a negative start
            or slot, another number of pages than its tokens fill, or an id or number that is no integer or does not
            fit its 32 bits (63 for a seed); the message shows the item. page_size or dp is below 1.
    """
    check_range("page_size", page_size, "an integer >= 1", page_size >= 1)
    check_range("dp", dp, "an integer >= 1", dp >= 1)
    items = sorted(items, key=lambda item: item.dp_rank)
    num_requests = len(items)
    dp_ranks = _gathered(items, "dp_rank", [item.dp_rank for item in items])
    slots = _gathered(items, "slot", [item.slot for item in items])
    starts = _gathered(items, "start", [item.start for item in items])
    qo_lens = _gathered(items, "token_ids", [len(item.token_ids) for item in items])
    num_pages = _gathered(items, "pages", [len(item.pages) for item in items])
    kv_lens = starts + qo_lens
    _check_places(items, dp_ranks, slots, dp)
    _check_lengths(items, starts, qo_lens, num_pages, -(-kv_lens // page_size))

    qo_indptr = _indptr(qo_lens)
    dp_request_indptr = np.searchsorted(dp_ranks, np.arange(dp + 1)).astype(np.int32)
    dp_token_indptr = qo_indptr[dp_request_indptr]
    is_one_token_each = num_requests == qo_indptr[-1]
    largest = int(np.diff(dp_token_indptr).max())
    return StepPlan(
        graph_bucket=graph_bucket(largest, max_bucket=max_graph_bucket) if is_one_token_each else 0,
        token_ids=_joined_tokens(items, is_one_token_each),
        positions=np.arange(qo_indptr[-1], dtype=np.int32) + np.repeat(starts - qo_indptr[:-1], qo_lens),
        batch_indices=np.repeat(np.arange(num_requests, dtype=np.int32) - dp_request_indptr[dp_ranks], qo_lens),
        qo_indptr=qo_indptr,
        kv_lens=kv_lens,
        kv_page_indptr=_indptr(num_pages),
        kv_page_indices=_joined(items, "pages", [item.pages for item in items]),
        kv_last_page_len=(kv_lens - 1) % page_size + 1,
        request_slots=slots,
        dp_request_indptr=dp_request_indptr,
        dp_token_indptr=dp_token_indptr,
        **_sample_arrays(items, qo_indptr, kv_lens, dp_request_indptr),
    )


def _sample_arrays(
    items: list[StepItem], qo_indptr: Int32Array, kv_lens: Int32Array, dp_request_indptr: Int32Array
) -> dict[str, Any]:
    sample_requests = np.array([i for i, item in enumerate(items) if item.sampling is not None], np.int32)
    sampled = [items[i] for i in sample_requests]
    specs = [item.sampling for item in items if item.sampling is not None]
    seeds = _gathered(sampled, "seed", [s.seed for s in specs], _INT64)
    _check(sampled, seeds >= 0, "seed an integer in [0, 2^63)")
    # A double that no float32 holds is taken to the nearest one that keeps the meaning: a huge temperature stays
    # finite, a tiny top_p stays above 0.
    temperature = np.minimum(_floats(s.temperature for s in specs), _FLOAT32.max)
    top_p = np.maximum(_floats(s.top_p for s in specs), _FLOAT32.tiny)
    return {
        "sample_rows": qo_indptr[1:][sample_requests] - 1,
        "sample_requests": sample_requests,
        "sample_positions": kv_lens[sample_requests],
        "seeds": seeds.view(np.int32).reshape(-1, 2),
        "temperature": temperature.astype(np.float32),
        "top_p": top_p.astype(np.float32),
        "min_p": _floats(s.min_p for s in specs).astype(np.float32),
        "top_k": _gathered(sampled, "top_k", [s.top_k for s in specs]),
        "dp_sample_indptr": np.searchsorted(sample_requests, dp_request_indptr).astype(np.int32),
    }


def _check_places(items: list[StepItem], dp_ranks: Int32Array, slots: Int32Array, dp: int) -> None:
    _check(items, (dp_ranks >= 0) & (dp_ranks < dp), f"0 <= dp_rank < {dp}")
    _check(items, slots >= 0, "slot >= 0")
    if len(set(zip(dp_ranks.tolist(), slots.tolist(), strict=True))) != len(items):
        places = [(item.dp_rank, item.slot) for item in items]
        first_use = np.array([places.index(place) for place in places])
        _check(items, first_use == np.arange(len(items)), "a slot that no other item of the replica has")


def _check_lengths(
    items: list[StepItem], starts: Int32Array, qo_lens: Int32Array, num_pages: Int32Array, num_pages_filled: Int32Array
) -> None:
    _check(items, (starts >= 0) & (qo_lens >= 1), "start >= 0 and at least one token")
    _check(items, num_pages == num_pages_filled, "as many pages as start + len(token_ids) tokens fill")


def _check(items: list[StepItem], is_right: npt.NDArray[np.bool_], expected: str) -> None:
    if not is_right.all():
        raise InvalidArgumentError("items", items[int(np.argmin(is_right))], f"each with {expected}")


def _gathered(items: list[StepItem], name: str, values: Sequence[Any], typecode: str = _INT32) -> npt.NDArray[Any]:
    """One integer of each item; `array` refuses, as numpy does not, what is no integer."""
    try:
        return np.array(array(typecode, values))
    except (OverflowError, TypeError):
        raise _misfit(items, name, [[value] for value in values], typecode) from None


def _floats(values: Iterable[float]) -> npt.NDArray[np.float64]:
    return np.fromiter(values, np.float64)


def _indptr(lens: Int32Array) -> Int32Array:
    indptr = np.zeros(len(lens) + 1, np.int32)
    np.cumsum(lens, out=indptr[1:])
    return indptr


def _joined_tokens(items: list[StepItem], is_one_token_each: bool) -> Int32Array:
    if is_one_token_each:  # one conversion instead of one per request
        return _gathered(items, "token_ids", [item.token_ids[0] for item in items])
    return _joined(items, "token_ids", [item.token_ids for item in items])


def _joined(items: list[StepItem], name: str, parts: Sequence[Sequence[int] | Int32Array]) -> Int32Array:
    """One int32 array of all parts, one after the other."""
    try:
        return np.concatenate([np.zeros(0, np.int32), *map(_as_int32, parts)])
    except (OverflowError, TypeError):
        raise _misfit(items, name, parts, _INT32) from None


def _as_int32(part: Sequence[int] | Int32Array) -> Int32Array:
    if isinstance(part, np.ndarray) and part.dtype == np.int32:
        return part
    return np.array(array(_INT32, part))


def _misfit(items: list[StepItem], name: str, parts: Sequence[Any], typecode: str) -> InvalidArgumentError:
    """The error that shows the first item whose part is not of integers that fit."""
    item = next(item for item, part in zip(items, parts, strict=True) if not _fits(part, typecode))
    bits = 8 * array(typecode).itemsize
    return InvalidArgumentError("items", item, f"each with {name} of integers in [-2^{bits - 1}, 2^{bits - 1})")


def _fits(values: Sequence[Any], typecode: str) -> bool:
    try:
        array(typecode, values)
    except (OverflowError, TypeError):
        return False
    return True
