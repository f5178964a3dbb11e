# SPDX-License-Identifier: Apache-2.0
"""Attention operators.

Two requests over a paged KV cache of 16-token pages, the first one decoding (1 new token of 20), the
second one prefilling (5 new tokens of 5):

>>> import torch
>>> from distributed_fi.attention import BatchAttention
>>> attention = BatchAttention(kv_layout="NHD")
>>> plan = attention.plan(
...     qo_offsets=[0, 1, 6], kv_lens=[20, 5], kv_block_table=[[3, 0], [2, -1]],
...     num_qo_heads=9, num_kv_heads=3, head_dim_qk=64, head_dim_vo=64,
...     dtype_q=torch.float32, causal=True)
>>> q, k, v = torch.randn(6, 9, 64), torch.randn(4, 16, 3, 64), torch.randn(4, 16, 3, 64)
>>> out, lse = attention.run(q, (k, v))
>>> out.shape, lse.shape
(torch.Size([6, 9, 64]), torch.Size([6, 9]))
"""

from distributed_fi.kernels.attention.batch_attention import BatchAttention

__all__ = ["BatchAttention"]
