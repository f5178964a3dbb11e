# SPDX-License-Identifier: Apache-2.0
"""Why a ring carries no more messages, besides the errors of a rank that distributed_fi.errors has."""

from __future__ import annotations

from distributed_fi.errors import DfiError


class RingEndedError(DfiError):
    """No message will come any more: carries the group's epoch and the reason."""

    def __init__(self, epoch: int, reason: str):
        super().__init__(epoch, reason)
        self.epoch, self.reason = epoch, reason

    def __str__(self) -> str:
        return f"step ring of epoch {self.epoch} ended: {self.reason}"


class RingFinishedError(RingEndedError):
    """The writer closed the ring, and this reader has had every message."""


class RingAbortedError(RingEndedError):
    """The writer ended the ring at once, for the reason given."""


class WriterDiedError(RingEndedError):
    """The process that owned the ring is gone."""
