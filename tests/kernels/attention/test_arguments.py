# SPDX-License-Identifier: Apache-2.0
"""What BatchAttention refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distributed_fi.attention import BatchAttention
from distributed_fi.errors import InvalidArgumentError, PlanError, UnsupportedError
from distributed_fi.kernels.attention.arguments import is_indptr_form

# Two requests: 1 query over 20 keys, 2 queries over 5 keys, in pages of 16.
BLOCK_TABLE: dict[str, Any] = {
    "qo_offsets": [0, 1, 3],
    "kv_lens": [20, 5],
    "kv_block_table": [[3, 0], [2, -1]],
    "num_qo_heads": 6,
    "num_kv_heads": 2,
    "head_dim_qk": 8,
    "head_dim_vo": 8,
    "dtype_q": torch.float32,
}
INDPTR: dict[str, Any] = {
    "qo_indptr": [0, 1, 3],
    "kv_indptr": [0, 2, 3],
    "kv_indices": [3, 0, 2],
    "kv_len_arr": [20, 5],
    "num_qo_heads": 6,
    "num_kv_heads": 2,
    "head_dim_qk": 8,
    "head_dim_vo": 8,
    "page_size": 16,
    "q_data_type": torch.float32,
}


def cache(
    num_pages: int = 4,
    page_size: int = 16,
    num_kv_heads: int = 2,
    head_dim: int = 8,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    return torch.zeros(num_pages, page_size, num_kv_heads, head_dim, dtype=dtype)


def planned(**changes: Any) -> BatchAttention:
    attention = BatchAttention(device="cpu")
    attention.plan(**BLOCK_TABLE | changes)
    return attention


def queries(
    num_tokens: int = 3, num_qo_heads: int = 6, head_dim: int = 8, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.zeros(num_tokens, num_qo_heads, head_dim, dtype=dtype)


def test_the_two_forms_are_told_apart_by_the_fourth_argument_or_a_name() -> None:
    assert is_indptr_form(([0], [0], [], []), {})
    assert is_indptr_form(([0], [0], [], torch.tensor([1])), {})
    assert is_indptr_form(([0],), {"kv_indptr": [0]})
    assert not is_indptr_form(([0], [], [], 6), {})
    assert not is_indptr_form(([0], [], [], np.int64(6)), {})
    assert not is_indptr_form((), {"qo_offsets": [0]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qo_offsets": [1, 2, 3]}, r"qo_offsets: expected a prefix sum that starts at 0 .*, got \[1, 2, 3\]"),
        ({"qo_offsets": [0, 2, 1]}, r"qo_offsets: expected a prefix sum .* never falls, got \[0, 2, 1\]"),
        ({"qo_offsets": []}, r"qo_offsets: expected batch_size \+ 1 values, got 0 values"),
        ({"qo_offsets": [0.0, 1.0, 3.0]}, r"qo_offsets: expected a 1-D array of integers, got float64 \[3\]"),
        ({"kv_lens": [20]}, "kv_lens: expected 2 values, one per request, got 1 values"),
        ({"kv_lens": [20, -5]}, r"kv_lens: expected values >= 0, got \[20, -5\]"),
        ({"kv_block_table": [[3, 0]]}, "kv_block_table: expected 2 rows, one per request, got 1 rows"),
        ({"kv_block_table": [[[3]]]}, r"kv_block_table: expected a 1-D or 2-D array of integers, got .*"),
        ({"kv_block_table": [3, -1, 2]}, "kv_block_table: expected page indices >= 0 in a packed table, got -1"),
        ({"num_qo_heads": 5}, "num_qo_heads: expected a multiple of num_kv_heads=2, got 5"),
        ({"num_kv_heads": 0}, "num_kv_heads: expected an integer >= 1, got 0"),
        ({"head_dim_vo": 8.0}, "head_dim_vo: expected an integer >= 1, got 8.0"),
        ({"dtype_q": "float23"}, "dtype_q: expected a torch.dtype or its name, got float23"),
        ({"page_size": 0}, "page_size: expected an integer >= 1, got 0"),
        ({"sm_scale": float("nan")}, "sm_scale: expected a finite number or None, got nan"),
        ({"logits_soft_cap": -1.0}, "logits_soft_cap: expected a finite number >= 0 or None, got -1.0"),
        ({"window_left": -2}, "window_left: expected an integer >= -1, got -2"),
    ],
)  # fmt: skip
def test_block_table_form_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        planned(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_indptr": [0, 3]}, r"kv_indptr: expected batch_size \+ 1 = 3 values, got 2 values"),
        ({"kv_indices": [3, 0]}, r"kv_indices: expected at least kv_indptr\[-1\]=3 pages, got 2 pages"),
        ({"kv_indices": [3, -1, 2]}, "kv_indices: expected page indices >= 0 for the tokens of request 0, got -1"),
        ({"kv_len_arr": [20, 17]}, "kv_indices: expected at least 2 pages of 16 tokens for request 1, got 1 pages"),
        ({"page_size": None}, "page_size: expected an integer >= 1, got None"),
    ],
)
def test_indptr_form_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        BatchAttention(device="cpu").plan(**INDPTR | changes)


@pytest.mark.parametrize("form", [BLOCK_TABLE, INDPTR], ids=["block_table", "indptr"])
def test_an_unknown_variant_argument_is_named(form: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"^alibi: expected no such argument; variants are causal, .*$"):
        BatchAttention(device="cpu").plan(**form, alibi=True)


def test_a_known_page_size_checks_the_pages_in_plan() -> None:
    for table, message in (
        ([[3, 0], [-1, -1]], "kv_block_table: expected page indices >= 0 for the tokens of request 1, got -1"),
        ([[3], [2]], "kv_block_table: expected at least 2 pages of 16 tokens for request 0, got 1 pages"),
        ([3, 0], r"kv_block_table: expected 3 pages, the sum of ceil\(kv_len / 16\), got 2 pages"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
            planned(kv_block_table=table, page_size=16)


def test_an_unknown_page_size_checks_the_pages_at_the_first_run() -> None:
    attention = planned(kv_block_table=[[3, 0], [-1, -1]])
    with pytest.raises(InvalidArgumentError, match=r"^kv_block_table: expected page indices >= 0 .*"):
        attention.run(queries(), (cache(), cache()))
    with pytest.raises(InvalidArgumentError, match=r"^kv_block_table: expected at least 3 pages of 8 tokens .*"):
        attention.run(queries(), (cache(page_size=8), cache(page_size=8)))


def test_a_page_outside_the_cache_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^kv_block_table: expected page indices < num_pages=3, got .*"):
        planned().run(queries(), (cache(num_pages=3), cache(num_pages=3)))


K = "num_pages, page_size, num_kv_heads=2"


@pytest.mark.parametrize(
    ("q", "kv_cache", "message"),
    [
        (queries(4), (cache(), cache()), r"q: expected \[num_tokens=3, num_qo_heads=6, head_dim_qk=8\], got .*"),
        (queries(dtype=torch.float16), (cache(), cache()), "q: expected dtype float32, got float16"),
        ([0.0], (cache(), cache()), "q: expected a torch.Tensor, got list"),
        (queries(), (cache(head_dim=9), cache()), rf"k_cache: expected \[{K}, head_dim_qk=8\], got \[4, 16, 2, 9\]"),
        (queries(), (cache(), cache(5)), r"v_cache: expected \[num_pages=4, page_size=16, .*\], got \[5, 16, 2, 8\]"),
        (queries(), (cache(), cache(dtype=torch.bfloat16)), "v_cache: expected dtype float32, got bfloat16"),
        (queries(), (cache(page_size=0),) * 2, "page_size: expected an integer >= 1, got 0"),
        (queries(), (cache(), cache()[0]), r"v_cache: expected \[num_pages, page_size, .*, head_dim\], got .*"),
        (queries(), (cache(), None), "v_cache: expected a torch.Tensor, got NoneType"),
        (queries(), (cache(),) * 3, r"kv_cache: expected a tensor or a tuple of two tensors \(k, v\), got tuple"),
        (queries(), cache(), r"kv_cache: expected \[num_pages, 2, page_size, .*\] or a tuple \(k, v\), got .*"),
        (queries(), (cache(head_dim=16)[..., ::2],) * 2, "k_cache: expected the head dimension contiguous, got .*"),
    ],
)  # fmt: skip
def test_run_refuses(q: Any, kv_cache: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        planned().run(q, kv_cache)


def test_hnd_caches_are_refused_in_their_own_order() -> None:
    attention = BatchAttention("HND", device="cpu")
    attention.plan(**BLOCK_TABLE, page_size=16)
    wanted = r"^k_cache: expected \[num_pages, num_kv_heads=2, page_size=16, head_dim_qk=8\], got \[4, 16, 2, 8\]$"
    with pytest.raises(InvalidArgumentError, match=wanted):
        attention.run(queries(), (cache(), cache()))


def test_outputs_are_checked_on_every_run() -> None:
    attention = planned()
    attention.run(queries(), (cache(), cache()))
    with pytest.raises(InvalidArgumentError, match=r"^out: expected \[num_tokens=3, .*\], got \[3, 6, 9\]$"):
        attention.run(queries(), (cache(), cache()), out=queries(head_dim=9))
    with pytest.raises(InvalidArgumentError, match=r"^lse: expected dtype float32, got float16$"):
        attention.run(queries(), (cache(), cache()), lse=torch.zeros(3, 6, dtype=torch.float16))


def test_run_needs_a_plan() -> None:
    with pytest.raises(PlanError, match=r"call plan\(\) before run\(\)"):
        BatchAttention().run(queries(), (cache(), cache()))


def test_a_failed_plan_leaves_the_last_one_in_place() -> None:
    attention = planned()
    with pytest.raises(InvalidArgumentError):
        attention.plan(**BLOCK_TABLE | {"kv_lens": [20]})
    assert attention.run(queries(), (cache(), cache()))[0].shape == (3, 6, 8)


def test_layout_backend_and_dtype_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^kv_layout: expected NHD or HND, got DHN$"):
        BatchAttention("DHN")
    with pytest.raises(UnsupportedError, match=r"^backend: expected one of auto, torch, got fa3$"):
        BatchAttention(backend="fa3")
    wanted = r"^backend: expected a problem that some backend serves \(torch: dtype_kv int8 is not float32.*$"
    with pytest.raises(UnsupportedError, match=wanted):
        planned(dtype_kv=torch.int8)


def test_a_plan_prints_its_tiles() -> None:
    assert str(BatchAttention(device="cpu").plan(**BLOCK_TABLE)).splitlines() == [
        "AttentionPlan: 2 requests, 3 query rows, 25 keys",
        "  1 requests of 1 row x 20 keys",
        "  request 1: 2 rows in 1 blocks x 5 keys",
    ]


ARRAYS: tuple[Any, ...] = tuple(BLOCK_TABLE[name] for name in ("qo_offsets", "kv_lens", "kv_block_table"))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (ARRAYS, {"num_qo_heads": 6}, "num_kv_heads, head_dim_qk, head_dim_vo: expected a value, got nothing"),
        ((), {k: v for k, v in BLOCK_TABLE.items() if k != "kv_lens"}, "kv_lens: expected a value, got nothing"),
        ((), {k: v for k, v in INDPTR.items() if k != "page_size"}, "page_size: expected a value, got nothing"),
        ((*ARRAYS, 6, 2, 8, 8, 16), {}, "plan: expected at most 7 without a name: qo_offsets, .*, got 8 arguments"),
        (ARRAYS[:1], BLOCK_TABLE, "qo_offsets: expected one value, by place or by name, got two values"),
        ((*ARRAYS, "2", 2, 8, 8), {}, "num_qo_heads: expected an integer >= 1, got 2"),
        ((*ARRAYS, None, 2, 8, 8), {}, "num_qo_heads: expected an integer >= 1, got None"),
        (([0, 1, 3], [20, 5], [[3, 0], [2]], 6, 2, 8, 8), {}, r"kv_block_table: expected a 1-D or 2-D array of .*"),
        (([0, 1, 3], [20, [5]], [[3, 0], [2, 1]], 6, 2, 8, 8), {}, r"kv_lens: expected a 1-D array of integers, .*"),
        ((), BLOCK_TABLE | {"kv_layout": "HND"}, "kv_layout: expected no such argument; variants are .*"),
    ],
)  # fmt: skip
def test_a_call_of_neither_form_is_refused_by_the_names_of_plan(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        BatchAttention(device="cpu").plan(*args, **kwargs)


@pytest.mark.parametrize("device", ["foo", "cuda:x", 1.5])
def test_an_unknown_device_is_refused(device: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^device: expected a torch.device or its name, .*, got .*$"):
        BatchAttention(device=device)
