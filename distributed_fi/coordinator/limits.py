# SPDX-License-Identifier: Apache-2.0
"""Sizes that follow from a model and an engine's configuration, all checked before a process is started."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_fi.config import EngineConfig, ModelConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.plan.layout import capacity_words
from distributed_fi.plan.sharding import shard_heads, shard_model

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one engine can hold.

    Args:
        max_model_len: tokens of a request, prompt and answer.
        least_pages: of a pool in which one request of full length fits.
        wanted_pages: of a pool in which `max_num_seqs` of them fit, unless the user said how many.
    """

    max_model_len: int
    least_pages: int
    wanted_pages: int


def limits_of(config: EngineConfig, model: ModelConfig) -> Limits:
    """Check what the user asked for against the model.

    Raises:
        InvalidArgumentError: max_model_len beyond the model's, a pool too small for one request, or a mesh
            that the model's heads, vocabulary or intermediate size cannot fill.
    """
    for rank in range(config.mesh.tp):
        shard_model(model, config.mesh, rank)
    longest = config.max_model_len or model.max_position
    if longest > model.max_position:
        raise InvalidArgumentError("max_model_len", longest, f"at most the model's {model.max_position}")
    least = -(-longest // config.page_size)
    if config.num_pages is not None and config.num_pages < least:
        raise InvalidArgumentError("num_pages", config.num_pages, f"at least {least}, for one request of {longest}")
    wanted = config.num_pages or least * config.max_num_seqs
    return Limits(max_model_len=longest, least_pages=least, wanted_pages=wanted)


def page_bytes(config: EngineConfig, model: ModelConfig, rank: int, dtype: str) -> int:
    """Bytes of one KV page of all layers on one rank."""
    heads = shard_heads(model.num_qo_heads, model.num_kv_heads, config.mesh.tp)[config.mesh.coord(rank).tp_rank]
    return 2 * model.num_layers * config.page_size * len(heads.kv) * model.head_dim * DTYPE_BYTES[dtype]


def plan_bytes(config: EngineConfig, num_pages: int) -> int:
    """Bytes of the largest step plan: no request uses a page of another, so page tables are bounded by the pool."""
    dp = config.mesh.dp
    words = capacity_words(
        max_tokens=dp * config.max_batch_tokens,
        max_requests=dp * config.max_num_seqs,
        max_pages=dp * num_pages,
        max_samples=dp * config.max_num_seqs,
        dp=dp,
    )
    return 4 * words


def resolve_dtype(config: EngineConfig, model: ModelConfig, device_type: str) -> str:
    """ "auto" is the checkpoint's dtype on a GPU, and float32 on a CPU, which is faster there."""
    if config.dtype != "auto":
        return config.dtype
    return model.dtype if device_type == "cuda" else "float32"
