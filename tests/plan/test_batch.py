# SPDX-License-Identifier: Apache-2.0
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_fi.errors import InvalidArgumentError, PlanError
from distributed_fi.plan.batch import graph_bucket, plan_batch
from distributed_fi.plan.item import SampleSpec, StepItem
from distributed_fi.plan.layout import (
    SECTIONS,
    StepPlan,
    capacity_words,
    decode,
    encode,
    slice_replica,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)
GREEDY = SampleSpec(temperature=0.0)

specs = st.builds(
    SampleSpec,
    temperature=st.floats(0, 5, width=32),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(2**-20, 1, width=32),
    min_p=st.floats(0, 1, width=32),
    seed=st.integers(0, 2**63 - 1),
)


@st.composite
def batches(draw) -> tuple[list[StepItem], int, int]:
    """(items in any order of replicas, page_size, dp)."""
    dp, page_size = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    places = draw(st.lists(st.tuples(st.integers(0, dp - 1), st.integers(0, 12)), unique=True, max_size=10))
    items = []
    for dp_rank, slot in places:
        tokens = draw(st.lists(st.integers(0, 1000), max_size=6)) or [-(slot + 1)]
        start = draw(st.integers(0, 40))
        num_pages = math.ceil((start + len(tokens)) / page_size)
        pages = draw(st.lists(st.integers(0, 99), min_size=num_pages, max_size=num_pages))
        as_array = draw(st.booleans())
        sampling = draw(st.none() | specs)
        kept = (np.array(tokens, np.int32), np.array(pages, np.int32)) if as_array else (tuple(tokens), tuple(pages))
        items.append(StepItem(dp_rank, slot, kept[0], start, kept[1], sampling))
    return items, page_size, dp


def decode_item(slot: int, *, kv_len: int, dp_rank: int = 0, page_size: int = 4) -> StepItem:
    """One decoding request that has kv_len tokens after the step."""
    return StepItem(dp_rank, slot, (-(slot + 1),), kv_len - 1, tuple(range(math.ceil(kv_len / page_size))), GREEDY)


def requests_of(plan: StepPlan) -> list[dict[str, object]]:
    """Each request of a replica's plan as plain lists, read the way a rank reads it."""
    requests = []
    for i in range(plan.num_requests):
        rows = range(plan.qo_indptr[i], plan.qo_indptr[i + 1])
        samples = [s for s in range(plan.num_samples) if plan.sample_requests[s] == i]
        requests.append(
            {
                "slot": int(plan.request_slots[i]),
                "tokens": [int(plan.token_ids[row]) for row in rows],
                "positions": [int(plan.positions[row]) for row in rows],
                "pages": plan.kv_page_indices[plan.kv_page_indptr[i] : plan.kv_page_indptr[i + 1]].tolist(),
                "kv_len": int(plan.kv_lens[i]),
                "last_page_len": int(plan.kv_last_page_len[i]),
                "samples": [(int(plan.sample_rows[s]), int(plan.sample_positions[s])) for s in samples],
                "specs": [
                    SampleSpec(
                        temperature=float(plan.temperature[s]),
                        top_k=int(plan.top_k[s]),
                        top_p=float(plan.top_p[s]),
                        min_p=float(plan.min_p[s]),
                        seed=int(np.uint32(plan.seeds[s, 0].view(np.uint32))) + (int(plan.seeds[s, 1]) << 32),
                    )
                    for s in samples
                ],
            }
        )
        assert [int(plan.batch_indices[row]) for row in rows] == [i] * len(rows)
    return requests


def expected_requests(items: list[StepItem], dp_rank: int, page_size: int) -> list[dict[str, object]]:
    requests, row = [], 0
    for item in items:
        if item.dp_rank != dp_rank:
            continue
        kv_len = item.start + len(item.token_ids)
        row += len(item.token_ids)
        last_page_len = kv_len - page_size * (len(item.pages) - 1)
        assert 1 <= last_page_len <= page_size
        requests.append(
            {
                "slot": item.slot,
                "tokens": list(item.token_ids),
                "positions": list(range(item.start, kv_len)),
                "pages": list(item.pages),
                "kv_len": kv_len,
                "last_page_len": last_page_len,
                "samples": [(row - 1, kv_len)] if item.sampling else [],
                "specs": [item.sampling] if item.sampling else [],
            }
        )
    return requests


