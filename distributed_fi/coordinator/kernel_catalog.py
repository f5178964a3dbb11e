# SPDX-License-Identifier: Apache-2.0
"""Every kernel of the tree that is compiled: what is built ahead of time, and once for a cluster."""

from __future__ import annotations

import importlib

from distributed_fi.kernels.jit.spec import KERNELS_DIR, KernelSpec

MODULES = "*/*_cuda.py"


def compiled_kernels() -> list[KernelSpec]:
    """The specs that modules named `kernels/<family>/<kernel>_cuda.py` hold at their top level, by name."""
    found: dict[KernelSpec, None] = {}
    for path in sorted(KERNELS_DIR.glob(MODULES)):
        module = importlib.import_module(f"distributed_fi.kernels.{path.parent.name}.{path.stem}")
        for value in vars(module).values():
            specs = value if isinstance(value, (tuple, list)) else (value,)
            found.update(dict.fromkeys(spec for spec in specs if isinstance(spec, KernelSpec)))
    return sorted(found, key=lambda spec: spec.name)
