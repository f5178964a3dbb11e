# SPDX-License-Identifier: Apache-2.0
"""One rank's half of a step: plan in, sampled tokens out, no knowledge of rings or Ray."""

from __future__ import annotations

import numpy as np
import torch

from distributed_fi.kernels.attention.batch_attention import BatchAttention
from distributed_fi.kernels.kv_cache.append import plan_append
from distributed_fi.kernels.sampling.logits_pipe import LogitsPipe
from distributed_fi.kernels.sampling.processors import MinP, Sample, Softmax, Temperature, TopK, TopP
from distributed_fi.models.decoder import DecoderModel
from distributed_fi.plan.layout import StepPlan


class Runner:
    """Owns the KV pool of one rank and runs its model over step plans.

    Args:
        model: this rank's shard.
        page_size, num_pages: of the KV pool; the same on every rank of the replica.
        max_num_seqs: slots for "the last token sampled", which a later plan may name before it is known
            to the coordinator.
    """

    def __init__(self, model: DecoderModel, *, page_size: int, num_pages: int, max_num_seqs: int):
        self.model, self.page_size, self.num_pages = model, page_size, num_pages
        shape = model.kv_cache_shape(num_pages, page_size)
        # Not cleared: attention reads no slot that was not written, and touching pages costs a CPU 1 s per GB.
        self.kv_caches = [
            (
                torch.empty(shape, dtype=model.dtype, device=model.device),
                torch.empty(shape, dtype=model.dtype, device=model.device),
            )
            for _ in range(model.config.num_layers)
        ]
        self.attentions = {
            window_left: BatchAttention(kv_layout="NHD", device=model.device) for window_left in model.windows
        }
        self.sampler = LogitsPipe([Temperature(), TopK(), Softmax(), TopP(), MinP(), Sample()])
        self.last_tokens = torch.zeros(max_num_seqs, dtype=torch.int32, device=model.device)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> np.ndarray:
        """Run one replica's plan: append KV, attend, sample.

        Args:
            plan: already sliced to this rank's dp replica.
        Returns:
            int32 [num_samples]: the tokens sampled, -1 where a row's logits held NaN.
        """
        if plan.num_tokens == 0:
            return np.empty(0, np.int32)
        hidden = self._forward(plan)
        if plan.num_samples == 0:
            return np.empty(0, np.int32)
        return self._sample(plan, hidden[self._to_device(plan.sample_rows)])

    def _forward(self, plan: StepPlan) -> torch.Tensor:
        model = self.model
        token_ids = self._to_device(plan.token_ids)
        from_slot = token_ids < 0
        token_ids = torch.where(from_slot, self.last_tokens[(-1 - token_ids).clamp_(min=0)], token_ids)
        slots = plan_append(
            plan.batch_indices,
            plan.positions,
            plan.kv_page_indices,
            plan.kv_page_indptr,
            page_size=self.page_size,
            num_pages=self.num_pages,
            device=model.device,
        )
        for window_left, attention in self.attentions.items():
            attention.plan(
                plan.qo_indptr,
                plan.kv_lens,
                plan.kv_page_indices,
                len(model.shard.heads.qo),
                len(model.shard.heads.kv),
                model.config.head_dim,
                model.config.head_dim,
                dtype_q=model.dtype,
                page_size=self.page_size,
                causal=True,
                window_left=window_left,
                sm_scale=model.config.query_scale,
                logits_soft_cap=model.config.attention_soft_cap,
            )
        positions = self._to_device(plan.positions)
        return model.forward(token_ids, positions, self.kv_caches, self.attentions, slots)

    def _sample(self, plan: StepPlan, rows: torch.Tensor) -> np.ndarray:
        logits = self.model.logits(rows)  # [S, vocab], gathered from all ranks of the replica
        seeds = plan.seeds.astype(np.int64)
        tokens = self.sampler(
            logits,
            temperature=torch.from_numpy(plan.temperature.copy()),
            top_k=torch.from_numpy(plan.top_k.copy()),
            top_p=torch.from_numpy(plan.top_p.copy()),
            min_p=torch.from_numpy(plan.min_p.copy()),
            seed=torch.from_numpy((seeds[:, 0] & 0xFFFFFFFF) | (seeds[:, 1] << 32)),
            position=torch.from_numpy(plan.sample_positions.astype(np.int64)),
        )
        slots = self._to_device(plan.request_slots[plan.sample_requests])
        self.last_tokens[slots] = tokens.clamp(min=0)
        # With a deadline, which the copy below has not: a collective may hang because a peer is gone.
        self.model.group.synchronize()
        return tokens.cpu().numpy()

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        # A copy: the plan's memory is the ring's, which the coordinator writes again later.
        return torch.from_numpy(array.copy()).to(self.model.device, non_blocking=True)
