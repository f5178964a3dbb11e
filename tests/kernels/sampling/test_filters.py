# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling import reference
from distributed_fi.sampling import (
    min_p_renorm_probs,
    softmax,
    top_k_mask_logits,
    top_k_renorm_probs,
    top_p_renorm_probs,
)

VOCAB_SIZES = [1, 2, 111, 333]  # 333 is past the head that is looked at before sorting for top-p
INF = float("inf")


def draw_logits(batch: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def tied_probs(batch: int, vocab_size: int) -> torch.Tensor:
    """Rows of a handful of distinct values, so that every cut runs through equals."""
    levels = torch.randint(1, 4, (batch, vocab_size), generator=torch.Generator().manual_seed(0))
    return levels / levels.sum(-1, keepdim=True)


def kept(row: torch.Tensor, nothing: float) -> set[int]:
    return {token for token, value in enumerate(row.tolist()) if value != nothing}


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_top_k_keeps_exactly_k_per_row(vocab_size: int) -> None:
    top_k = torch.tensor([0, 1, 2, vocab_size // 2, vocab_size, vocab_size + 5], dtype=torch.int32)
    for logits in (draw_logits(6, vocab_size), tied_probs(6, vocab_size)):
        masked, renormed = top_k_mask_logits(logits, top_k), top_k_renorm_probs(logits.softmax(-1), top_k)
        for row, k in enumerate(top_k.tolist()):
            expected = reference.top_k(logits[row].tolist(), k)
            assert kept(masked[row], -INF) == kept(renormed[row], 0.0) == expected
            assert all(masked[row, token] == logits[row, token] for token in expected)
            probs = torch.tensor(reference.only(reference.softmax(logits[row].tolist()), expected))
            torch.testing.assert_close(renormed[row], probs)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])  # flat rows need a long nucleus, steep ones a short
def test_top_p_keeps_the_smallest_head_that_reaches_p(vocab_size: int, spread: float) -> None:
    top_p = torch.tensor([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
    for probs in ((draw_logits(6, vocab_size) * spread).softmax(-1), tied_probs(6, vocab_size)):
        renormed = top_p_renorm_probs(probs, top_p)
        for row, p in enumerate(top_p.double().tolist()):
            expected = reference.top_p(probs[row].tolist(), p)
            assert kept(renormed[row], 0.0) == expected & kept(probs[row], 0.0)
            torch.testing.assert_close(renormed[row], torch.tensor(reference.only(probs[row].tolist(), expected)))


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_min_p_drops_what_is_far_below_the_largest(vocab_size: int) -> None:
    min_p = torch.tensor([0.0, 0.01, 0.5, 1.0])
    for probs in (draw_logits(4, vocab_size).softmax(-1), tied_probs(4, vocab_size)):
        renormed = min_p_renorm_probs(probs, min_p)
        for row, p in enumerate(min_p.double().tolist()):
            expected = reference.min_p(probs[row].tolist(), p)
            assert kept(renormed[row], 0.0) == expected & kept(probs[row], 0.0)
            torch.testing.assert_close(renormed[row], torch.tensor(reference.only(probs[row].tolist(), expected)))


def test_among_equals_the_smallest_ids_stay() -> None:
    probs = torch.full((1, 200), 1 / 200)
    assert kept(top_k_renorm_probs(probs, 3)[0], 0.0) == {0, 1, 2}
    assert kept(top_p_renorm_probs(probs, 0.02)[0], 0.0) == {0, 1, 2, 3}
    assert kept(top_p_renorm_probs(probs, 0.9)[0], 0.0) == set(range(180))
    assert kept(top_k_mask_logits(torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]]), 3)[0], -INF) == {0, 1, 3}


def test_a_prefix_that_reaches_p_but_for_rounding_has_reached_it() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2]])  # float32(0.7) + float32(0.2) < 0.9
    assert [kept(row, 0.0) for row in top_p_renorm_probs(probs, torch.tensor([0.8, 0.9]))] == [{0, 1}, {0, 2}]


