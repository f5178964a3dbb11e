# SPDX-License-Identifier: Apache-2.0
"""Operators that a compiled kernel serves on CUDA tensors: built and loaded on first use, torch beside them.

RMSNORM = CompiledOp("rmsnorm", KernelSpec(name="norm/rmsnorm", sources=(...)))
if launcher := RMSNORM.pick(backend, input): launcher.function(out, input, weight, eps, launcher.pdl)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distributed_fi.errors import CompilerNotFoundError, InvalidArgumentError, KernelBuildError
from distributed_fi.kernels.dispatch.candidates import Candidate, choose, register
from distributed_fi.kernels.jit.load import load_kernel
from distributed_fi.kernels.jit.spec import KernelSpec

_logger = logging.getLogger(__name__)


class Launcher(NamedTuple):
    """A loaded kernel's function, and whether its device knows programmatic dependent launch."""

    function: Callable[..., None]
    pdl: bool


class CompiledOp:
    """One operator's compiled kernel, the candidate "cuda" beside "torch".

    Args:
        op: the operator; the kernel's binding exports it under this name.
        spec: what the kernel is made of.
        serves: why the kernel cannot take a tensor's layout, or None; `rows_objection` for rows of elements.
    """

    def __init__(self, op: str, spec: KernelSpec, serves: Callable[[Tensor], str | None]):
        self.op, self.spec, self._layout_objection = op, spec, serves
        self._launchers: dict[int, Launcher | None] = {}
        self._problems: dict[int, str] = {}

    def register(self, torch_form: Callable[..., Any]) -> None:
        """List this kernel, then torch's form, as the operator's candidates; a problem is one of its tensors."""
        register(Candidate(self.op, "cuda", self.pick, self.why_not))
        register(Candidate(self.op, "torch", torch_form, lambda _: None))

    def pick(self, backend: str, *tensors: Tensor) -> Launcher | None:
        """What launches the kernel on these tensors, or None where torch serves them.

        Args:
            backend: "auto", "cuda" or "torch".
            tensors: the first decides the device; all must have a layout that the kernel takes.
        Raises:
            UnsupportedError: no such backend; "cuda" cannot serve the tensors; or it would have to be loaded while a
                CUDA graph is captured.
        """
        if backend != "auto":
            for x in tensors:
                if choose(self.op, x, backend=backend).name == "torch":
                    return None
            return self._launcher(tensors[0].get_device())
        for x in tensors:
            if not isinstance(x, Tensor) or not x.is_cuda or self._layout_objection(x) is not None:
                return None
        return self._launcher(tensors[0].get_device())

    def why_not(self, x: object) -> str | None:
        """Why the kernel cannot serve an operand, or None."""
        if not isinstance(x, Tensor):
            return "not a tensor"
        if not x.is_cuda:
            return f"a tensor on {x.device.type}"
        objection = self._layout_objection(x)
        if objection is None and self._launcher(x.get_device()) is None:
            return self._problems[x.get_device()]
        return objection

    def _launcher(self, device_idx: int) -> Launcher | None:
        try:
            return self._launchers[device_idx]
        except KeyError:
            return self._load(device_idx)

    def _load(self, device_idx: int) -> Launcher | None:
        arch, pdl = arch_of(torch.cuda.get_device_capability(device_idx))
        launcher = None
        try:
            launcher = Launcher(getattr(load_kernel(self.spec, arch), self.op), pdl)
        except (CompilerNotFoundError, KernelBuildError, OSError) as error:
            self._problems[device_idx] = str(error)
            _logger.warning("%s: torch serves it on cuda:%d; %s", self.op, device_idx, error)
        self._launchers[device_idx] = launcher
        return launcher


def arch_of(capability: tuple[int, int]) -> tuple[str, bool]:
    """Architecture to compile for, and whether it has programmatic dependent launch: (9, 0) -> ("sm_90a", True)."""
    major, minor = capability
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}", major >= 9


def rows_objection(x: Tensor) -> str | None:
    """None for [..., n] with contiguous rows, a fixed distance apart."""
    if x.is_contiguous() or (x.dim() == 2 and x.stride(1) == 1):
        return None
    return f"strides {x.stride()} are not rows of contiguous elements at one distance"


def invalid_argument(error: Exception) -> InvalidArgumentError:
    """A binding's "name: expected X, got Y" as this project's error."""
    argument, _, rest = str(error).partition(": expected ")
    expected, _, got = rest.rpartition(", got ")
    if not expected:
        return InvalidArgumentError("arguments", str(error), "tensors and numbers as documented")
    return InvalidArgumentError(argument, got, expected)
