# SPDX-License-Identifier: Apache-2.0
"""Attention row by row and head by head in float64: what the operators are compared with."""

from __future__ import annotations

import math

import torch


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    sm_scale: float | None = None,
    logits_soft_cap: float | None = None,
    window_left: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One request: q [qo_len, num_qo_heads, Dqk] over k [kv_len, num_kv_heads, Dqk], v [kv_len, num_kv_heads, Dvo].

    Returns out [qo_len, num_qo_heads, Dvo] and base-2 lse [qo_len, num_qo_heads], both float64; 0 and
    -inf where a row sees no key.
    """
    qo_len, num_qo_heads, head_dim = q.shape
    kv_len, num_kv_heads, head_dim_vo = v.shape
    q, k, v = q.double(), k.double(), v.double()
    scale = 1 / math.sqrt(head_dim) if sm_scale is None else sm_scale
    out = torch.zeros(qo_len, num_qo_heads, head_dim_vo, dtype=torch.float64)
    lse = torch.full((qo_len, num_qo_heads), -math.inf, dtype=torch.float64)
    for i in range(qo_len):
        pos = kv_len - qo_len + i
        first = 0 if window_left < 0 else max(0, pos - window_left)
        stop = pos + 1 if causal else kv_len
        for h in range(num_qo_heads if stop > first else 0):
            kv_head = h // (num_qo_heads // num_kv_heads)
            logits = scale * (k[first:stop, kv_head] @ q[i, h])
            if logits_soft_cap:
                logits = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
            out[i, h] = logits.softmax(0) @ v[first:stop, kv_head]
            lse[i, h] = logits.logsumexp(0) / math.log(2)
    return out, lse