@PROPERTY
@given(batches())
def test_each_replica_reads_back_its_requests(batch):
    items, page_size, dp = batch
    plan = decode(encode(plan_batch(items, page_size=page_size, dp=dp), epoch=1, step=2), epoch=1)
    for dp_rank in range(dp):
        replica = slice_replica(plan, dp_rank)
        assert replica.dp == 1
        assert requests_of(replica) == expected_requests(items, dp_rank, page_size)


@PROPERTY
@given(batches())
def test_slices_partition_the_plan(batch):
    items, page_size, dp = batch
    plan = plan_batch(items, page_size=page_size, dp=dp)
    parts = [slice_replica(plan, dp_rank) for dp_rank in range(dp)]
    for name in ("token_ids", "positions", "kv_lens", "kv_page_indices", "request_slots", "seeds", "top_p", "top_k"):
        whole = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(whole, getattr(plan, name), err_msg=name)


@PROPERTY
@given(batches())
def test_every_index_of_the_whole_plan_is_in_bounds(batch):
    items, page_size, dp = batch
    plan = plan_batch(items, page_size=page_size, dp=dp)
    ends = {
        "qo_indptr": plan.num_tokens,
        "kv_page_indptr": len(plan.kv_page_indices),
        "dp_request_indptr": plan.num_requests,
        "dp_token_indptr": plan.num_tokens,
        "dp_sample_indptr": plan.num_samples,
    }
    for name, end in ends.items():
        indptr = getattr(plan, name)
        assert indptr[0] == 0 and indptr[-1] == end and (np.diff(indptr) >= 0).all(), name
    assert ((plan.sample_rows >= 0) & (plan.sample_rows < plan.num_tokens)).all()
    assert ((plan.sample_requests >= 0) & (plan.sample_requests < plan.num_requests)).all()
    np.testing.assert_array_equal(plan.qo_indptr[plan.sample_requests + 1] - 1, plan.sample_rows)
    assert ((plan.kv_last_page_len >= 1) & (plan.kv_last_page_len <= page_size)).all()
    np.testing.assert_array_equal(np.diff(plan.kv_page_indptr), np.ceil(plan.kv_lens / page_size))


