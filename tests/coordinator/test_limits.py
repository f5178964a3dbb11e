# SPDX-License-Identifier: Apache-2.0
"""Sizes of an engine against the model: refused where they cannot be, enough where they are used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distributed_fi.config import EngineConfig, ModelConfig, SamplingParams
from distributed_fi.coordinator.limits import Limits, limits_of, page_bytes, plan_bytes, resolve_dtype
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.mesh import Mesh
from distributed_fi.plan.batch import plan_batch
from distributed_fi.plan.layout import encode
from distributed_fi.scheduler.request import Request
from distributed_fi.scheduler.scheduler import Scheduler

MODEL = ModelConfig(
    architecture="llama",
    hidden_size=72,
    num_layers=5,
    num_qo_heads=9,
    num_kv_heads=3,
    head_dim=8,
    intermediate_size=96,
    vocab_size=100,
    max_position=500,
    dtype="bfloat16",
)
CONFIG = EngineConfig(model="a model", max_num_seqs=4, page_size=16)


def test_limits_are_the_models_where_the_user_says_nothing() -> None:
    # 500 tokens fill 31.25 pages.
    assert limits_of(CONFIG, MODEL) == Limits(max_model_len=500, least_pages=32, wanted_pages=4 * 32)


def test_limits_of_the_user_hold() -> None:
    config = replace(CONFIG, max_model_len=64, num_pages=4)
    assert limits_of(config, MODEL) == Limits(max_model_len=64, least_pages=4, wanted_pages=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 501}, r"^max_model_len: expected at most the model's 500, got 501$"),
        ({"num_pages": 31}, r"^num_pages: expected at least 32, for one request of 500, got 31$"),
        ({"mesh": Mesh(tp=10)}, r"^tp: .*got 10$"),
    ],
)
def test_what_the_model_cannot_do_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        limits_of(replace(CONFIG, **changes), MODEL)  # type: ignore[arg-type]


def test_page_holds_keys_and_values_of_the_ranks_own_heads() -> None:
    """Three KV heads on two ranks: one of them holds two."""
    config = replace(CONFIG, mesh=Mesh(dp=2, tp=2))
    per_head = 2 * 5 * 16 * 8  # keys and values, layers, tokens, head_dim
    sizes = [page_bytes(config, MODEL, rank, "bfloat16") for rank in range(4)]
    assert sorted(sizes[:2]) == [2 * per_head, 2 * 2 * per_head]
    assert sizes[2:] == sizes[:2]
    assert page_bytes(config, MODEL, 0, "float32") == 2 * sizes[0]


@pytest.mark.parametrize("dp", [1, 2])
def test_plan_bytes_hold_every_plan_of_a_run_that_fills_all_limits(dp: int) -> None:
    config = replace(CONFIG, mesh=Mesh(dp=dp), page_size=1, max_batch_tokens=24)
    num_pages = 40
    scheduler = Scheduler(
        mesh_dp=dp, num_pages=num_pages, page_size=1, max_num_seqs=4, max_batch_tokens=24, max_model_len=40
    )
    for i in range(4 * dp):
        scheduler.add(Request(f"request {i}", [1] * 6, SamplingParams(max_tokens=5), seed=0))
    largest, most_tokens = 0, 0
    while scheduler.has_work:
        step = scheduler.schedule()
        assert step is not None
        plan = plan_batch(step.items, page_size=1, dp=dp)
        largest = max(largest, encode(plan, epoch=1, step=step.index).nbytes)
        most_tokens = max(most_tokens, plan.num_tokens)
        scheduler.complete(step, [1] * len(step.sampled))
    assert most_tokens == dp * 24
    # Every section at its limit but the page table, which holds at least the 24 pages of the prompts.
    capacity = plan_bytes(config, num_pages)
    assert largest <= capacity <= largest + 4 * dp * (num_pages - 24) + 16
    assert plan_bytes(config, num_pages + 400) >= capacity + 4 * dp * 400


@pytest.mark.parametrize(
    ("asked", "device_type", "dtype"),
    [
        ("auto", "cuda", "bfloat16"),
        ("auto", "cpu", "float32"),
        ("float16", "cuda", "float16"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_auto_dtype_is_the_checkpoints_on_a_gpu(asked: str, device_type: str, dtype: str) -> None:
    assert resolve_dtype(replace(CONFIG, dtype=asked), MODEL, device_type) == dtype
