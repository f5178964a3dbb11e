# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from distributed_fi.comm.fingerprint import (
    AGREED_BYTES,
    DTYPES,
    HEADER_BYTES,
    OPS,
    Call,
    describe_header,
    group_digest,
    payload_bytes,
    renumbered,
    sizes_digest,
)

TP, DP = group_digest("tp"), group_digest("dp")
CALL = Call("all_reduce", 7, torch.float32, (1, 576))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operation_and_dtype_is_told_again(op: str, dtype: torch.dtype) -> None:
    call = Call(op, 2**40, dtype, (0, 3, -1, 2**40))
    text = describe_header(call.header(TP, 5), TP)
    assert text == f"{call} as collective {2**40}"
    assert op in text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (CALL, "all_reduce of float32 [1, 576]"),
        (Call("broadcast", 1, torch.bfloat16, (), 3), "broadcast of bfloat16 [] from rank 3"),
        (Call("all_to_all", 1, torch.int64, (-1, 4)), "all_to_all of int64 [*, 4]"),
        (Call("barrier", 1, torch.uint8, ()), "barrier"),
        (Call("all_gather", 1, torch.uint8, (2,), 0xAB), "all_gather of uint8 [2] (sizes 000000ab)"),
    ],
)
def test_calls_in_words(call: Call, text: str) -> None:
    assert str(call) == text


@pytest.mark.parametrize(
    "other",
    [
        CALL._replace(op="barrier"),
        CALL._replace(seq=8),
        CALL._replace(dtype=torch.float16),
        CALL._replace(shape=(576, 1)),
        CALL._replace(shape=(1, 576, 0)),
        CALL._replace(detail=1),
    ],
)
def test_each_difference_shows_in_the_agreed_bytes(other: Call) -> None:
    assert other.header(TP, 4)[:AGREED_BYTES] != CALL.header(TP, 4)[:AGREED_BYTES]


def test_the_payload_size_stands_behind_the_agreed_bytes() -> None:
    small, large = CALL.header(TP, 0), CALL.header(TP, 2**40)
    assert len(small) == HEADER_BYTES
    assert small[:AGREED_BYTES] == large[:AGREED_BYTES]
    assert (payload_bytes(small), payload_bytes(large)) == (0, 2**40)


def test_a_call_of_another_group_is_told() -> None:
    assert describe_header(CALL.header(DP, 0), TP).endswith("as collective 7 in another group")


def test_renumbered_changes_the_number_only() -> None:
    header = bytearray(CALL.header(TP, 9))
    assert renumbered(header, 2**33) == CALL._replace(seq=2**33).header(TP, 9)


def test_sizes_digest_depends_on_sizes_order_and_dimension() -> None:
    digests = {sizes_digest([1, 2]), sizes_digest([2, 1]), sizes_digest([1, 2], dim=1), sizes_digest([])}
    assert len(digests) == 4
    assert 0 not in digests