@PROPERTY
@given(batches(), st.data())
def test_same_items_same_words_and_a_changed_word_is_found(batch, data):
    items, page_size, dp = batch
    first, second = (encode(plan_batch(items, page_size=page_size, dp=dp), epoch=5, step=6) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    index = data.draw(st.integers(0, len(first) - 1))
    first[index] ^= data.draw(st.integers(1, 2**31 - 1))
    with pytest.raises(PlanError):
        decode(first, epoch=5)


@PROPERTY
@given(batches())
def test_capacity_of_the_counts_is_the_length(batch):
    items, page_size, dp = batch
    plan = plan_batch(items, page_size=page_size, dp=dp)
    limits = {"max_tokens": plan.num_tokens, "max_requests": plan.num_requests, "max_samples": plan.num_samples}
    words = capacity_words(max_pages=len(plan.kv_page_indices), dp=dp, **limits)
    assert words == len(encode(plan, epoch=0, step=0))


def test_no_items_is_an_empty_step():
    plan = decode(encode(plan_batch([], page_size=16, dp=2), epoch=0, step=0))
    sizes = {section.name: len(getattr(plan, section.name)) for section in SECTIONS}
    assert {name for name, size in sizes.items() if size} == {name for name in sizes if name.endswith("indptr")}
    assert plan.graph_bucket == 0


@pytest.mark.parametrize(
    ("num_tokens", "bucket"), [(0, 0), (1, 1), (2, 2), (3, 4), (9, 16), (512, 512), (513, 0), (10**6, 0)]
)
def test_graph_bucket_is_the_next_power_of_two(num_tokens: int, bucket: int):
    assert graph_bucket(num_tokens) == bucket


def test_a_decode_step_gets_the_bucket_of_its_largest_replica():
    items = [decode_item(slot, kv_len=5, dp_rank=int(slot > 0)) for slot in range(6)]
    assert plan_batch(items, page_size=4, dp=2).graph_bucket == 8
    assert plan_batch(items, page_size=4, dp=2, max_graph_bucket=4).graph_bucket == 0


def test_a_step_with_a_longer_chunk_runs_eagerly():
    items = [decode_item(0, kv_len=5), StepItem(0, 1, (1, 2), 0, (9,), GREEDY)]
    assert plan_batch(items, page_size=4, dp=1).graph_bucket == 0


def test_doubles_beyond_float32_keep_their_meaning():
    spec = SampleSpec(temperature=1e300, top_p=1e-300)
    plan = plan_batch([StepItem(0, 0, (1,), 0, (0,), spec)], page_size=4, dp=1)
    assert np.isfinite(plan.temperature).all()
    assert (plan.top_p > 0).all()


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (StepItem(2, 0, (1,), 0, (0,), GREEDY), "0 <= dp_rank < 2"),
        (StepItem(-1, 0, (1,), 0, (0,), GREEDY), "0 <= dp_rank < 2"),
        (StepItem(0, -1, (1,), 0, (0,), GREEDY), "slot >= 0"),
        (StepItem(0, 1, (1,), 0, (0,), GREEDY), "a slot that no other item of the replica has"),
        (StepItem(0, 0, (), 4, (0,), GREEDY), "start >= 0 and at least one token"),
        (StepItem(0, 0, (1,), -1, (), GREEDY), "start >= 0 and at least one token"),
        (StepItem(0, 0, (1,), 4, (0,), GREEDY), "as many pages as"),
        (StepItem(0, 0, (1,), 3, (0, 1), GREEDY), "as many pages as"),
        (StepItem(0, 0, (2**31,), 0, (0,), GREEDY), "token_ids of integers in [-2^31, 2^31)"),
        (StepItem(0, 0, (1, 2**31), 0, (0,), GREEDY), "token_ids of integers"),
        (StepItem(0, 0, np.array([1, 2**31]), 0, (0,), GREEDY), "token_ids of integers"),
        (StepItem(0, 0, (1.7,), 0, (0,), GREEDY), "token_ids of integers"),
        (StepItem(0, 0, np.array([1.0, 2.0]), 0, (0,), GREEDY), "token_ids of integers"),
        (StepItem(0, 0, (1,), 0, (2**31,), GREEDY), "pages of integers"),
        (StepItem(0, 0, (1,), 0, (0.5,), GREEDY), "pages of integers"),
        (StepItem(0, 0, (1,), 2**31, (0,), GREEDY), "start of integers"),
        (StepItem(0, 0, (1,), 0.0, (0,), GREEDY), "start of integers"),
        (StepItem(0, 2**31, (1,), 0, (0,), GREEDY), "slot of integers"),
        (StepItem(0, 0, (1,), 0, (0,), SampleSpec(seed=2**63)), "seed of integers in [-2^63, 2^63)"),
        (StepItem(0, 0, (1,), 0, (0,), SampleSpec(seed=-1)), "seed an integer in [0, 2^63)"),
        (StepItem(0, 0, (1,), 0, (0,), SampleSpec(top_k=2.5)), "top_k of integers"),
    ],
)
def test_a_wrong_item_is_shown_with_what_would_be_right(item: StepItem, expected: str):
    with pytest.raises(InvalidArgumentError, match=f"items: expected each with {re.escape(expected)}.*, got StepItem"):
        plan_batch([decode_item(1, kv_len=5), item], page_size=4, dp=2)


def test_same_slot_in_two_replicas_is_two_places():
    items = [decode_item(1, kv_len=5, dp_rank=dp_rank) for dp_rank in (0, 1)]
    assert plan_batch(items, page_size=4, dp=2).request_slots.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["page_size", "dp"])
def test_a_size_below_one_is_named(name: str):
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected an integer >= 1, got 0"):
        plan_batch([], **({"page_size": 16, "dp": 1} | {name: 0}))