def test_rows_do_not_disturb_each_other() -> None:
    probs = draw_logits(3, 333).softmax(-1)
    spoiled = probs.clone()
    spoiled[1, 7] = float("nan")
    for renorm, value in ((top_k_renorm_probs, 5), (top_p_renorm_probs, 0.5), (min_p_renorm_probs, 0.1)):
        out = renorm(spoiled, value)
        assert out[1].isnan().any()
        torch.testing.assert_close(out[[0, 2]], renorm(probs, value)[[0, 2]], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_logits_keep_their_dtype(dtype: torch.dtype) -> None:
    logits = draw_logits(3, 111).to(dtype)  # rounding makes equals
    masked = top_k_mask_logits(logits, 10)
    assert masked.dtype == dtype
    assert [kept(row, -INF) for row in masked] == [reference.top_k(row.tolist(), 10) for row in logits.float()]


def test_results_are_new_tensors() -> None:
    logits = draw_logits(2, 8)
    before = logits.clone()
    top_k_mask_logits(logits, 0).zero_()
    top_k_mask_logits(logits, torch.tensor([3, 0])).zero_()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [None, 0.7, torch.tensor([0.0, 1e-40, 1.0, 1e30])])
def test_softmax(temperature: Any) -> None:
    logits = draw_logits(4, 111)
    rows = [1.0] * 4 if temperature is None else torch.as_tensor(temperature).expand(4).double().tolist()
    expected = [reference.softmax(row.tolist(), t) for row, t in zip(logits, rows, strict=True)]
    torch.testing.assert_close(softmax(logits, temperature), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_no_rows() -> None:
    none = torch.empty(0, 7)
    for out in (top_k_mask_logits(none, 3), top_k_renorm_probs(none, 3), top_p_renorm_probs(none, 0.5),
                min_p_renorm_probs(none, 0.5), softmax(none, 0.5)):  # fmt: skip
        assert out.shape == (0, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: top_k_mask_logits(p, -1), r"top_k: expected an integer in \[0, 2\^31\) \(0 keeps all\), got -1"),
        (lambda p: top_k_mask_logits(p, 2.5), r"top_k: expected an integer in .*, got 2.5"),
        (lambda p: top_k_mask_logits(p, True), r"top_k: expected an integer in .*, got True"),
        (lambda p: top_k_renorm_probs(p, torch.tensor([3, -2])), r"top_k: expected an integer .*, got -2 in row 1"),
        (lambda p: top_k_renorm_probs(p, torch.ones(2)), "top_k: expected dtype int32 or int64, got float32"),
        (lambda p: top_p_renorm_probs(p, 0.0), r"top_p: expected a number in \(0, 1\], got 0.0"),
        (lambda p: top_p_renorm_probs(p, torch.tensor([1.5, 1.0])), r"top_p: .*, got 1.5 in row 0"),
        (lambda p: top_p_renorm_probs(p, torch.tensor([float("nan")] * 2)), r"top_p: .*, got nan in row 0"),
        (lambda p: top_p_renorm_probs(p, torch.ones(3)), r"top_p: expected \[batch=2\], got \[3\]"),
        (lambda p: min_p_renorm_probs(p, -0.1), r"min_p: expected a number in \[0, 1\], got -0.1"),
        (lambda p: softmax(p, INF), "temperature: expected a finite number >= 0, got inf"),
        (lambda p: softmax(p[0]), r"logits: expected \[batch, vocab_size\], got \[4\]"),
        (lambda p: softmax(p[:, :0]), r"logits: expected \[batch, vocab_size >= 1\], got \[2, 0\]"),
        (lambda p: softmax(p.double()), "logits: expected dtype float32 or bfloat16 or float16, got float64"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        call(torch.full((2, 4), 0.25))
