# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer, one tensor-parallel rank of it; its config chooses the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distributed_fi.comm.group import Group
from distributed_fi.config import ModelConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.gemm.gemm_nt import gemm_nt
from distributed_fi.kernels.kv_cache.append import append_with_slots
from distributed_fi.kernels.rope.cos_sin_cache import apply_rope_with_cos_sin_cache_inplace
from distributed_fi.kernels.rope.frequencies import make_cos_sin_cache
from distributed_fi.models.decoder_layer import DecoderLayer, make_layer
from distributed_fi.models.decoder_weights import weight_specs
from distributed_fi.models.loaders.checkpoint import Checkpoint
from distributed_fi.models.norm import Norm, make_norm
from distributed_fi.models.weights import OnProgress, load_weights
from distributed_fi.plan.sharding import RankShard, split_contiguous

if TYPE_CHECKING:
    from distributed_fi.kernels.attention.batch_attention import BatchAttention

KVCache = tuple[Tensor, Tensor]


class DecoderModel:
    """One rank's shard of a model of the Llama family or its relatives.

    Queries, keys, values, gate and up are split by output features, o and down by input features, the
    embedding and the LM head by vocabulary rows. Two sums over the group a layer, each fused with the
    residual addition and the norm that follows it, where nothing stands between them.

    Args:
        config: the whole model's shape.
        shard: what this rank owns of it.
        weights: this rank's parameters, from `load_weights` of `weight_specs`.
        group: the ranks of the tensor-parallel group, in the order of their shards.
        dtype, device: of weights, activations and KV cache.
        max_position: positions that will be asked for, at most the model's own.
    Attributes:
        windows: tokens before itself that a query sees, -1 for all: the distinct values over the layers. A step
            needs one attention plan for each.
    Raises:
        InvalidArgumentError: max_position is beyond the model's context.
    """

    def __init__(
        self,
        config: ModelConfig,
        shard: RankShard,
        weights: Mapping[str, Tensor],
        group: Group,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        max_position: int,
    ):
        if not 1 <= max_position <= config.max_position:
            raise InvalidArgumentError("max_position", max_position, f"1 to {config.max_position}, the model's context")
        self.config, self.shard, self.group = config, shard, group
        self.dtype, self.device = dtype, torch.device(device)
        self.embed_tokens = weights["embed_tokens"]
        # Rounded to dtype first, as the models were trained.
        self.embedding_scale = torch.tensor(config.embedding_scale, dtype=dtype).item()
        self.norm = make_norm(config, weights["norm"])
        self.lm_head = self.embed_tokens if config.tie_word_embeddings else weights["lm_head"]
        self.vocab_sizes = [len(span) for span in split_contiguous(config.vocab_size, group.world_size)]
        ropes = dict.fromkeys(config.rope_of(i) for i in range(config.num_layers))
        caches = {rope: make_cos_sin_cache(rope, config.head_dim, max_position, device=self.device) for rope in ropes}
        self.layers = [make_layer(config, weights, i, caches[config.rope_of(i)]) for i in range(config.num_layers)]
        self.next_norms = [layer.input_norm for layer in self.layers[1:]] + [self.norm]
        self.windows = tuple(dict.fromkeys(layer.window_left for layer in self.layers))

    def kv_cache_shape(self, num_pages: int, page_size: int) -> tuple[int, int, int, int]:
        """Shape, NHD, of the keys, and of the values, of each layer's cache on this rank."""
        return num_pages, page_size, len(self.shard.heads.kv), self.config.head_dim

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[KVCache],
        attentions: Mapping[int, BatchAttention],
        slots: Tensor,
    ) -> Tensor:
        """Final hidden states of a ragged batch; its keys and values join the cache.

        Args:
            token_ids: [T], int32 or int64, in the vocabulary.
            positions: [T], int32 or int64, below max_position.
            kv_caches: per layer (keys, values), each of `kv_cache_shape`.
            attentions: for each of `windows` one that is planned for this batch with that window_left, the new
                tokens counted in its KV lengths, and with the config's query_scale and attention_soft_cap.
            slots: [T], where in the cache each token goes, from `plan_append`.
        Returns:
            [T, hidden_size] after the final norm, the same on every rank.
        Notes: current stream; allocates activations; one collective for the embedding, two a layer.
        """
        residual = self.embed(token_ids)  # [T, H]
        hidden = self.layers[0].input_norm(residual)
        for layer, next_norm, kv_cache in zip(self.layers, self.next_norms, kv_caches, strict=True):
            partial = self._attention(layer, hidden, positions, kv_cache, attentions[layer.window_left], slots)
            hidden = self._sum_add_norm(partial, residual, layer.attention_out_norm, layer.mlp_norm)
            hidden = self._sum_add_norm(layer.mlp(hidden), residual, layer.mlp_out_norm, next_norm)
        return hidden

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings [T, hidden_size]: each rank looks up the tokens it owns, the sum has them all."""
        if self.group.world_size == 1:
            rows = self.embed_tokens[token_ids]
        else:
            local = token_ids - self.shard.vocab.start
            is_foreign = (local < 0) | (local >= len(self.shard.vocab))
            rows = self.embed_tokens[local.masked_fill(is_foreign, 0)]
            rows = self.group.all_reduce(rows.masked_fill_(is_foreign[:, None], 0), out=rows)
        return rows if self.embedding_scale == 1 else rows.mul_(self.embedding_scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states [S, hidden_size], gathered from all ranks: [S, vocab_size], float32."""
        return self.gather_logits(self.local_logits(hidden))

    def local_logits(self, hidden: Tensor) -> Tensor:
        """Logits of this rank's part of the vocabulary, [S, len(shard.vocab)]."""
        return gemm_nt(hidden, self.lm_head)

    def gather_logits(self, local_logits: Tensor) -> Tensor:
        """Every rank's logits side by side, [S, vocab_size], float32."""
        if self.group.world_size > 1:
            local_logits = self.group.all_gather(local_logits, dim=1, sizes=self.vocab_sizes)
        logits, cap = local_logits.float(), self.config.logit_soft_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _attention(
        self,
        layer: DecoderLayer,
        hidden: Tensor,
        positions: Tensor,
        kv_cache: KVCache,
        attention: BatchAttention,
        slots: Tensor,
    ) -> Tensor:
        """This rank's heads' share of the attention output, [T, H], yet to be summed over the group."""
        heads, head_dim = self.shard.heads, self.config.head_dim
        qkv = gemm_nt(hidden, layer.qkv, bias=layer.qkv_bias)  # [T, (Hq + 2 Hkv) * D]
        qkv = qkv.view(len(hidden), len(heads.qo) + 2 * len(heads.kv), head_dim)
        q, k, v = qkv.split([len(heads.qo), len(heads.kv), len(heads.kv)], dim=1)  # views [T, heads, D]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = layer.q_norm(q), layer.k_norm(k)
        apply_rope_with_cos_sin_cache_inplace(positions, q, k, head_dim, layer.cos_sin_cache)
        append_with_slots(k, v, slots, kv_cache, kv_layout="NHD")
        out, _ = attention.run(q, kv_cache)  # [T, Hq, D]
        return gemm_nt(out.reshape(len(hidden), len(heads.qo) * head_dim), layer.o)

    def _sum_add_norm(self, partial: Tensor, residual: Tensor, out_norm: Norm | None, norm: Norm) -> Tensor:
        """Add the sum of all ranks' partials, normalised where a norm says so, to the residual; the norm of that.

        The residual changes in place; partial's memory is used up.
        """
        if out_norm is None and not norm.adds_one:
            return self.group.all_reduce_residual_rmsnorm(
                partial, residual, norm.weight, norm.eps, norm_out=partial, residual_out=residual
            )[0]
        total = self.group.all_reduce(partial, out=partial) if self.group.world_size > 1 else partial
        residual.add_(total if out_norm is None else out_norm(total))
        return norm(residual)


def load_model(
    checkpoint: Checkpoint,
    shard: RankShard,
    group: Group,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    max_position: int,
    on_progress: OnProgress | None = None,
) -> DecoderModel:
    """Read one rank's slice of a checkpoint and make a model of it.

    Args:
        checkpoint: from `open_checkpoint`.
        shard, group, dtype, device, max_position: as for `DecoderModel`.
        on_progress: called with (bytes loaded, bytes in all) of this rank's parameters.
    """
    specs = weight_specs(checkpoint.config, shard)
    weights = load_weights(checkpoint, specs, dtype=dtype, device=device, on_progress=on_progress)
    return DecoderModel(checkpoint.config, shard, weights, group, dtype=dtype, device=device, max_position=max_position)
