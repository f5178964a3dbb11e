# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lens=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=6),
    decode_lens=st.lists(st.integers(0, 90), max_size=6),
    shape=st.fixed_dictionaries(
        {
            "page_size": st.sampled_from([1, 3, 16]),
            "num_qo_heads": st.sampled_from([2, 6]),
            "num_kv_heads": st.sampled_from([1, 2]),
            "head_dim_qk": st.integers(1, 20),
            "head_dim_vo": st.integers(1, 20),
            "kv_layout": st.sampled_from(["NHD", "HND"]),
            "seed": st.integers(0, 2**31),
        }
    ),
    variant=st.fixed_dictionaries(
        {
            "causal": st.booleans(),
            "sm_scale": st.none() | st.floats(0.05, 2),
            "logits_soft_cap": st.none() | st.floats(1, 50),
            "window_left": st.integers(-1, 60),
        }
    ),
)
def test_any_batch_of_any_variant_matches_float64_loops(
    paged_batch: Callable[..., Any],
    lens: list[tuple[int, int]],
    decode_lens: list[int],
    shape: dict[str, Any],
    variant: dict[str, Any],
) -> None:
    batch = paged_batch(lens + [(kv_len, 1) for kv_len in decode_lens], **shape)
    batch.assert_close(batch.run(**variant), batch.expected(**variant))
