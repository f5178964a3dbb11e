# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling import reference
from distributed_fi.kernels.sampling.sample import draw
from distributed_fi.sampling import (
    min_p_sampling_from_probs,
    philox_uniform,
    sampling_from_logits,
    sampling_from_probs,
    top_k_sampling_from_probs,
    top_k_top_p_sampling_from_logits,
    top_k_top_p_sampling_from_probs,
    top_p_sampling_from_probs,
)

VOCAB_SIZE, DRAWS = 111, 100_000
NAN, INF = float("nan"), float("inf")


def draw_logits(batch: int, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(sample: Any, row: torch.Tensor) -> torch.Tensor:
    """Counts of the tokens in DRAWS draws of one row, in batches, at positions 0, 1, 2, ..."""
    counts = torch.zeros(VOCAB_SIZE, dtype=torch.int64)
    for start in range(0, DRAWS, 10_000):
        tokens = sample(row.expand(10_000, -1), seed=7, position=torch.arange(start, start + 10_000))
        counts += torch.bincount(tokens, minlength=VOCAB_SIZE)
    return counts


LOGITS = draw_logits(1)[0]
PROBS = reference.softmax(LOGITS.tolist())
HEAD = sorted(reference.top_k(PROBS, 20))
CASES = {
    "all": (sampling_from_probs, range(VOCAB_SIZE)),
    "top_k": (lambda p, **s: top_k_sampling_from_probs(p, 20, **s), HEAD),
    "top_p": (lambda p, **s: top_p_sampling_from_probs(p, 0.8, **s), reference.top_p(PROBS, 0.8)),
    "min_p": (lambda p, **s: min_p_sampling_from_probs(p, 0.1, **s), reference.min_p(PROBS, 0.1)),
    "top_k_first": (
        lambda p, **s: top_k_top_p_sampling_from_probs(p, 20, 0.8, **s),
        reference.top_p(reference.only(PROBS, HEAD), 0.8),
    ),
    "joint": (
        lambda p, **s: top_k_top_p_sampling_from_probs(p, 20, 0.8, filter_apply_order="joint", **s),
        reference.top_k(PROBS, 20) & reference.top_p(PROBS, 0.8),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_come_as_often_as_their_probability(case: str) -> None:
    sample, tokens = CASES[case]
    counts = frequencies(sample, torch.tensor(PROBS))
    expected = torch.tensor(reference.only(PROBS, tokens), dtype=torch.float64) * DRAWS
    assert set(counts.nonzero().flatten().tolist()) <= set(tokens)  # what is filtered is never drawn
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum().item()
    freedom = int(common.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5
    assert (counts / DRAWS - expected / DRAWS).abs().sum() / 2 < 0.02


def test_logits_are_drawn_as_their_softmax() -> None:
    counts = frequencies(sampling_from_logits, LOGITS)
    assert (counts / DRAWS - torch.tensor(PROBS)).abs().sum() / 2 < 0.02


def test_the_token_is_where_the_running_sum_passes_u() -> None:
    probs = draw_logits(50).softmax(-1)
    seed, position = torch.arange(50) * 1_000_003, torch.arange(50) + 17
    u = philox_uniform(seed, position).tolist()
    tokens = sampling_from_probs(probs, seed=seed, position=position)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == [reference.draw(probs[row].tolist(), u[row]) for row in range(50)]


def test_a_token_depends_on_its_own_row_seed_and_position_only() -> None:
    logits = draw_logits(64, 333)
    seed, position = torch.arange(64) % 5 + 2**62, torch.arange(64) % 11
    together = sampling_from_logits(logits, seed=seed, position=position)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = sampling_from_logits(logits[order], seed=seed[order], position=position[order])
    alone = [
        sampling_from_logits(logits[i : i + 1], seed=seed[i].item(), position=position[i].item()) for i in range(64)
    ]
    assert torch.equal(shuffled, together[order])
    assert torch.equal(torch.cat(alone), together)


def test_no_uniform_number_draws_a_masked_token() -> None:
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(4, -1)
    ends = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53, 0.3], dtype=torch.float64)
    assert draw(probs, ends).tolist()[:3] == [1, 1, 3]
    # A long tail of zeros behind values whose float32 sums would round.
    probs = torch.cat([torch.full((1000,), 1 / 3), torch.zeros(1000)])[None]
    assert draw(probs, ends[2:3]).tolist() == [999]
    assert draw(probs, ends[:1]).tolist() == [0]


def test_scale_of_the_probabilities_does_not_matter() -> None:
    probs = draw_logits(20).softmax(-1)
    source = {"seed": 3, "position": torch.arange(20)}
    tokens = sampling_from_probs(probs, **source)
    for scale in (2.0**-60, 2.0**60):
        assert torch.equal(sampling_from_probs(probs * scale, **source), tokens)


def test_rows_without_a_distribution_give_minus_one() -> None:
    logits = draw_logits(5)
    bad = logits.clone()
    bad[1, 3], bad[2], bad[3, 0] = NAN, -INF, INF
    source = {"seed": torch.arange(5), "position": 9}
    good = sampling_from_logits(logits, **source).tolist()
    expected = [good[0], -1, -1, -1, good[4]]
    assert sampling_from_logits(bad, **source).tolist() == expected
    assert sampling_from_probs(bad.softmax(-1), **source).tolist() == expected
    assert top_k_top_p_sampling_from_probs(bad.softmax(-1), VOCAB_SIZE, 1.0, **source).tolist() == expected
    filtered = top_k_top_p_sampling_from_logits(bad, 5, 0.9, **source).tolist()
    assert [token == -1 for token in filtered] == [False, True, True, True, False]
    assert sampling_from_probs(torch.zeros(1, 4), seed=0, position=0).tolist() == [-1]


def test_masked_logits_are_never_drawn() -> None:
    logits = torch.full((1000, 8), -INF)
    logits[:, 5], logits[:, 2] = -1e4, -1e4
    assert set(sampling_from_logits(logits, seed=1, position=torch.arange(1000)).tolist()) == {2, 5}


def test_generator_instead_of_seeds() -> None:
    probs = draw_logits(100).softmax(-1)
    first = sampling_from_probs(probs, generator=torch.Generator().manual_seed(3))
    again = sampling_from_probs(probs, generator=torch.Generator().manual_seed(3))
    other = sampling_from_probs(probs, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    assert torch.equal(sampling_from_probs(probs), first)


def test_no_rows() -> None:
    none = torch.empty(0, 5)
    for tokens in (sampling_from_logits(none), top_k_top_p_sampling_from_logits(none, 3, 0.5, seed=1, position=1)):
        assert tokens.shape == (0,)
        assert tokens.dtype == torch.int32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "position: expected the position of the token, since a seed is given, got None"),
        ({"position": 1}, "seed: expected a seed, since a position is given, got None"),
        ({"seed": 1, "position": 1, "generator": torch.Generator()}, "generator: expected None, since a seed is given"),
        ({"seed": -1, "position": 1}, r"seed: expected an integer in \[0, 2\^63\), got -1"),
        ({"seed": 2**63, "position": 1}, r"seed: expected an integer in \[0, 2\^63\), got 9223372036854775808"),
        ({"seed": torch.tensor([1, -5]), "position": 1}, r"seed: expected .*, got -5 in row 1"),
        ({"seed": 1, "position": torch.tensor([0])}, r"position: expected \[batch=2\], got \[1\]"),
    ],
)
def test_wrong_sources_of_randomness(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        sampling_from_probs(torch.ones(2, 4), **arguments)


def test_wrong_filter_order() -> None:
    with pytest.raises(InvalidArgumentError, match="filter_apply_order: expected one of top_k_first, joint, got both"):
        top_k_top_p_sampling_from_logits(torch.ones(2, 4), 1, 1.0, filter_apply_order="both")  # type: ignore[arg-type]
