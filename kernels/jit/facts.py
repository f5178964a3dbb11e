# SPDX-License-Identifier: Apache-2.0
"""What the compilers made of a kernel: registers, spills, opcodes; and whether that is what its spec expects."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from distributed_fi import env
from distributed_fi.kernels.jit.artifact import Artifact
from distributed_fi.kernels.jit.spec import SassExpectation

DISASSEMBLE_TIMEOUT_S = 120
_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
# ptxas gave up the overlap of wgmma with other work: still right, and a quarter slower.
_SERIALIZED = re.compile(r"C75\d\d|wgmma.*serializ", re.IGNORECASE)
# "/*0050*/   @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;"
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


@dataclass(frozen=True)
class FunctionFacts:
    """What ptxas says of one kernel function: registers of a thread, the larger of spill stores and loads in bytes."""

    name: str
    num_registers: int
    spill_bytes: int


@dataclass(frozen=True)
class KernelFacts:
    """What is known of an artifact's machine code.

    Args:
        functions: the kernel functions.
        opcodes: SASS opcodes that occur; None where no disassembler was found.
        remark: says what is missing from these facts; empty where nothing is.
        serialized: ptxas' words where it serialized wgmma.
    """

    functions: tuple[FunctionFacts, ...]
    opcodes: frozenset[str] | None
    remark: str
    serialized: tuple[str, ...] = ()


def inspect_artifact(artifact: Artifact) -> KernelFacts:
    """Read registers and spills from the compilers' log, and opcodes through cuobjdump where there is one."""
    log = artifact.log.read_text(errors="replace")
    functions = tuple(_functions(log))
    serialized = tuple(line.strip() for line in log.splitlines() if _SERIALIZED.search(line))
    disassembler = find_disassembler()
    if disassembler is None:
        remark = "opcodes unknown: no cuobjdump in PATH, CUDA_HOME or triton's wheel"
        return KernelFacts(functions, None, remark, serialized)
    sass = subprocess.run(
        [disassembler, "-sass", artifact.library],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DISASSEMBLE_TIMEOUT_S,
        check=False,
    )
    opcodes = opcodes_of(sass.stdout)
    if functions and not opcodes:
        said = (sass.stderr.strip().splitlines() or ["nothing"])[0]
        return KernelFacts(functions, None, f"opcodes unknown: {disassembler} said {said}", serialized)
    return KernelFacts(functions, opcodes, "", serialized)


def problems(facts: KernelFacts, expected: SassExpectation) -> list[str]:
    """Where machine code is not what its spec expects, one line each; opcodes only where they are known."""
    found = [f"ptxas: {line}" for line in facts.serialized]
    for function in facts.functions:
        if expected.max_registers is not None and function.num_registers > expected.max_registers:
            found.append(f"{function.name}: {function.num_registers} registers, expected <= {expected.max_registers}")
        if function.spill_bytes > expected.max_spill_bytes:
            found.append(f"{function.name}: spills {function.spill_bytes} B, expected <= {expected.max_spill_bytes}")
    if facts.opcodes is not None:
        found += [f"opcode {o} is missing" for o in expected.opcodes if not _occurs(o, facts.opcodes)]
        found += [f"opcode {o} must not occur" for o in expected.forbidden if _occurs(o, facts.opcodes)]
    return found


def find_disassembler() -> Path | None:
    """cuobjdump, with nvdisasm beside it, in CUDA_HOME, on PATH or in triton's wheel; None where there is none."""
    home = env.cuda_home()
    on_path = shutil.which("cuobjdump")
    triton = find_spec("triton")
    folders = [home / "bin"] if home is not None else []
    folders += [Path(on_path).parent] if on_path else []
    folders += [Path(p) / "backends/nvidia/bin" for p in (triton.submodule_search_locations or [])] if triton else []
    return next((f / "cuobjdump" for f in folders if (f / "cuobjdump").is_file()), None)


def opcodes_of(sass: str) -> frozenset[str]:
    """Opcodes, with their modifiers, in a disassembly."""
    return frozenset(match[1] for match in _INSTRUCTION.finditer(sass))


def _occurs(opcode: str, opcodes: frozenset[str]) -> bool:
    return any(found == opcode or found.startswith(opcode + ".") for found in opcodes)


def _functions(log: str) -> list[FunctionFacts]:
    functions = []
    name, spill_bytes = "", 0
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            name, spill_bytes = match[1], 0
        elif (match := _SPILLS.search(line)) and name:
            # Of device functions that were not inlined as well: they are counted with the kernel they belong to.
            spill_bytes = max(spill_bytes, int(match[1]), int(match[2]))
        elif (match := _REGISTERS.search(line)) and name:
            functions.append(FunctionFacts(name, int(match[1]), spill_bytes))
            name = ""
    return functions
