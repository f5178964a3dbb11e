# SPDX-License-Identifier: Apache-2.0
"""A spec that cannot be says so when it is made; every spec of the tree names files that exist."""

from __future__ import annotations

import pytest

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.jit.spec import KernelSpec, check_arch


def test_sources_are_relative_to_the_kernels_folder() -> None:
    (path,) = KernelSpec("norm/rmsnorm", ("norm/rmsnorm.cu",)).source_paths()
    assert path.parts[-3:] == ("kernels", "norm", "rmsnorm.cu")


@pytest.mark.parametrize(
    ("name", "sources", "wrong"),
    [("a b", ("a.cu",), "name"), ("", ("a.cu",), "name"), ("../a", ("a.cuh",), "sources"), ("a", (), "sources")],
)
def test_impossible_spec_is_refused(name: str, sources: tuple[str, ...], wrong: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{wrong}: expected"):
        KernelSpec(name, sources)


@pytest.mark.parametrize("arch", ["90", "sm90", "sm_90a ", "compute_90", ""])
def test_unknown_architecture_is_refused(arch: str) -> None:
    with pytest.raises(InvalidArgumentError, match='arch: expected an architecture like "sm_80"'):
        check_arch(KernelSpec("a", ("a.cpp",)), arch)
