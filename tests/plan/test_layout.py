# SPDX-License-Identifier: Apache-2.0
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distributed_fi.errors import InvalidArgumentError, PlanError
from distributed_fi.plan.layout import (
    HEADER_WORDS,
    MAGIC,
    SECTIONS,
    StepPlan,
    capacity_words,
    decode,
    encode,
    read_header,
    slice_replica,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
TABLE_END = HEADER_WORDS + 2 * len(SECTIONS)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def two_replicas() -> StepPlan:
    """Replica 0: a prompt of 3 tokens in page 7, not finished. Replica 1: a decode in pages 2, 0 and a prompt of 2."""
    return StepPlan(
        graph_bucket=0,
        token_ids=ints(11, 12, 13, -5, 21, 22),
        positions=ints(0, 1, 2, 4, 0, 1),
        batch_indices=ints(0, 0, 0, 0, 1, 1),
        qo_indptr=ints(0, 3, 4, 6),
        kv_lens=ints(3, 5, 2),
        kv_page_indptr=ints(0, 1, 3, 4),
        kv_page_indices=ints(7, 2, 0, 3),
        kv_last_page_len=ints(3, 1, 2),
        request_slots=ints(0, 4, 1),
        sample_rows=ints(3, 5),
        sample_requests=ints(1, 2),
        sample_positions=ints(5, 2),
        seeds=ints(1, 2, 3, 4).reshape(2, 2),
        temperature=floats(0.5, 0),
        top_p=floats(0.9, 1),
        min_p=floats(0.1, 0),
        top_k=ints(0, 40),
        dp_request_indptr=ints(0, 1, 3),
        dp_token_indptr=ints(0, 3, 6),
        dp_sample_indptr=ints(0, 0, 2),
    )


def assert_same(actual: StepPlan, expected: StepPlan) -> None:
    assert actual.graph_bucket == expected.graph_bucket
    for section in SECTIONS:
        found, wanted = getattr(actual, section.name), getattr(expected, section.name)
        assert found.dtype == wanted.dtype, section.name
        np.testing.assert_array_equal(found, wanted, err_msg=section.name)


def with_word(buffer: np.ndarray, index: int, value: int) -> np.ndarray:
    """The buffer with one word replaced and a digest that agrees, as a wrong writer would make it."""
    changed = buffer.copy()
    changed[index] = value
    words = np.concatenate([changed[:4], changed[6:]]).tobytes()
    changed[4:6] = np.frombuffer(hashlib.blake2b(words, digest_size=8).digest(), np.int32)
    return changed


def test_decode_gives_what_encode_took():
    assert_same(decode(encode(two_replicas(), epoch=3, step=9), epoch=3), two_replicas())


def test_header_words_are_where_the_layout_says():
    buffer = encode(two_replicas(), epoch=3, step=(7 << 32) | 5)
    first = [MAGIC, 2, 5, 7]
    others = [3, len(buffer), 6, 3, 2, 4, 2, 0, HEADER_WORDS, 2 * len(SECTIONS)]
    assert buffer[:4].tolist() + buffer[6:HEADER_WORDS].tolist() == first + others


def test_header_is_read_without_the_sections():
    header = read_header(encode(two_replicas(), epoch=3, step=2**64 - 1))
    assert (header.epoch, header.step) == (3, 2**64 - 1)


def test_digest_is_blake2b_of_every_other_word():
    buffer = encode(two_replicas(), epoch=0, step=0)
    raw = buffer.tobytes()
    expected = hashlib.blake2b(raw[:16] + raw[24:], digest_size=8).digest()
    assert int.from_bytes(expected, "little") == read_header(buffer).digest
    assert raw[16:24] == expected


def test_sections_begin_at_16_bytes():
    table = encode(two_replicas(), epoch=0, step=0)[HEADER_WORDS:TABLE_END].reshape(-1, 2)
    assert (table[:, 0] % 4 == 0).all()


def test_a_plan_is_read_from_a_longer_slot_whatever_lies_behind_it():
    slot = np.full(1000, -1, np.int32)
    buffer = encode(two_replicas(), epoch=3, step=9)
    slot[: len(buffer)] = buffer
    assert_same(decode(slot), two_replicas())


def test_decode_copies_nothing():
    buffer = encode(two_replicas(), epoch=0, step=0)
    plan = decode(buffer)
    assert all(np.shares_memory(getattr(plan, section.name), buffer) for section in SECTIONS)


def test_encode_names_an_array_that_disagrees():
    plan = two_replicas()
    object.__setattr__(plan, "positions", ints(0, 1))
    with pytest.raises(PlanError, match="section positions: expected 6 words of int32, got 2 of int32"):
        encode(plan, epoch=0, step=0)


@pytest.mark.parametrize(("name", "value"), [("epoch", -1), ("epoch", 2**31), ("step", -1), ("step", 2**64)])
def test_encode_names_an_epoch_or_step_out_of_range(name: str, value: int):
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected 0 <= {name} <"):
        encode(two_replicas(), **({"epoch": 0, "step": 0} | {name: value}))


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, 1, "plan magic: expected 0x50494644, got 0x1"),
        (1, 1, "plan version: expected 2, got 1"),
        (7, 1000, "plan truncated: its header says 1000 words, the buffer has"),
        (7, -4, "plan truncated"),
        (7, TABLE_END, "plan total_words: expected .* by its counts"),
        (8, -1, "plan counts: expected all >= 0"),
        (12, 0, "plan counts: expected all >= 0 and dp >= 1"),
        (9, 2**31 - 1, "plan total_words: expected"),
        (14, 0, "plan section table: expected 40 words at 16, got 40 at 0"),
        (HEADER_WORDS, 10**6, "section token_ids: expected 6 words at 56 of .* got 6 at 1000000"),
        (HEADER_WORDS + 3, -1, "section positions: expected 6 words at 64 of .* got -1 at 64"),
    ],
)
def test_decode_names_what_a_wrong_writer_got_wrong(index: int, value: int, message: str):
    with pytest.raises(PlanError, match=message):
        decode(with_word(encode(two_replicas(), epoch=0, step=0), index, value))


