# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling import reference
from distributed_fi.kernels.sampling.philox import philox_uniform
from distributed_fi.sampling import chain_speculative_sampling, sampling_from_probs

VOCAB_SIZE = 23


def draw_probs(*shape: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    return torch.randn(*shape, vocab_size, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def draw_tokens(batch: int, num_drafts: int, lowest: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(lowest, VOCAB_SIZE, (batch, num_drafts), generator=generator)


@pytest.mark.parametrize("lowest", [0, -4])
@pytest.mark.parametrize("num_drafts", [0, 1, 3, 7])
def test_request_by_request(num_drafts: int, lowest: int) -> None:
    batch = 99
    draft, target = draw_probs(batch, num_drafts), draw_probs(batch, num_drafts + 1, seed=1)
    target[::3, :num_drafts] = (target[::3, :num_drafts] + 9 * draft[::3]) / 10  # chains that go far
    tokens = draw_tokens(batch, num_drafts, lowest).clamp_(min=-1)
    seed, position = torch.arange(batch) + 2**40, torch.arange(batch) * 7
    out, accepted, emitted = chain_speculative_sampling(draft, tokens, target, seed=seed, position=position)
    assert out.dtype == accepted.dtype == emitted.dtype == torch.int32

    def uniform(row: int, stream: int, start: int, count: int) -> list[float]:
        positions = position[row] + torch.arange(start, start + count)
        return philox_uniform(seed[row].expand(count), positions, stream=stream).tolist()

    for row in range(batch):
        accept_u = uniform(row, 1, 0, num_drafts)
        draw_u = uniform(row, 2, 0, num_drafts) + uniform(row, 0, num_drafts, 1)
        expected = reference.speculative(
            draft[row].tolist(), tokens[row].tolist(), target[row].tolist(), accept_u, draw_u
        )
        chain = out[row].tolist()
        padding = [-1] * (num_drafts + 1 - len(expected[0]))
        assert (chain, accepted[row].item(), emitted[row].item()) == (expected[0] + padding, *expected[1:])
    assert torch.equal(emitted + 1, (out >= 0).sum(-1))


def test_tokens_come_as_often_as_the_target_has_them() -> None:
    """Though the drafts were drawn with the very seeds and positions of the verification."""
    num_draws = 40_000
    draft, target = draw_probs(2, seed=3, vocab_size=8), draw_probs(3, seed=4, vocab_size=8)
    position = torch.arange(num_draws) * 3
    tokens = torch.stack(
        [sampling_from_probs(draft[i].expand(num_draws, -1), seed=7, position=position + i) for i in range(2)], -1
    )
    rows = (draft.expand(num_draws, -1, -1), tokens, target.expand(num_draws, -1, -1))
    out, _, emitted = chain_speculative_sampling(*rows, seed=7, position=position)
    for place in range(3):
        reached = emitted >= place
        counts = torch.bincount(out[reached, place], minlength=8).double()
        expected = target[place].double() / target[place].sum() * counts.sum()
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square < 7 + 4 * 14**0.5


def test_the_same_distribution_accepts_all_and_an_excluded_draft_none() -> None:
    draft = draw_probs(50, 4)
    tokens = draw_tokens(50, 4)
    target = torch.cat([draft, draw_probs(50, 1, seed=1)], 1)
    out, accepted, emitted = chain_speculative_sampling(draft, tokens, target, seed=1, position=0)
    assert torch.equal(out[:, :4], tokens.int())
    assert accepted.tolist() == emitted.tolist() == [4] * 50
    target[:, 1].scatter_(-1, tokens[:, 1:2], 0.0)
    out, accepted, emitted = chain_speculative_sampling(draft, tokens, target, seed=1, position=0)
    assert accepted.tolist() == [3] * 50  # the two behind it would pass
    assert emitted.tolist() == [1] * 50
    assert not (out[:, 1] == tokens[:, 1]).any()
    assert (out[:, 2:] == -1).all()


def test_without_drafts_it_is_sampling() -> None:
    target, seed, position = draw_probs(40, 1), torch.arange(40), torch.arange(40) * 5
    no_drafts = (torch.empty(40, 0, VOCAB_SIZE), torch.empty(40, 0, dtype=torch.int32))
    out, _, emitted = chain_speculative_sampling(*no_drafts, target, seed=seed, position=position)
    assert torch.equal(out[:, 0], sampling_from_probs(target[:, 0], seed=seed, position=position))
    assert not emitted.any()


def test_counts_are_added_up() -> None:
    draft, target, tokens = draw_probs(5, 2), draw_probs(5, 3, seed=1), draw_tokens(5, 2)
    _, accepted, emitted = chain_speculative_sampling(draft, tokens, target, seed=1, position=0)
    totals = torch.full((5,), 10, dtype=torch.int32), torch.full((5,), 20, dtype=torch.int32)
    found = chain_speculative_sampling(draft, tokens, target, *totals, seed=1, position=0)
    assert found[1] is totals[0]
    assert found[2] is totals[1]
    assert torch.equal(totals[0], accepted + 10)
    assert torch.equal(totals[1], emitted + 20)


def test_nan_and_nothing_left_in_one_row_disturb_no_other() -> None:
    draft, target, tokens = draw_probs(4, 2), draw_probs(4, 3, seed=1), draw_tokens(4, 2)
    good, *_ = chain_speculative_sampling(draft, tokens, target, seed=1, position=0)
    bad_target, bad_draft = target.clone(), draft.clone()
    bad_target[1] = torch.nan
    bad_draft[2], bad_target[2, 0] = 1.0, target[2, 0] * 1e-30  # fails, and nothing is left above the draft
    out, _, emitted = chain_speculative_sampling(bad_draft, tokens, bad_target, seed=1, position=0)
    assert torch.equal(out[[0, 3]], good[[0, 3]])
    assert out[1].tolist() == [-1, -1, -1]
    assert emitted[2].item() == 0
    assert out[2, 0].item() >= 0


def test_generator_instead_of_seeds() -> None:
    rows = (draw_probs(30, 3), draw_tokens(30, 3), draw_probs(30, 4, seed=1))
    first, again, other = (
        chain_speculative_sampling(*rows, generator=torch.Generator().manual_seed(s))[0] for s in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_requests() -> None:
    none = torch.empty(0, 2, dtype=torch.int32)
    out, accepted, emitted = chain_speculative_sampling(torch.empty(0, 2, 5), none, torch.empty(0, 3, 5))
    assert (out.shape, accepted.shape, emitted.shape) == ((0, 3), (0,), (0,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draft_token_ids": torch.tensor([[0, 23]])}, r"draft_token_ids: expected tokens in \[0, 23\), or -1, got 23"),
        ({"draft_token_ids": torch.tensor([[0, -2]])}, r"draft_token_ids: expected tokens in \[0, 23\), or -1, got -2"),
        ({"draft_token_ids": torch.tensor([[0]])}, r"draft_token_ids: expected \[1, 2\], got \[1, 1\]"),
        ({"target_probs": torch.ones(1, 2, 23)}, r"target_probs: expected \[1, 3, 23\], got \[1, 2, 23\]"),
        ({"seed": 1}, "position: expected the position of the token, since a seed is given, got None"),
        (
            {"maybe_output_accepted_token_num": torch.zeros(2, dtype=torch.int32)},
            r"maybe_output_accepted_token_num: expected \[1\], got \[2\]",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    right = {
        "draft_probs": draw_probs(1, 2),
        "draft_token_ids": torch.tensor([[0, 1]]),
        "target_probs": draw_probs(1, 3),
    }
    with pytest.raises(InvalidArgumentError, match=message):
        chain_speculative_sampling(**(right | arguments))
