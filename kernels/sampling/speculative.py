# SPDX-License-Identifier: Apache-2.0
"""Speculative sampling: draft tokens kept or replaced so that what comes out follows the target's distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.sampling.philox import philox_uniform
from distributed_fi.kernels.sampling.row_params import Param, to_rows, to_tensor
from distributed_fi.kernels.sampling.sample import check_source, draw

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int32, torch.int64)
# Streams of random numbers. The drafts were themselves drawn by stream 0 at these positions, so neither the test
# nor the replacement may use it again; the token behind the last draft may, and is what sampling alone would give.
TOKEN, ACCEPT, REPLACE = 0, 1, 2


def chain_speculative_sampling(
    draft_probs: Tensor,
    draft_token_ids: Tensor,
    target_probs: Tensor,
    maybe_output_accepted_token_num: Tensor | None = None,
    maybe_output_emitted_draft_token_num: Tensor | None = None,
    *,
    seed: Param | None = None,
    position: Param | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Verifies a chain of draft tokens per request, and draws the token that follows those kept.

    Draft i passes if u_i * draft_probs[i, d_i] < target_probs[i, d_i]. The drafts before the first that fails are
    emitted, then one token drawn from max(target_probs - draft_probs, 0) there, or from target_probs behind the last.

    Args:
        draft_probs: [batch, num_speculate_tokens, vocab_size], float32, bfloat16 or float16: what drafts were drawn by.
        draft_token_ids: [batch, num_speculate_tokens], int32 or int64; -1 ends a request's chain early.
        target_probs: [batch, num_speculate_tokens + 1, vocab_size], draft_probs' dtype.
        maybe_output_accepted_token_num: [batch], int32; receives the accepted counts, added to what it holds.
        maybe_output_emitted_draft_token_num: [batch], int32; the same for the emitted counts.
        seed: number or int64 tensor [batch], in [0, 2^63); with it, `position` is required.
        position: number or int tensor [batch], in [0, 2^63): place in its request of the first draft.
        generator: instead of seed and position.
    Returns:
        (output_token_ids, accepted_token_num, emitted_draft_token_num), int32: [batch, num_speculate_tokens + 1],
        the emitted tokens, -1 behind them (and for the drawn one where its row has a NaN or no probability);
        [batch], drafts that pass, each by itself, even behind one that failed; [batch], drafts emitted.
    Raises:
        InvalidArgumentError: a shape, dtype, device or value that does not fit; on the CPU, a draft outside the
            vocabulary. On CUDA ids are not looked at, since that would synchronise: one outside counts as -1.
    Notes: each request depends on its own rows, seed and position only; without drafts it is `sampling_from_probs`.
        Drafts may have been drawn with the same seed and positions. Current stream; no synchronisation. Leviathan
        et al. 2023, "Fast inference from transformers via speculative decoding"; Chen et al. 2023.
    """
    dims = Dims()
    check_tensor("draft_probs", draft_probs, ("batch", "num_speculate_tokens", "vocab_size"), dims, dtype=FLOATS)
    batch, num_drafts, vocab_size = draft_probs.shape
    device = draft_probs.device
    check_tensor("draft_token_ids", draft_token_ids, (batch, num_drafts), dims, dtype=INTS, device=device)
    shape = (batch, num_drafts + 1, vocab_size)
    check_tensor("target_probs", target_probs, shape, dims, dtype=draft_probs.dtype, device=device)
    accept_u, token_u = _uniforms(batch, num_drafts, device, seed, position, generator)

    drafts = _known(draft_token_ids, vocab_size)
    passes = _passes(draft_probs, drafts, target_probs, accept_u)
    emitted = passes.int().cumprod(-1).sum(-1)  # [B], also the place of the token to draw
    drawn = draw(_remainder(draft_probs, drafts, target_probs, emitted), token_u.gather(-1, emitted[:, None])[:, 0])
    places = torch.arange(num_drafts + 1, device=device)
    padded = torch.nn.functional.pad(drafts.int(), (0, 1))
    tokens = padded.masked_fill(places >= emitted[:, None], -1).scatter(-1, emitted[:, None], drawn[:, None])
    accepted = _counted("maybe_output_accepted_token_num", passes.sum(-1), maybe_output_accepted_token_num)
    emitted = _counted("maybe_output_emitted_draft_token_num", emitted, maybe_output_emitted_draft_token_num)
    return tokens, accepted, emitted


def _uniforms(
    batch: int,
    num_drafts: int,
    device: torch.device,
    seed: Param | None,
    position: Param | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """float64 [batch, num_drafts] to test the drafts by, and [batch, num_drafts + 1] to draw a token by."""
    check_source(seed, position, generator)
    if seed is None or position is None:
        both = torch.rand(batch, 2 * num_drafts + 1, dtype=torch.float64, device=device, generator=generator)
        return both[:, :num_drafts], both[:, num_drafts:]
    seeds = to_tensor(to_rows("seed", seed, batch), device)[:, None]
    first = to_tensor(to_rows("position", position, batch), device)[:, None]

    def stream(which: int, start: int, end: int) -> Tensor:
        positions = first + torch.arange(start, end, device=device)
        rows = philox_uniform(seeds.expand_as(positions).flatten(), positions.flatten(), stream=which)
        return rows.view(positions.shape)

    behind = stream(TOKEN, num_drafts, num_drafts + 1)
    return stream(ACCEPT, 0, num_drafts), torch.cat([stream(REPLACE, 0, num_drafts), behind], -1)


def _known(draft_token_ids: Tensor, vocab_size: int) -> Tensor:
    """int64 ids in [0, vocab_size), or -1."""
    ids = draft_token_ids.long()
    outside = (ids < 0) | (ids >= vocab_size)
    if not ids.is_cuda:
        strange = ids[outside & (ids != -1)]
        if strange.numel():
            raise InvalidArgumentError("draft_token_ids", strange.tolist()[0], f"tokens in [0, {vocab_size}), or -1")
    return ids.masked_fill(outside, -1)


def _passes(draft_probs: Tensor, drafts: Tensor, target_probs: Tensor, uniform: Tensor) -> Tensor:
    """bool [batch, num_drafts]: whether each draft passes by itself."""
    ids = drafts.clamp(min=0)[..., None]
    p = draft_probs.gather(-1, ids).squeeze(-1).double()
    q = target_probs[:, :-1].gather(-1, ids).squeeze(-1).double()
    return (uniform * p < q) & (drafts >= 0)


def _remainder(draft_probs: Tensor, drafts: Tensor, target_probs: Tensor, emitted: Tensor) -> Tensor:
    """float32 [batch, vocab_size], in any scale: what the token behind the emitted ones is drawn from."""
    rows = torch.arange(drafts.shape[0], device=drafts.device)
    target = target_probs[rows, emitted].float()
    if drafts.shape[1] == 0:
        return target
    place = emitted.clamp(max=drafts.shape[1] - 1)
    failed = (emitted < drafts.shape[1]) & (drafts[rows, place] >= 0)
    left = (target - draft_probs[rows, place].float()).clamp_(min=0)
    # Rounding can leave nothing where the two distributions are nearly one; then either will do.
    usable = failed & (left.amax(-1) != 0)
    return torch.where(usable[:, None], left, target)


def _counted(name: str, counts: Tensor, total: Tensor | None) -> Tensor:
    """int32 [batch]; added to `total`, which is given back, where there is one."""
    counts = counts.int()
    if total is None:
        return counts
    check_tensor(name, total, counts.shape, Dims(), dtype=torch.int32, device=counts.device)
    return total.add_(counts)
