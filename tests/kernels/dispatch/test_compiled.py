# SPDX-License-Identifier: Apache-2.0
"""What decides between a compiled kernel and torch, as far as a machine without a GPU can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from distributed_fi.errors import CompilerNotFoundError, InvalidArgumentError, UnsupportedError
from distributed_fi.kernels.activation import silu_and_mul
from distributed_fi.kernels.activation.silu_and_mul_cuda import SILU_AND_MUL
from distributed_fi.kernels.dispatch.candidates import backend_names, explain
from distributed_fi.kernels.dispatch.compiled import arch_of, invalid_argument, rows_objection
from distributed_fi.kernels.jit.load import load_kernel
from distributed_fi.kernels.jit.spec import KernelSpec
from distributed_fi.kernels.kv_cache import append
from distributed_fi.kernels.norm import rmsnorm
from distributed_fi.kernels.norm.rmsnorm_cuda import RMSNORM
from distributed_fi.kernels.rope import cos_sin_cache

OPS = (
    "rmsnorm",
    "fused_add_rmsnorm",
    silu_and_mul.SILU_AND_MUL.op,
    append.APPEND_WITH_SLOTS.op,
    cos_sin_cache.ROPE_WITH_COS_SIN_CACHE.op,
)


def test_the_architecture_of_a_device() -> None:
    assert arch_of((8, 0)) == ("sm_80", False)
    assert arch_of((8, 9)) == ("sm_89", False)
    assert arch_of((9, 0)) == ("sm_90a", True)
    assert arch_of((12, 0)) == ("sm_120a", True)


@pytest.mark.parametrize("op", OPS)
def test_torch_serves_cpu_tensors_and_the_reason_is_there(op: str) -> None:
    assert backend_names(op) == ("cuda", "torch")
    found = explain(op, torch.ones(2, 3, 8))
    assert found.chosen == "torch"
    assert found.reasons == {"cuda": "a tensor on cpu", "torch": None}


def test_a_named_backend_is_taken_or_refused() -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    torch.testing.assert_close(rmsnorm.rmsnorm(x, weight, backend="torch"), rmsnorm.rmsnorm(x, weight))
    with pytest.raises(
        UnsupportedError, match=r"backend: expected one of auto, torch \(cuda: a tensor on cpu\), got cuda"
    ):
        rmsnorm.rmsnorm(x, weight, backend="cuda")
    with pytest.raises(UnsupportedError, match="got triton"):
        rmsnorm.rmsnorm(x, weight, backend="triton")
    assert RMSNORM.pick("auto", x) is None
    assert SILU_AND_MUL.pick("auto", x) is None


def test_rows_are_contiguous_and_at_one_distance() -> None:
    x = torch.ones(6, 16)
    assert rows_objection(x) is None
    assert rows_objection(x[::2, 4:12]) is None
    assert rows_objection(torch.ones(2, 3, 4)) is None
    assert rows_objection(x.T) == "strides (1, 16) are not rows of contiguous elements at one distance"
    assert rows_objection(torch.ones(2, 3, 4)[:, :2]) is not None


def test_a_bindings_sentence_becomes_a_typed_error() -> None:
    error = invalid_argument(ValueError("weight: expected [hidden_size=8, 2], got [7]"))
    assert isinstance(error, InvalidArgumentError)
    assert (error.argument, error.expected, error.value) == ("weight", "[hidden_size=8, 2]", "[7]")
    assert str(invalid_argument(TypeError("no tensor"))).startswith("arguments: expected tensors")


def load(spec: KernelSpec) -> Any:
    try:
        return load_kernel(spec, "sm_90a")
    except CompilerNotFoundError as error:
        pytest.skip(str(error))


def test_every_binding_loads_without_a_gpu_and_refuses_cpu_tensors() -> None:
    x, weight, ints = torch.ones(2, 8), torch.ones(8), torch.arange(2)
    heads, cache = torch.ones(2, 3, 8), torch.ones(4, 16, 3, 8)
    norm = load(RMSNORM.spec)
    rope, pages = cos_sin_cache.ROPE_WITH_COS_SIN_CACHE, append.APPEND_WITH_SLOTS
    calls: list[tuple[str, Callable[..., None], tuple[object, ...]]] = [
        ("input", norm.rmsnorm, (x, x, weight, 1e-6, True)),
        ("input", norm.fused_add_rmsnorm, (x, x, weight, 1e-6, True)),
        ("input", load(SILU_AND_MUL.spec).silu_and_mul, (x, x, True)),
        ("query", getattr(load(rope.spec), rope.op), (ints, heads, heads, 8, x, True, True)),
        ("k_cache", getattr(load(pages.spec), pages.op), (heads, heads, ints, cache, cache, True)),
    ]
    for name, function, operands in calls:
        with pytest.raises(ValueError, match=f"{name}: expected a tensor on cuda, got cpu"):
            function(*operands)
