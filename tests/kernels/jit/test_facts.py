# SPDX-License-Identifier: Apache-2.0
"""Machine code against what a spec expects: registers and spills from ptxas, opcodes from a disassembly."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_fi.kernels.jit import facts
from distributed_fi.kernels.jit.artifact import Artifact, Manifest
from distributed_fi.kernels.jit.build import build_kernel
from distributed_fi.kernels.jit.facts import FunctionFacts, inspect_artifact, opcodes_of, problems
from distributed_fi.kernels.jit.spec import KernelSpec, SassExpectation

PTXAS_LOG = """
ptxas info    : Compiling entry function 'decode' for 'sm_90a'
ptxas info    : Function properties for decode
    48 bytes stack frame, 40 bytes spill stores, 64 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 48 bytes cumulative stack size
ptxas info    : Compiling entry function 'merge' for 'sm_90a'
ptxas info    : Function properties for merge
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ...
"""
SASS = """
        Function : decode
        /*0040*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;  /* 0x0000000402047981 */
        /*0050*/                   FADD R0, R0, R0 ;                 /* 0x0000000000007221 */
        /*0060*/             @!UP1 UTMALDG.2D [UR8], [UR4] ;
        /*0070*/                   EXIT ;
"""


@pytest.fixture
def decode_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """An artifact of which only the log and a disassembler's answer exist."""
    disassembler = tmp_path / "cuobjdump"
    (tmp_path / "answer").write_text(SASS)
    disassembler.write_text(f"#!/bin/sh\nexec cat {tmp_path}/answer\n")
    disassembler.chmod(0o755)
    monkeypatch.setattr(facts, "find_disassembler", lambda: disassembler)
    (tmp_path / "build.log").write_text(PTXAS_LOG)
    return Artifact(tmp_path, Manifest("decode", "sm_90a", "", "", (), ""))


def test_registers_spills_and_opcodes_are_read(decode_artifact: Artifact) -> None:
    found = inspect_artifact(decode_artifact)
    assert found.functions == (FunctionFacts("decode", 168, 64), FunctionFacts("merge", 32, 0))
    assert found.opcodes == {"LDG.E.128.CONSTANT", "FADD", "UTMALDG.2D", "EXIT"}
    assert found.remark == ""
    assert len(found.serialized) == 1


def test_every_difference_is_said(decode_artifact: Artifact) -> None:
    expected = SassExpectation(opcodes=("LDG.E.128", "HGMMA"), forbidden=("UTMALDG", "FMUL"), max_registers=128)
    assert problems(inspect_artifact(decode_artifact), expected)[1:] == [
        "decode: 168 registers, expected <= 128",
        "decode: spills 64 B, expected <= 0",
        "opcode HGMMA is missing",
        "opcode UTMALDG must not occur",
    ]


def test_an_opcode_is_no_prefix_of_a_longer_name() -> None:
    sass = "/*0040*/ LDGSTS.E.128 [R4], desc[UR4][R2.64] ;"
    found = facts.KernelFacts((), opcodes_of(sass), "")
    assert problems(found, SassExpectation(opcodes=("LDGSTS", "LDG"))) == ["opcode LDG is missing"]


def test_without_a_disassembler_registers_and_spills_are_compared_and_that_is_said(
    decode_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "find_disassembler", lambda: None)
    found = inspect_artifact(decode_artifact)
    assert "no cuobjdump in PATH" in found.remark
    expected = SassExpectation(opcodes=("HGMMA",), max_registers=128, max_spill_bytes=64)
    assert problems(found, expected)[1:] == ["decode: 168 registers, expected <= 128"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_cuda_source_is_compiled_and_a_planted_expectation_fails(
    needs_nvcc: None, copy_spec: KernelSpec, arch: str
) -> None:
    found = inspect_artifact(build_kernel(copy_spec, arch))
    (function,) = found.functions
    assert "copy_rows" in function.name
    assert 0 < function.num_registers <= 32
    assert problems(found, SassExpectation(opcodes=("LDG.E.128", "STG.E.128"), max_registers=32)) == []
    wrong = problems(found, SassExpectation(opcodes=("HGMMA",), max_registers=1))
    assert f"{function.name}: {function.num_registers} registers, expected <= 1" in wrong
    if found.opcodes is None:
        pytest.skip(found.remark)
    assert "opcode HGMMA is missing" in wrong
