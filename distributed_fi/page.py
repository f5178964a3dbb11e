# SPDX-License-Identifier: Apache-2.0
"""Paged KV cache operators.

Append three tokens to the first of two requests and one to the second, whose cache has 4-token pages:

>>> import torch
>>> from distributed_fi.page import append_paged_kv_cache, get_batch_indices_positions, get_seq_lens
>>> k_cache, v_cache = torch.zeros(8, 4, 3, 64), torch.zeros(8, 4, 3, 64)
>>> kv_indptr, kv_indices = torch.tensor([0, 2, 3]), torch.tensor([5, 1, 7])
>>> kv_last_page_len = torch.tensor([2, 1])  # the new tokens included
>>> seq_lens = get_seq_lens(kv_indptr, kv_last_page_len, page_size=4)
>>> batch_indices, positions = get_batch_indices_positions(torch.tensor([0, 3, 4]), seq_lens, nnz=4)
>>> positions.tolist()
[3, 4, 5, 0]
>>> key, value = torch.randn(4, 3, 64), torch.randn(4, 3, 64)
>>> append_paged_kv_cache(
...     key, value, batch_indices, positions, (k_cache, v_cache), kv_indices, kv_indptr, kv_last_page_len)
>>> torch.equal(k_cache[1, 0], key[1])
True
"""

from distributed_fi.kernels.kv_cache.append import (
    append_paged_kv_cache,
    append_with_slots,
    get_batch_indices_positions,
    get_seq_lens,
    plan_append,
)

__all__ = [
    "append_paged_kv_cache",
    "append_with_slots",
    "get_batch_indices_positions",
    "get_seq_lens",
    "plan_append",
]
