# SPDX-License-Identifier: Apache-2.0
"""Copies from the host must not wait for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distributed_fi.kernels.upload import upload

VALUES = np.array([3, -1, 2**40])


@pytest.mark.parametrize("values", [VALUES, torch.from_numpy(VALUES)], ids=["array", "tensor"])
def test_the_cpu_shares_what_it_is_given(values: np.ndarray | torch.Tensor) -> None:
    tensor = upload(values, "cpu")
    assert tensor.tolist() == VALUES.tolist()
    assert np.shares_memory(tensor.numpy(), VALUES)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 3, 1001])
def test_cuda_gets_a_copy_while_it_is_busy(count: int) -> None:
    upload(np.arange(count), "cuda")  # the first use allocates pinned memory, which may wait
    torch.cuda.synchronize()
    torch.cuda._sleep(2 * 10**9)
    done = torch.cuda.Event()
    done.record()
    tensor = upload(np.arange(count), torch.device("cuda"))
    assert not done.query(), "the copy waited for the device"
    assert tensor.device.type == "cuda"
    assert tensor.tolist() == list(range(count))