def test_decode_names_another_epoch():
    with pytest.raises(PlanError, match="plan epoch: expected 4, got 3"):
        decode(encode(two_replicas(), epoch=3, step=9), epoch=4)


def test_decode_names_another_digest():
    buffer = encode(two_replicas(), epoch=0, step=0)
    buffer[-1] ^= 1
    with pytest.raises(PlanError, match=r"plan digest: expected 0x.*, the words give 0x"):
        decode(buffer)


@pytest.mark.parametrize("num_words", [0, 1, HEADER_WORDS, TABLE_END - 1, TABLE_END, 100])
def test_decode_and_read_header_name_a_truncated_plan(num_words: int):
    buffer = encode(two_replicas(), epoch=0, step=0)[:num_words]
    for read in (decode, read_header):
        with pytest.raises(PlanError, match="plan truncated"):
            read(buffer)


@pytest.mark.parametrize("buffer", [np.zeros(200), np.zeros((2, 100), np.int32), np.zeros(400, np.int32)[::2]])
def test_decode_names_what_is_no_int32_vector(buffer: np.ndarray):
    with pytest.raises(PlanError, match="expected a contiguous int32 vector"):
        decode(buffer)


def test_any_changed_word_is_found():
    buffer = encode(two_replicas(), epoch=3, step=9)
    for index in range(len(buffer)):
        changed = buffer.copy()
        changed[index] ^= 1 << index % 31
        with pytest.raises(PlanError):
            decode(changed, epoch=3)


@PROPERTY
@given(hnp.arrays(np.int32, st.integers(0, 300)))
def test_garbage_is_refused(buffer: np.ndarray):
    with pytest.raises(PlanError):
        decode(buffer)


