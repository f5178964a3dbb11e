# SPDX-License-Identifier: Apache-2.0
"""Every compiled kernel of the tree, built for Ampere and Hopper as CI can: its machine code is what its spec expects.

Built once: artifacts stay in the kernel cache of this machine, found again by the contents of their sources.
"""

from __future__ import annotations

import functools

import pytest

from distributed_fi.coordinator.kernel_catalog import compiled_kernels
from distributed_fi.errors import CompilerNotFoundError
from distributed_fi.kernels.jit.artifact import Artifact
from distributed_fi.kernels.jit.build import build_all
from distributed_fi.kernels.jit.facts import inspect_artifact, problems
from distributed_fi.kernels.jit.spec import KERNELS_DIR, KernelSpec, SassExpectation
from distributed_fi.kernels.jit.toolchain import find_toolchain

SPECS = compiled_kernels()


@functools.cache
def built(arch: str) -> dict[KernelSpec, Artifact]:
    """All kernels, compiled side by side."""
    try:
        find_toolchain(arch, needs_nvcc=True)
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    return dict(zip(SPECS, build_all(SPECS, arch), strict=True))


def test_names_are_unique_and_every_cuda_source_belongs_to_a_spec() -> None:
    assert len({spec.name for spec in SPECS}) == len(SPECS)
    sources = {path for spec in SPECS for path in spec.source_paths()}
    assert set(KERNELS_DIR.glob("*/*.cu")) <= sources


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_machine_code_is_what_the_spec_expects(spec: KernelSpec, arch: str) -> None:
    assert problems(inspect_artifact(built(arch)[spec]), spec.expected or SassExpectation()) == []
