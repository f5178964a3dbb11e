# SPDX-License-Identifier: Apache-2.0
"""Parameters whose values only the device knows take other code; on the CPU it must keep and draw the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distributed_fi.kernels.sampling import filters, philox
from distributed_fi.kernels.sampling.sample import scaled
from distributed_fi.logits_processor import LogitsPipe, MinP, Sample, Softmax, Temperature, TopK, TopP
from distributed_fi.sampling import philox_uniform, sampling_from_probs, top_p_renorm_probs

BATCH, VOCAB_SIZE = 60, 333
NAN = float("nan")


def draw_logits() -> torch.Tensor:
    logits = torch.randn(BATCH, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 3
    logits[::2] = logits[::2].round()  # half of the rows are full of equals
    logits[7, 5] = NAN
    return logits


def cycle(values: list[float], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)[torch.arange(BATCH) % len(values)]


TOP_K = cycle([0, 1, 5, 50, 332, 333, 1000], torch.int64)
TOP_P = cycle([1.0, 0.9, 0.3, 1e-6, 0.999], torch.float64)
MIN_P = cycle([0.0, 0.05, 0.5, 1.0], torch.float64)
TEMPERATURE = cycle([0.0, 0.7, 1.0, 1e-40], torch.float64)


def test_filters_keep_the_same() -> None:
    logits = draw_logits()
    probs = logits.softmax(-1)
    for known, unknown in [
        (filters.keep_top_k(logits, TOP_K.numpy(), -torch.inf), filters.keep_top_k(logits, TOP_K, -torch.inf)),
        (filters.keep_top_p(probs, TOP_P.numpy()), filters.keep_top_p(probs, TOP_P)),
        (filters.keep_min_p(probs, MIN_P.numpy()), filters.keep_min_p(probs, MIN_P)),
        (scaled(logits, TEMPERATURE.numpy()), scaled(logits, TEMPERATURE)),
    ]:
        assert torch.equal(known.nan_to_num(nan=-7), unknown.nan_to_num(nan=-7))


def test_cutting_at_the_edge_keeps_what_picking_the_head_keeps() -> None:
    logits = draw_logits().nan_to_num()
    head = logits.sort(descending=True).values
    count = TOP_K.clamp(1, VOCAB_SIZE)
    cut = filters._cut_at_edge(logits, head.gather(-1, count[:, None] - 1), head, count, -torch.inf)
    picked = filters.keep_top_k(logits, count.numpy(), -torch.inf)
    assert torch.equal(cut, picked)


def test_philox_in_int64_tensors() -> None:
    seed, position = torch.arange(100) * 0x1234_5678_9ABC, torch.arange(100) * 0x8765_4321
    in_tensors = philox._uniform(*philox._block(seed, position))
    assert torch.equal(philox_uniform(seed, position), in_tensors)
    assert np.unique(in_tensors.numpy()).size == 100


# Mixed rows: greedy, cool, hot, with and without filters. The values keep every edge of a filter and every drawn
# number further from the next token than the softmaxes of two devices differ.
MIXED = {
    "temperature": cycle([0.0, 0.7, 1.0, 1.3, 1e-40], torch.float64),
    "top_k": cycle([0, 5, 50, 0, 332, 1000], torch.int64),
    "top_p": cycle([1.0, 0.9, 0.3, 1e-6, 0.97, 1.0, 0.6], torch.float64),
    "min_p": cycle([0.0, 0.05, 0.02, 0.0], torch.float64),
}
MIXED_SOURCE = {"seed": torch.arange(BATCH) * 977, "position": torch.arange(BATCH) % 7}
FILTERS = [Temperature(), TopK(), Softmax(), TopP(), MinP()]


def test_mixed_rows_keep_a_distance_from_every_edge() -> None:
    logits = draw_logits()
    kept = LogitsPipe(FILTERS)(logits, **MIXED) > 0
    expected = LogitsPipe([*FILTERS, Sample()])(logits, **MIXED, **MIXED_SOURCE)
    head, tail = LogitsPipe(FILTERS[:3]), LogitsPipe(FILTERS[3:])
    for i in range(5):  # ten times what two devices differ by, the same for equal logits
        noise = torch.sin(1e4 * logits + i) * 1e-6
        probs = head(logits, temperature=MIXED["temperature"], top_k=MIXED["top_k"]) * (1 + noise)
        cut = tail(probs, top_p=MIXED["top_p"], min_p=MIXED["min_p"])
        assert torch.equal(cut > 0, kept)
        assert torch.equal(sampling_from_probs(cut, **MIXED_SOURCE), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_cuda_keeps_and_draws_for_mixed_rows_what_the_cpu_does(home: str) -> None:
    logits = draw_logits()
    params, source = ({k: v.to(home) for k, v in given.items()} for given in (MIXED, MIXED_SOURCE))
    expected, kept = (LogitsPipe(FILTERS)(x, **given) for x, given in ((logits, MIXED), (logits.cuda(), params)))
    assert torch.equal(kept.cpu() > 0, expected > 0)
    torch.testing.assert_close(kept.cpu(), expected, rtol=1e-5, atol=0, equal_nan=True)
    pipe = LogitsPipe([*FILTERS, Sample()])
    tokens = pipe(logits, **MIXED, **MIXED_SOURCE)
    assert torch.equal(pipe(logits.cuda(), **params, **source).cpu(), tokens)


@pytest.mark.gpu
def test_cuda_draws_the_tokens_of_the_cpu() -> None:
    pipe = LogitsPipe([Temperature(), TopK(), Softmax(), TopP(), MinP(), Sample()])
    logits = draw_logits()
    params = {
        "temperature": TEMPERATURE.clamp(max=0),
        "top_k": TOP_K,
        "top_p": TOP_P,
        "min_p": MIN_P,
        "seed": torch.arange(BATCH),
        "position": torch.arange(BATCH) % 7,
    }
    on_device = {name: value.cuda() for name, value in params.items()}
    expected = pipe(logits, **params)
    assert torch.equal(pipe(logits.cuda(), **params).cpu(), expected)
    assert torch.equal(pipe(logits.cuda(), **on_device).cpu(), expected)
    # Of equal probabilities, any temperature: sums are integers on both.
    probs = logits.nan_to_num().softmax(-1)
    source = {"seed": params["seed"], "position": params["position"]}
    kept = top_p_renorm_probs(probs, TOP_P)
    assert torch.equal(top_p_renorm_probs(probs.cuda(), TOP_P).cpu() > 0, kept > 0)
    assert torch.equal(sampling_from_probs(probs.cuda(), **source).cpu(), sampling_from_probs(probs, **source))
    assert torch.equal(
        sampling_from_probs(probs.cuda(), seed=on_device["seed"], position=on_device["position"]).cpu(),
        sampling_from_probs(probs, **source),
    )
