# SPDX-License-Identifier: Apache-2.0
"""What synchronize makes of the CUDA errors that an event reports; no GPU is needed to see it."""

import pytest
import torch

from distributed_fi.comm.backend import LocalBackend
from distributed_fi.comm.fingerprint import Call
from distributed_fi.comm.nccl_backend import NcclBackend
from distributed_fi.errors import CollectiveError

CALL = Call("all_reduce", 7, torch.float32, (4,))
DEVICE = torch.device("cuda", 0)
MESSAGE = r"rank 0: synchronize \(collective 7\): group 'tp': CUDA error: an illegal memory access"


class BrokenEvent:
    """An event of a device on which an earlier kernel has failed, after so many queries that found it pending."""

    num_pending = 0

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        if self.num_pending == 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.num_pending -= 1
        return False


class PendingEvent(BrokenEvent):
    num_pending = 10**9


@pytest.fixture
def broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", BrokenEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)


@pytest.fixture
def nccl() -> NcclBackend:
    return NcclBackend(None, 0, 2, device=DEVICE, name="tp", is_owner=False)


@pytest.mark.usefixtures("broken_device")
def test_a_cuda_error_becomes_a_collective_error() -> None:
    with pytest.raises(CollectiveError, match=MESSAGE):
        LocalBackend(DEVICE, "tp").synchronize(CALL, 1)


@pytest.mark.usefixtures("broken_device")
def test_a_cuda_error_becomes_a_collective_error_with_nccl(nccl: NcclBackend) -> None:
    with pytest.raises(CollectiveError, match=MESSAGE):
        nccl.synchronize(CALL, 1)


@pytest.mark.usefixtures("broken_device")
def test_a_cuda_error_found_while_looking_for_the_oldest_collective(
    nccl: NcclBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    nccl._marks.append((torch.cuda.Event(), CALL))
    monkeypatch.setattr(torch.cuda, "Event", PendingEvent)
    with pytest.raises(CollectiveError, match=MESSAGE):
        nccl.synchronize(CALL, 0.01)
