# SPDX-License-Identifier: Apache-2.0
"""A built kernel on disk: a folder with the library, the compilers' log, and a manifest that vouches for both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from distributed_fi.kernels.jit.sources import source_digests
from distributed_fi.kernels.jit.spec import KernelSpec
from distributed_fi.kernels.jit.toolchain import Toolchain, abi

LIBRARY = "kernel.so"
LOG = "build.log"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a folder claims to hold.

    Args:
        name: of the kernel.
        arch: "sm_90a", "cpu", …
        source_key: digest of sources, headers, parameters, flags, architecture and ABI.
        key: the same with the compilers' versions: the address of the artifact.
        toolchain: those versions, to be read by people.
        library_sha256: digest of the library.
    """

    name: str
    arch: str
    source_key: str
    key: str
    toolchain: tuple[str, ...]
    library_sha256: str


@dataclass(frozen=True)
class Artifact:
    """A folder whose library was found to match its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def library(self) -> Path:
        return self.folder / LIBRARY

    @property
    def log(self) -> Path:
        return self.folder / LOG


def source_key(spec: KernelSpec, arch: str) -> str:
    """Digest of all that decides the machine code, but for the compilers."""
    parts = [spec.name, arch, source_digests(spec), spec.defines, spec.flags, abi()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def artifact_key(source_key: str, toolchain: Toolchain) -> str:
    """Digest of all that decides the machine code."""
    return hashlib.sha256(json.dumps([source_key, toolchain.identity()]).encode()).hexdigest()


def folder_name(name: str, arch: str, key: str) -> str:
    """Where in a cache an artifact lies: readable, and unique by its key."""
    return f"{name.replace('/', '.')}-{arch}-{key[:32]}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def parse_manifest(text: str) -> Manifest:
    """The manifest in a text; raises ValueError, TypeError or KeyError where there is none."""
    fields = json.loads(text)
    return Manifest(**{**fields, "toolchain": tuple(fields["toolchain"])})


def read_artifact(folder: Path) -> Artifact | None:
    """The artifact in a folder; None where there is none, or one that is incomplete or damaged."""
    try:
        manifest = parse_manifest((folder / MANIFEST).read_text())
        intact = file_digest(folder / LIBRARY) == manifest.library_sha256
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Artifact(folder, manifest) if intact else None