@PROPERTY
@given(st.lists(st.tuples(st.integers(6, TABLE_END - 1), st.integers(-(2**31), 2**31 - 1)), min_size=1), st.data())
def test_garbage_counts_and_tables_with_a_right_digest_are_refused_or_stay_inside(changes, data):
    buffer = encode(two_replicas(), epoch=0, step=0)
    for index, value in changes:
        buffer = with_word(buffer, index, value if data.draw(st.booleans()) else value % 16)
    try:
        plan = decode(buffer)
    except PlanError:
        return
    sizes = [getattr(plan, section.name).size for section in SECTIONS]
    assert sum(sizes) <= len(buffer) - TABLE_END
    assert all(np.may_share_memory(getattr(plan, s.name), buffer) for s in SECTIONS if getattr(plan, s.name).size)


@PROPERTY
@given(st.tuples(*[st.integers(0, 40)] * 4), st.tuples(*[st.integers(0, 40)] * 4), st.integers(1, 4))
def test_capacity_is_exact_and_grows_with_every_limit(limits, more, dp):
    def words(tokens: int, requests: int, pages: int, samples: int) -> int:
        return capacity_words(max_tokens=tokens, max_requests=requests, max_pages=pages, max_samples=samples, dp=dp)

    tokens, requests, pages, samples = limits
    shapes = {"qo_indptr": requests + 1, "kv_page_indptr": requests + 1, "seeds": (samples, 2)}
    shapes |= dict.fromkeys(("token_ids", "positions", "batch_indices"), tokens)
    shapes |= dict.fromkeys(("kv_lens", "kv_last_page_len", "request_slots"), requests)
    shapes |= dict.fromkeys(("dp_request_indptr", "dp_token_indptr", "dp_sample_indptr"), dp + 1)
    shapes["kv_page_indices"] = pages
    arrays = {s.name: np.zeros(shapes.get(s.name, samples), s.dtype) for s in SECTIONS}
    buffer = encode(StepPlan(graph_bucket=0, **arrays), epoch=0, step=0)
    assert words(*limits) == len(buffer) <= words(*(a + b for a, b in zip(limits, more, strict=True)))


def test_slice_of_the_first_replica_counts_as_the_whole():
    part = slice_replica(two_replicas(), 0)
    assert part.token_ids.tolist() == [11, 12, 13]
    assert part.kv_page_indices.tolist() == [7]
    assert (part.num_requests, part.num_samples, part.dp) == (1, 0, 1)


def test_slice_of_the_second_replica_counts_from_zero():
    part = slice_replica(two_replicas(), 1)
    assert part.token_ids.tolist() == [-5, 21, 22]
    assert part.qo_indptr.tolist() == [0, 1, 3]
    assert part.kv_page_indptr.tolist() == [0, 2, 3]
    assert part.kv_page_indices.tolist() == [2, 0, 3]
    assert part.sample_rows.tolist() == [0, 2]
    assert part.sample_requests.tolist() == [0, 1]
    assert part.seeds.tolist() == [[1, 2], [3, 4]]
    assert part.dp_sample_indptr.tolist() == [0, 2]


@pytest.mark.parametrize("dp_rank", [-1, 2])
def test_slice_names_a_replica_that_is_not_there(dp_rank: int):
    with pytest.raises(InvalidArgumentError, match=f"dp_rank: expected 0 <= dp_rank < 2, got {dp_rank}"):
        slice_replica(two_replicas(), dp_rank)


def test_floats_travel_as_their_bits():
    buffer = encode(two_replicas(), epoch=0, step=0)
    index = [section.name for section in SECTIONS].index("temperature")
    offset = int(buffer[HEADER_WORDS + 2 * index])
    assert struct.unpack("=2f", buffer[offset : offset + 2].tobytes()) == (0.5, 0.0)
