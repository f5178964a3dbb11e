# SPDX-License-Identifier: Apache-2.0
"""Bandwidth-bound kernels beside torch and FlashInfer.

    python -m distributed_fi.cluster.benchmarks.kernels --out FILE

Every number is microseconds a call inside a CUDA graph of a chain of calls, the median of interleaved rounds. "warm"
replays one set of buffers; "cold" rotates over as many sets as it takes to move 260 MB (for the smallest calls: 8000
sets, more than L2 holds). A row's floor is a copy that moves as many bytes, warm or cold alike, in the same rounds.
Each implementation's result is compared with float64 once a row, before it is timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distributed_fi.cluster.benchmarks.machine import describe_machine
from distributed_fi.errors import ResourceError, UnsupportedError
from distributed_fi.kernels.activation import reference as activation_reference
from distributed_fi.kernels.activation.silu_and_mul import silu_and_mul
from distributed_fi.kernels.dispatch.candidates import explain
from distributed_fi.kernels.kv_cache.append import append_with_slots
from distributed_fi.kernels.norm import reference as norm_reference
from distributed_fi.kernels.norm.rmsnorm import fused_add_rmsnorm, rmsnorm
from distributed_fi.kernels.rope.cos_sin_cache import apply_rope_with_cos_sin_cache_inplace

ROTATED_BYTES = 260 * 10**6
WARM_LIMIT_BYTES = 50 * 10**6  # a working set beyond this is never in L2 as a whole: one row, called cold
NUM_ROUNDS = 7
MIN_CALLS = 64  # in a graph
MAX_SETS = 8000
LAUNCHES = 500
OPS = {"append_paged_kv_cache": "append_with_slots"}  # a row's operator -> its name among the candidates
EPS = 1e-5

Buffers = dict[str, Tensor]
Call = Callable[[Buffers], Any]


@dataclass(frozen=True)
class Case:
    """One operator on one problem.

    `make` draws the buffers of a call from a seed; `calls` are the implementations by name, "ours" first;
    `check` raises where the buffers after a call, given those before, are wrong; `num_bytes` is what a call moves.
    """

    op: str
    problem: str
    num_bytes: int
    make: Callable[[int], Buffers]
    calls: dict[str, Call]
    check: Callable[[Buffers, Buffers], None]
    target_us: float | None = None


@dataclass(frozen=True)
class Row:
    """A result; `peers` by name, `floor_us` a copy of the same bytes, `target_us` where one is set for these caches."""

    op: str
    problem: str
    ours_us: float
    peers: dict[str, float]
    floor_us: float
    target_us: float | None


def measure(case: Case, *, is_cold: bool, num_rounds: int = NUM_ROUNDS) -> Row:
    """Time one case's implementations and its floor, one after the other in each round."""
    first = case.make(0)
    set_bytes = sum(x.numel() * x.element_size() for x in first.values())
    sets = [first]
    if is_cold:
        sets += [case.make(seed) for seed in range(1, min(MAX_SETS, -(-ROTATED_BYTES // case.num_bytes) + 1))]
    right = {name: call for name, call in case.calls.items() if name == "ours" or _serves(name, call, case)}
    _checked(right["ours"], case)
    _check_serves_ours(case, first)
    graphs = {name: _chain(call, sets) for name, call in right.items()}
    graphs["floor"] = _chain(lambda b: b["to"].copy_(b["from"]), _copies(case.num_bytes // 2, is_cold))
    rounds: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(num_rounds):
        for name, (graph, num_calls) in graphs.items():
            rounds[name].append(_replay_us(graph) / num_calls)
    us = {name: round(statistics.median(times), 2) for name, times in rounds.items()}
    peers = {name: t for name, t in us.items() if name not in ("ours", "floor")}
    is_target = case.target_us is not None and (not is_cold or set_bytes >= WARM_LIMIT_BYTES)
    problem = f"{case.problem}, {'cold' if is_cold else 'warm'}"
    return Row(case.op, problem, us["ours"], peers, us["floor"], case.target_us if is_target else None)


def _check_serves_ours(case: Case, buffers: Buffers) -> None:
    """Raise unless "auto" takes the compiled kernel: else the row would compare torch with torch."""
    found = explain(OPS.get(case.op, case.op), buffers.get("x", buffers.get("k_cache", buffers.get("q"))))
    if found.chosen != "cuda":
        raise UnsupportedError("backend", found.chosen, f"cuda for {case.op} ({found.reasons['cuda']})")


def _checked(call: Call, case: Case) -> None:
    """One call on fresh buffers with poisoned results, compared with float64."""
    buffers = case.make(12345)
    if "out" in buffers:
        buffers["out"].fill_(float("nan"))
    before = {name: x.clone() for name, x in buffers.items()}
    call(buffers)
    case.check(before, buffers)


def _serves(name: str, call: Call, case: Case) -> bool:
    """Whether a peer gets the problem right; the reason why not goes to stderr, and the peer out of the row."""
    try:
        _checked(call, case)
    except Exception as error:  # a peer's own error types are not ours to know
        print(f"{case.op}, {case.problem}: without {name}: {error!r:.300}", file=sys.stderr)
        return False
    return True


def _copies(num_bytes: int, is_cold: bool) -> list[Buffers]:
    count = min(MAX_SETS, -(-ROTATED_BYTES // (2 * num_bytes)) + 1) if is_cold else 1
    empty = [torch.empty(2, -(-num_bytes // 4), dtype=torch.int32, device="cuda").zero_() for _ in range(count)]
    return [{"from": x[0], "to": x[1]} for x in empty]


def _chain(call: Call, sets: Sequence[Buffers]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of calls that goes through the sets in turn, each as often as the others."""
    num_calls = -(-MIN_CALLS // len(sets)) * len(sets)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()  # the buffers were drawn on another stream
    with torch.cuda.stream(stream):
        for buffers in sets[:2]:
            call(buffers)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(num_calls):
            call(sets[i % len(sets)])
    graph.replay()
    torch.cuda.synchronize()
    return graph, num_calls


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def _draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=generator).bfloat16()


def _near(actual: Tensor, expected: Tensor) -> None:
    # One rounding to bfloat16, and one unit more for forms that round in between.
    torch.testing.assert_close(actual.double(), expected, rtol=2**-6, atol=2**-6)


def rmsnorm_case(num_tokens: int, hidden_size: int, target_us: float | None, flashinfer: Any) -> Case:
    """x in, out out: 2 * T * H * 2 bytes, and the weight."""

    def make(seed: int) -> Buffers:
        x, weight = _draw(seed, num_tokens, hidden_size), _draw(seed + 1, hidden_size)
        return {"x": x, "weight": weight, "out": torch.empty_like(x)}

    def call(backend: str) -> Call:
        return lambda b: rmsnorm(b["x"], b["weight"], EPS, out=b["out"], backend=backend)

    calls = {"ours": call("auto"), "torch": lambda b: torch.rms_norm(b["x"], (hidden_size,), b["weight"], EPS)}
    if flashinfer is not None:
        calls["flashinfer"] = lambda b: flashinfer.norm.rmsnorm(b["x"], b["weight"], EPS, out=b["out"], enable_pdl=True)

    def check(before: Buffers, after: Buffers) -> None:
        _near(after["out"], norm_reference.rmsnorm(before["x"], before["weight"], EPS))

    # torch's form has no output argument: it is compared through one that copies.
    calls["torch"] = _checked_out(calls["torch"])
    num_bytes = (2 * num_tokens + 1) * hidden_size * 2
    return Case("rmsnorm", f"T={num_tokens} H={hidden_size} bf16", num_bytes, make, calls, check, target_us)


def _checked_out(form: Call) -> Call:
    """A form that returns its result, made to leave it in "out" outside of graphs, where it is not timed."""

    def call(buffers: Buffers) -> None:
        result = form(buffers)
        if not torch.cuda.is_current_stream_capturing():
            buffers["out"].copy_(result)

    return call


def fused_add_rmsnorm_case(num_tokens: int, hidden_size: int, target_us: float | None, flashinfer: Any) -> Case:
    """x and residual, in and out: 4 * T * H * 2 bytes, and the weight."""

    def make(seed: int) -> Buffers:
        x, residual = _draw(seed, num_tokens, hidden_size), _draw(seed + 1, num_tokens, hidden_size)
        return {"x": x, "residual": residual, "weight": _draw(seed + 2, hidden_size)}

    def call(backend: str) -> Call:
        return lambda b: fused_add_rmsnorm(b["x"], b["residual"], b["weight"], EPS, backend=backend)

    calls = {"ours": call("auto"), "torch": call("torch")}
    if flashinfer is not None:
        calls["flashinfer"] = lambda b: flashinfer.norm.fused_add_rmsnorm(
            b["x"], b["residual"], b["weight"], EPS, enable_pdl=True
        )

    def check(before: Buffers, after: Buffers) -> None:
        operands = before["x"], before["residual"], before["weight"]
        normed, total = norm_reference.fused_add_rmsnorm(*operands, EPS)
        _near(after["x"], normed)
        _near(after["residual"], total)

    num_bytes = (4 * num_tokens + 1) * hidden_size * 2
    return Case("fused_add_rmsnorm", f"T={num_tokens} H={hidden_size} bf16", num_bytes, make, calls, check, target_us)


def silu_and_mul_case(num_tokens: int, d: int, target_us: float | None, flashinfer: Any) -> Case:
    """Gate and up in, product out: 3 * T * d * 2 bytes."""

    def make(seed: int) -> Buffers:
        x = _draw(seed, num_tokens, 2 * d)
        return {"x": x, "out": x.new_empty(num_tokens, d)}

    def call(backend: str) -> Call:
        return lambda b: silu_and_mul(b["x"], b["out"], backend=backend)

    calls = {"ours": call("auto"), "torch": call("torch")}
    if flashinfer is not None:
        calls["flashinfer"] = lambda b: flashinfer.activation.silu_and_mul(b["x"], b["out"], enable_pdl=True)

    def check(before: Buffers, after: Buffers) -> None:
        _near(after["out"], activation_reference.silu_and_mul(before["x"]))

    return Case("silu_and_mul", f"T={num_tokens} d={d} bf16", 3 * num_tokens * d * 2, make, calls, check, target_us)


def rope_case(num_tokens: int, flashinfer: Any, num_heads: tuple[int, int] = (32, 8), head_dim: int = 128) -> Case:
    """Queries and keys in and out: 2 * T * (Hq + Hkv) * D * 2 bytes, and the table's rows."""
    num_qo_heads, num_kv_heads = num_heads

    def make(seed: int) -> Buffers:
        angles = torch.rand(min(num_tokens, 4096), head_dim // 2, device="cuda")
        return {
            "positions": torch.arange(num_tokens, device="cuda") % 4096,
            "q": _draw(seed, num_tokens, num_qo_heads * head_dim),
            "k": _draw(seed + 1, num_tokens, num_kv_heads * head_dim),
            "cache": torch.cat([angles.cos(), angles.sin()], dim=-1),
        }

    def call(backend: str) -> Call:
        return lambda b: apply_rope_with_cos_sin_cache_inplace(
            b["positions"], b["q"], b["k"], head_dim, b["cache"], backend=backend
        )

    calls = {"ours": call("auto"), "torch": call("torch")}
    if flashinfer is not None:
        calls["flashinfer"] = lambda b: flashinfer.rope.apply_rope_with_cos_sin_cache_inplace(
            b["positions"], b["q"], b["k"], head_dim, b["cache"], True
        )

    def check(before: Buffers, after: Buffers) -> None:
        cos, sin = before["cache"][before["positions"]].double()[:, None].chunk(2, -1)
        for name in ("q", "k"):
            a, b = before[name].view(num_tokens, -1, head_dim).double().chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
            _near(after[name].view_as(turned), turned)

    num_bytes = num_tokens * head_dim * (4 * (num_qo_heads + num_kv_heads) + 4)
    problem = f"T={num_tokens} heads={num_qo_heads}/{num_kv_heads} D={head_dim} bf16"
    return Case("apply_rope_with_cos_sin_cache_inplace", problem, num_bytes, make, calls, check)


def append_case(num_tokens: int, num_kv_heads: int = 8, head_dim: int = 128, page_size: int = 16) -> Case:
    """Keys and values in and out: 4 * T * Hkv * D * 2 bytes, and the slots."""
    num_pages = -(-num_tokens // page_size) * 2

    def make(seed: int) -> Buffers:
        cache = torch.zeros(2, num_pages, page_size, num_kv_heads, head_dim, device="cuda", dtype=torch.bfloat16)
        slots = torch.randperm(num_pages * page_size, device="cuda")[:num_tokens]
        k, v = _draw(seed, 2, num_tokens, num_kv_heads, head_dim)
        return {"k": k, "v": v, "slots": slots, "k_cache": cache[0], "v_cache": cache[1]}

    def call(backend: str) -> Call:
        return lambda b: append_with_slots(b["k"], b["v"], b["slots"], (b["k_cache"], b["v_cache"]), backend=backend)

    def check(before: Buffers, after: Buffers) -> None:
        for name in ("k", "v"):
            expected = before[f"{name}_cache"].clone()
            expected.view(-1, num_kv_heads, head_dim)[before["slots"]] = before[name]
            torch.testing.assert_close(after[f"{name}_cache"], expected, rtol=0, atol=0)

    calls = {"ours": call("auto"), "torch": call("torch")}
    num_bytes = num_tokens * (4 * num_kv_heads * head_dim * 2 + 8)
    problem = f"T={num_tokens} heads={num_kv_heads} D={head_dim} page={page_size} bf16"
    return Case("append_paged_kv_cache", problem, num_bytes, make, calls, check)


def cases(flashinfer: Any) -> list[Case]:
    """The rows of a run: the shapes whose targets are set, and the same for RoPE and append."""
    tokens = (1, 128, 8192)
    found = [rmsnorm_case(t, 8192, us, flashinfer) for t, us in zip(tokens, (2.3, 2.8, 92), strict=True)]
    found += [fused_add_rmsnorm_case(t, 8192, us, flashinfer) for t, us in zip(tokens, (2.8, 3.3, 180), strict=True)]
    found += [silu_and_mul_case(t, 14336, us, flashinfer) for t, us in zip(tokens, (2.6, 3.6, 238), strict=True)]
    return found + [rope_case(t, flashinfer) for t in tokens] + [append_case(t) for t in tokens]


def run(num_rounds: int = NUM_ROUNDS) -> dict[str, object]:
    """Measure every case on the current GPU; the report for JSON.

    Raises:
        ResourceError: no CUDA device.
    """
    if not torch.cuda.is_available():
        raise ResourceError("GPUs", "1", "0")
    flashinfer = _flashinfer()
    rows = []
    for case in cases(flashinfer):
        is_large = sum(x.numel() * x.element_size() for x in case.make(0).values()) >= WARM_LIMIT_BYTES
        for is_cold in (True,) if is_large else (False, True):
            rows.append(asdict(measure(case, is_cold=is_cold, num_rounds=num_rounds)))
            torch.cuda.empty_cache()
    machine = describe_machine(("distributed-fi", "torch", "apache-tvm-ffi", "flashinfer-python"))
    machine |= {"device": torch.cuda.get_device_name(), "driver": _driver(), "cuda": torch.version.cuda}
    launch = {case.op: _launch_us(case) for case in cases(None) if "T=1 " in case.problem}
    return {"benchmark": "kernels", "machine": machine, "num_rounds": num_rounds, "launch_us": launch, "rows": rows}


def _launch_us(case: Case) -> float:
    """Host time of one eager call of ours, us, checks and launch included."""
    buffers, call = case.make(0), case.calls["ours"]
    call(buffers)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(LAUNCHES):
        call(buffers)
    us = (time.perf_counter() - start) / LAUNCHES * 1e6
    torch.cuda.synchronize()
    return round(us, 2)


def _flashinfer() -> Any:
    """The peer's package, or None where it is not there or does not load."""
    try:
        return importlib.import_module("flashinfer")
    except Exception as error:  # its import looks for compilers and drivers
        print(f"without flashinfer: {error!r:.300}", file=sys.stderr)
        return None


def _driver() -> str | None:
    """The kernel module's version line."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return None


def table(report: dict[str, Any]) -> str:
    """The rows as text: microseconds, and ours over the floor."""
    peers = sorted({name for row in report["rows"] for name in row["peers"]})
    lines = [f"{'op, problem':78s} {'ours':>8s} {'floor':>8s} {'target':>8s} " + " ".join(f"{p:>10s}" for p in peers)]
    for row in report["rows"]:
        target = "-" if row["target_us"] is None else f"{row['target_us']:.1f}"
        others = " ".join(f"{row['peers'].get(p, float('nan')):10.2f}" for p in peers)
        name = f"{row['op']} {row['problem']}"
        lines.append(f"{name:78s} {row['ours_us']:8.2f} {row['floor_us']:8.2f} {target:>8s} {others}")
    lines += [f"{op}: {us:.2f} us of host time a launch" for op, us in report["launch_us"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description="Bandwidth-bound kernels beside their peers, us a call.")
    parser.add_argument("--out", type=Path, help="write the rows and the machine to this JSON file")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="interleaved rounds, >= 5")
    arguments = parser.parse_args()
    report = run(arguments.rounds)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
