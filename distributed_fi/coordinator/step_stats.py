# SPDX-License-Identifier: Apache-2.0
"""What a run cost: loading, the step broadcast, first tokens and token rates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class StepStats:
    """Readings of one engine."""

    broadcast_us: list[float] = field(default_factory=list)  # an empty plan to all ranks and back
    load_s: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    first_token_ms: list[float] = field(default_factory=list)
    decode_s: float = 0.0

    def summary(self) -> dict[str, float | None]:
        """Load s, prefill ms (arrival to first token, median), decoded tokens/s, broadcast and back p50/p99 us."""
        decoded = self.num_output_tokens - len(self.first_token_ms)
        return {
            "load_s": self.load_s,
            "prefill_ms": _percentile(self.first_token_ms, 50),
            "tokens_per_s": decoded / self.decode_s if decoded and self.decode_s > 0 else None,
            "step_broadcast_p50_us": _percentile(self.broadcast_us, 50),
            "step_broadcast_p99_us": _percentile(self.broadcast_us, 99),
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_output_tokens": self.num_output_tokens,
        }


def _percentile(values: list[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if values else None
