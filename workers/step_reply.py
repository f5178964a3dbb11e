# SPDX-License-Identifier: Apache-2.0
"""What a rank sends back for a step: two clock readings and the tokens it sampled.

Both clocks are CLOCK_MONOTONIC in ns, which all processes of one host share: `waiting_ns` when the
rank began to wait for the plan, `received_ns` when it had it. Broadcast latency is counted from the
later of "published" and "waiting", since a rank still busy with the previous step cannot receive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CLOCKS_BYTES = 16


@dataclass(frozen=True)
class StepReply:
    """Clocks in ns; tokens int32 [num_samples of the rank's replica], empty from ranks that do not output."""

    waiting_ns: int
    received_ns: int
    tokens: np.ndarray

    def to_bytes(self) -> bytes:
        clocks = np.array([self.waiting_ns, self.received_ns], np.int64)
        return clocks.tobytes() + np.ascontiguousarray(self.tokens, np.int32).tobytes()

    @staticmethod
    def from_bytes(payload: bytes) -> StepReply:
        waiting_ns, received_ns = np.frombuffer(payload, np.int64, 2).tolist()
        return StepReply(waiting_ns, received_ns, np.frombuffer(payload, np.int32, offset=_CLOCKS_BYTES))


def reply_bytes(max_samples: int) -> int:
    """Room that the reply of a step needs; an error's text fits as well."""
    return max(_CLOCKS_BYTES + 4 * max_samples, 4096)
