# SPDX-License-Identifier: Apache-2.0
"""Which part of every weight and head range a rank owns: pure functions of sizes and the mesh."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from distributed_fi.config import ModelConfig, check_range
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.mesh import Mesh


@dataclass(frozen=True)
class Span:
    """A contiguous half-open range of indices [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class HeadShard:
    """Query heads of one rank and the KV heads they read; len(qo) is a multiple of len(kv)."""

    qo: Span
    kv: Span


@dataclass(frozen=True)
class RankShard:
    """What one tensor-parallel rank owns of a model; `expert_intermediate` is its part of each expert's."""

    tp_rank: int
    heads: HeadShard
    intermediate: Span
    vocab: Span
    expert_intermediate: Span = Span(0, 0)


def split_contiguous(size: int, parts: int) -> list[Span]:
    """Cut [0, size) into `parts` neighbouring spans whose lengths differ by one at most, longer first.

    Raises:
        InvalidArgumentError: size is negative or parts below 1.
    """
    check_range("size", size, "an integer >= 0", size >= 0)
    check_range("parts", parts, "an integer >= 1", parts >= 1)
    base, longer = divmod(size, parts)
    starts = [i * base + min(i, longer) for i in range(parts + 1)]
    return [Span(start, stop) for start, stop in itertools.pairwise(starts)]


def shard_heads(num_qo_heads: int, num_kv_heads: int, tp: int) -> list[HeadShard]:
    """Heads of each tensor-parallel rank.

    With tp <= num_kv_heads the KV heads are cut into contiguous spans and the query heads that read
    them follow. With more ranks than KV heads, each KV head is replicated on a contiguous set of
    ranks that share its query heads, so that every rank keeps one uniform group of query heads per
    KV head, which is what attention kernels need.

    Raises:
        InvalidArgumentError: more ranks than query heads, or num_qo_heads no multiple of num_kv_heads.
    """
    if num_kv_heads < 1 or num_qo_heads % num_kv_heads != 0:
        raise InvalidArgumentError("num_qo_heads", num_qo_heads, f"a multiple of num_kv_heads={num_kv_heads} >= 1")
    if not 1 <= tp <= num_qo_heads:
        raise InvalidArgumentError("tp", tp, f"1 <= tp <= {num_qo_heads}, the model's query heads")
    group = num_qo_heads // num_kv_heads
    if tp <= num_kv_heads:
        spans = split_contiguous(num_kv_heads, tp)
        return [HeadShard(qo=Span(kv.start * group, kv.stop * group), kv=kv) for kv in spans]
    shards = []
    for kv_head, ranks in enumerate(split_contiguous(tp, num_kv_heads)):
        for qo in split_contiguous(group, len(ranks)):
            first = kv_head * group
            shards.append(HeadShard(qo=Span(first + qo.start, first + qo.stop), kv=Span(kv_head, kv_head + 1)))
    return shards


def shard_model(config: ModelConfig, mesh: Mesh, rank: int) -> RankShard:
    """What global rank `rank` of `mesh` owns of the model.

    Raises:
        InvalidArgumentError: an axis of the model has fewer parts than tp.
    """
    tp_rank = mesh.coord(rank).tp_rank
    for name in ("intermediate_size", "vocab_size"):
        if getattr(config, name) < mesh.tp:
            raise InvalidArgumentError("tp", mesh.tp, f"at most {name}={getattr(config, name)}")
    expert_size = 0 if config.experts is None else config.experts.intermediate_size
    if config.experts is not None and expert_size < mesh.tp:
        raise InvalidArgumentError("tp", mesh.tp, f"at most {expert_size}, an expert's intermediate size")
    return RankShard(
        tp_rank=tp_rank,
        heads=shard_heads(config.num_qo_heads, config.num_kv_heads, mesh.tp)[tp_rank],
        intermediate=split_contiguous(config.intermediate_size, mesh.tp)[tp_rank],
        vocab=split_contiguous(config.vocab_size, mesh.tp)[tp_rank],
        expert_intermediate=split_contiguous(expert_size, mesh.tp)[tp_rank],
    )
