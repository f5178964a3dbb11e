# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling.philox import philox4x32
from distributed_fi.sampling import philox_uniform

# Known answers that the authors publish with Random123: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
KINDS = {
    "int": lambda word: word,
    "numpy": lambda word: np.array([word], dtype=np.uint64),
    "torch": lambda word: torch.tensor([word]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, result: str, kind: str) -> None:
    def words(text: str) -> list[int]:
        return [int(word, 16) for word in text.split()]

    out = philox4x32([KINDS[kind](w) for w in words(counter)], [KINDS[kind](w) for w in words(key)])
    assert [int(np.asarray(word).item()) for word in out] == words(result)


def test_uniform_is_the_first_52_bits_of_the_block() -> None:
    seed, position = 0x299F31D0A4093822, 0x85A308D3243F6A88 - 2**64  # low and high words of the third known answer
    w0, w1, _, _ = philox4x32([0x243F6A88, 0x85A308D3, 0, 0], [0xA4093822, 0x299F31D0])
    expected = ((w0 * 2**20 + w1 // 2**12) + 0.5) / 2**52
    assert philox_uniform(torch.tensor([seed]), torch.tensor([position])).tolist() == [expected]


def test_uniform_depends_on_seed_and_position_alone() -> None:
    seed, position = torch.tensor([5, 6, 5]), torch.tensor([100, 7, 101])
    u = philox_uniform(seed, position)
    assert len(set(u.tolist())) == 3
    for row in range(3):
        assert philox_uniform(seed[row : row + 1], position[row : row + 1]).item() == u[row].item()
    assert torch.equal(philox_uniform(seed, position.int()), u)
    many = philox_uniform(seed.repeat(50), position.repeat(50))
    assert torch.equal(many, u.repeat(50))


@pytest.mark.parametrize("batch", [3, 40])  # row by row, and all at once
def test_streams_are_counted_in_the_third_word(batch: int) -> None:
    seed, position = torch.arange(batch) + 2**33, torch.arange(batch) * 2**31
    for stream in (0, 2):
        words = [
            philox4x32((p & 0xFFFFFFFF, p >> 32, stream, 0), (s & 0xFFFFFFFF, s >> 32))
            for s, p in zip(seed.tolist(), position.tolist(), strict=True)
        ]
        expected = [((w[0] << 20 | w[1] >> 12) + 0.5) / 2**52 for w in words]
        assert philox_uniform(seed, position, stream=stream).tolist() == expected


def test_uniform_covers_the_open_interval_evenly() -> None:
    n = 1 << 16
    u = philox_uniform(torch.full((n,), 42), torch.arange(n))
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u, bins=64, min=0, max=1)
    chi_square = ((counts - n / 64) ** 2 / (n / 64)).sum().item()
    assert chi_square < 103.4  # 63 degrees of freedom: exceeded once in a thousand seeds


def test_no_rows() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert philox_uniform(none, none).shape == (0,)


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match="seed: expected dtype int64, got float32"):
        philox_uniform(torch.ones(2), torch.ones(2))
    with pytest.raises(InvalidArgumentError, match=r"position: expected \[batch=2\], got \[3\]"):
        philox_uniform(torch.tensor([1, 2]), torch.tensor([1, 2, 3]))
