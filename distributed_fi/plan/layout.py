# SPDX-License-Identifier: Apache-2.0
"""The step plan as one flat int32 buffer, the only thing a step sends from the coordinator to the ranks.

    word   0 magic           1 version         2-3 step           4-5 digest
           6 epoch           7 total_words     8 num_tokens       9 num_requests
          10 num_samples    11 num_page_indices                  12 dp
          13 graph_bucket   14 table_offset   15 table_length
    table  (offset, length) of each section in words, in the order of `SECTIONS`
    then   the sections, each at a multiple of 4 words (16 bytes), the gaps zero

Numbers of two words have the low word first. The digest is blake2b, 8 bytes, over all words but its own.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from distributed_fi.config import check_range
from distributed_fi.errors import PlanError

Int32Array: TypeAlias = npt.NDArray[np.int32]
Float32Array: TypeAlias = npt.NDArray[np.float32]

MAGIC = int.from_bytes(b"DFIP", "little")
VERSION = 2
HEADER_WORDS = 16
ALIGN_WORDS = 4

_INT32 = np.dtype(np.int32)
_FLOAT32 = np.dtype(np.float32)
_HEADER = struct.Struct("=2i2Q10i")
_DIGEST_WORD = 4
_DIGEST_END = 6


@dataclass(frozen=True, eq=False, kw_only=True)
class StepPlan:
    """Everything of one step that does not depend on the rank.

    T tokens, B requests and S samples of all `dp` replicas, one replica after the other by dp rank. All arrays
    are int32, indptr arrays exclusive prefix sums that begin with 0, if not said otherwise. Slots and pages are
    numbered per replica.

    Args:
        graph_bucket: tokens of the CUDA graph that fits each replica; 0 runs eagerly.
        token_ids: [T]; < 0 is -(slot + 1): the last token sampled in that slot, not yet known on the host.
        positions: [T], index of the token in its request.
        batch_indices: [T], request of the token, counted within its replica.
        qo_indptr: [B + 1], tokens of each request.
        kv_lens: [B], tokens in the cache after this step's append.
        kv_page_indptr: [B + 1], pages of each request.
        kv_page_indices: [nnz], page ids.
        kv_last_page_len: [B], tokens in the last page, in [1, page_size].
        request_slots: [B], the place that keeps the request's last sampled token.
        sample_rows: [S], index into [T] of the token whose logits are sampled.
        sample_requests: [S], index into [B] of the request that gets the sample.
        sample_positions: [S], position that the new token will take; the counter of the random numbers.
        seeds: [S, 2], low and high word of a seed in [0, 2^63).
        temperature: [S], float32; 0 takes the largest logit.
        top_p: [S], float32 in (0, 1].
        min_p: [S], float32 in [0, 1].
        top_k: [S]; 0 keeps all.
        dp_request_indptr: [dp + 1], requests of each replica.
        dp_token_indptr: [dp + 1], tokens of each replica.
        dp_sample_indptr: [dp + 1], samples of each replica.
    """

    graph_bucket: int
    token_ids: Int32Array
    positions: Int32Array
    batch_indices: Int32Array
    qo_indptr: Int32Array
    kv_lens: Int32Array
    kv_page_indptr: Int32Array
    kv_page_indices: Int32Array
    kv_last_page_len: Int32Array
    request_slots: Int32Array
    sample_rows: Int32Array
    sample_requests: Int32Array
    sample_positions: Int32Array
    seeds: Int32Array
    temperature: Float32Array
    top_p: Float32Array
    min_p: Float32Array
    top_k: Int32Array
    dp_request_indptr: Int32Array
    dp_token_indptr: Int32Array
    dp_sample_indptr: Int32Array

    @property
    def dp(self) -> int:
        return len(self.dp_request_indptr) - 1

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_requests(self) -> int:
        return len(self.kv_lens)

    @property
    def num_samples(self) -> int:
        return len(self.sample_rows)


class Section(NamedTuple):
    """One array of the plan: its field, which of PlanCounts gives its rows (plus `extra`), and words per row."""

    name: str
    rows: int
    extra: int = 0
    width: int = 1
    dtype: np.dtype[Any] = _INT32


class PlanCounts(NamedTuple):
    """Sizes that fix the place of every section."""

    num_tokens: int
    num_requests: int
    num_samples: int
    num_page_indices: int
    dp: int


_T, _B, _S, _NNZ, _DP = range(5)

SECTIONS = (
    Section("token_ids", _T),
    Section("positions", _T),
    Section("batch_indices", _T),
    Section("qo_indptr", _B, extra=1),
    Section("kv_lens", _B),
    Section("kv_page_indptr", _B, extra=1),
    Section("kv_page_indices", _NNZ),
    Section("kv_last_page_len", _B),
    Section("request_slots", _B),
    Section("sample_rows", _S),
    Section("sample_requests", _S),
    Section("sample_positions", _S),
    Section("seeds", _S, width=2),
    Section("temperature", _S, dtype=_FLOAT32),
    Section("top_p", _S, dtype=_FLOAT32),
    Section("min_p", _S, dtype=_FLOAT32),
    Section("top_k", _S),
    Section("dp_request_indptr", _DP, extra=1),
    Section("dp_token_indptr", _DP, extra=1),
    Section("dp_sample_indptr", _DP, extra=1),
)
_TABLE_END = HEADER_WORDS + 2 * len(SECTIONS)


@dataclass(frozen=True)
class PlanHeader:
    """The header of a plan buffer, each field as in the layout above."""

    epoch: int
    step: int
    digest: int
    total_words: int
    counts: PlanCounts
    graph_bucket: int


def capacity_words(*, max_tokens: int, max_requests: int, max_pages: int, max_samples: int, dp: int) -> int:
    """Words of the largest plan within these limits, all replicas together: exact, so ring slots fit any step."""
    return _layout(PlanCounts(max_tokens, max_requests, max_samples, max_pages, dp))[1]


def encode(plan: StepPlan, *, epoch: int, step: int) -> Int32Array:
    """Lay `plan` out as one buffer.

    Args:
        plan: arrays whose lengths agree with each other.
        epoch: of the group of ranks, in [0, 2^31).
        step: number of the step, in [0, 2^64).
    Returns:
        [total_words], int32.
    Raises:
        PlanError: an array has another length or dtype than the others imply.
    """
    check_range("epoch", epoch, "0 <= epoch < 2^31", 0 <= epoch < 2**31)
    check_range("step", step, "0 <= step < 2^64", 0 <= step < 2**64)
    counts = PlanCounts(plan.num_tokens, plan.num_requests, plan.num_samples, len(plan.kv_page_indices), plan.dp)
    spans, total = _layout(counts)
    buffer = np.zeros(total, np.int32)
    table: list[int] = []
    for section, (offset, length) in zip(SECTIONS, spans, strict=True):
        array = getattr(plan, section.name)
        if array.size != length or array.dtype != section.dtype:
            wanted = f"{length} words of {section.dtype}"
            raise PlanError(f"section {section.name}: expected {wanted}, got {array.size} of {array.dtype}")
        buffer[offset : offset + length] = array.reshape(-1) if section.dtype is _INT32 else array.view(_INT32)
        table += (offset, length)
    buffer[HEADER_WORDS:_TABLE_END] = table
    fields = (*counts, plan.graph_bucket, HEADER_WORDS, len(table))
    _HEADER.pack_into(buffer.data, 0, MAGIC, VERSION, step, 0, epoch, total, *fields)
    struct.pack_into("=Q", buffer.data, 4 * _DIGEST_WORD, _digest(buffer))
    return buffer


def read_header(buffer: Int32Array) -> PlanHeader:
    """The header of `buffer`, which may be longer than its plan (a ring slot).

    Raises:
        PlanError: no int32 vector, truncated, or another magic or version.
    """
    if buffer.dtype != _INT32 or buffer.ndim != 1 or not buffer.flags.c_contiguous:
        raise PlanError(f"plan buffer: expected a contiguous int32 vector, got {buffer.dtype} {list(buffer.shape)}")
    if len(buffer) < _TABLE_END:
        raise PlanError(f"plan truncated: header and table take {_TABLE_END} words, the buffer has {len(buffer)}")
    magic, version, step, digest, epoch, total, *rest = _HEADER.unpack_from(buffer.data)
    if magic != MAGIC:
        raise PlanError(f"plan magic: expected {MAGIC:#x}, got {magic & 0xFFFFFFFF:#x}")
    if version != VERSION:
        raise PlanError(f"plan version: expected {VERSION}, got {version}")
    if not _TABLE_END <= total <= len(buffer):
        raise PlanError(f"plan truncated: its header says {total} words, the buffer has {len(buffer)}")
    *counts, graph_bucket, table_offset, table_length = rest
    if (table_offset, table_length) != (HEADER_WORDS, 2 * len(SECTIONS)):
        wanted = f"{2 * len(SECTIONS)} words at {HEADER_WORDS}"
        raise PlanError(f"plan section table: expected {wanted}, got {table_length} at {table_offset}")
    return PlanHeader(epoch, step, digest, total, PlanCounts(*counts), graph_bucket)


def decode(buffer: Int32Array, *, epoch: int | None = None) -> StepPlan:
    """Read a plan without copying: the arrays are views of `buffer` and live as long as its contents.

    Args:
        buffer: [>= total_words], int32, contiguous, from `encode`.
        epoch: the reader's; None takes any.
    Raises:
        PlanError: magic, version, epoch or digest differ, or a section lies outside the buffer. Nothing
            outside the buffer is read, whatever it holds; what the sections say is trusted once the digest agrees.
    """
    header = read_header(buffer)
    spans = _checked_spans(buffer, header)
    found = _digest(buffer[: header.total_words])
    if found != header.digest:
        raise PlanError(f"plan digest: expected {header.digest:#018x}, the words give {found:#018x}")
    if epoch is not None and epoch != header.epoch:
        raise PlanError(f"plan epoch: expected {epoch}, got {header.epoch}")
    arrays: dict[str, Any] = {}
    for section, (offset, length) in zip(SECTIONS, spans, strict=True):
        words = buffer[offset : offset + length]
        arrays[section.name] = words if section.dtype is _INT32 else words.view(section.dtype)
    arrays["seeds"] = arrays["seeds"].reshape(-1, 2)
    return StepPlan(graph_bucket=header.graph_bucket, **arrays)


def slice_replica(plan: StepPlan, dp_rank: int) -> StepPlan:
    """The part of one replica: views where nothing changes, indptr arrays and sample indices counted from 0."""
    check_range("dp_rank", dp_rank, f"0 <= dp_rank < {plan.dp}", 0 <= dp_rank < plan.dp)
    if plan.dp == 1:
        return plan
    first_request, last_request = plan.dp_request_indptr[dp_rank : dp_rank + 2].tolist()
    first_token, last_token = plan.dp_token_indptr[dp_rank : dp_rank + 2].tolist()
    first_sample, last_sample = plan.dp_sample_indptr[dp_rank : dp_rank + 2].tolist()
    tokens, samples = slice(first_token, last_token), slice(first_sample, last_sample)
    requests, bounds = slice(first_request, last_request), slice(first_request, last_request + 1)
    kv_page_indptr = plan.kv_page_indptr[bounds]
    pages = slice(int(kv_page_indptr[0]), int(kv_page_indptr[-1]))
    return StepPlan(
        graph_bucket=plan.graph_bucket,
        token_ids=plan.token_ids[tokens],
        positions=plan.positions[tokens],
        batch_indices=plan.batch_indices[tokens],
        qo_indptr=plan.qo_indptr[bounds] - np.int32(first_token),
        kv_lens=plan.kv_lens[requests],
        kv_page_indptr=kv_page_indptr - np.int32(pages.start),
        kv_page_indices=plan.kv_page_indices[pages],
        kv_last_page_len=plan.kv_last_page_len[requests],
        request_slots=plan.request_slots[requests],
        sample_rows=plan.sample_rows[samples] - np.int32(first_token),
        sample_requests=plan.sample_requests[samples] - np.int32(first_request),
        sample_positions=plan.sample_positions[samples],
        seeds=plan.seeds[samples],
        temperature=plan.temperature[samples],
        top_p=plan.top_p[samples],
        min_p=plan.min_p[samples],
        top_k=plan.top_k[samples],
        dp_request_indptr=np.array([0, last_request - first_request], np.int32),
        dp_token_indptr=np.array([0, last_token - first_token], np.int32),
        dp_sample_indptr=np.array([0, last_sample - first_sample], np.int32),
    )


def _layout(counts: PlanCounts) -> tuple[list[tuple[int, int]], int]:
    """(offset, length) of each section, and the words of the whole plan."""
    spans, offset = [], _TABLE_END
    for _, rows, extra, width, _ in SECTIONS:
        offset = -(-offset // ALIGN_WORDS) * ALIGN_WORDS
        length = (counts[rows] + extra) * width
        spans.append((offset, length))
        offset += length
    return spans, offset


def _checked_spans(buffer: Int32Array, header: PlanHeader) -> list[tuple[int, int]]:
    if min(header.counts) < 0 or header.counts.dp < 1:
        raise PlanError(f"plan counts: expected all >= 0 and dp >= 1, got {header.counts}")
    spans, total = _layout(header.counts)
    if total != header.total_words:
        raise PlanError(f"plan total_words: expected {total} by its counts, got {header.total_words}")
    table = [(offset, length) for offset, length in buffer[HEADER_WORDS:_TABLE_END].reshape(-1, 2).tolist()]
    if table != spans:
        index = next(i for i, found in enumerate(table) if found != spans[i])
        (offset, length), (found_offset, found_length) = spans[index], table[index]
        wanted = f"expected {length} words at {offset} of {total}"
        raise PlanError(f"section {SECTIONS[index].name}: {wanted}, got {found_length} at {found_offset}")
    return spans


def _digest(buffer: Int32Array) -> int:
    state = hashlib.blake2b(buffer[:_DIGEST_WORD].data, digest_size=8)
    state.update(buffer[_DIGEST_END:].data)
    return int.from_bytes(state.digest(), "little")
