# SPDX-License-Identifier: Apache-2.0
"""All files a kernel is compiled from: its sources and, transitively, the headers of our own they include."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from distributed_fi.errors import NotFoundError
from distributed_fi.kernels.jit.spec import INCLUDE_DIRS, KernelSpec

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*["<]([^">]+)[">]', re.MULTILINE)


def source_digests(spec: KernelSpec) -> list[tuple[str, str]]:
    """Name as included and SHA-256 of the contents of every file of a kernel, sources first.

    Includes in branches the preprocessor would skip count as well: one rebuild too many is harmless, one too few not.
    Headers found neither beside the including file nor in our include folders belong to the toolchain and are left out.

    Raises:
        NotFoundError: a source file is not there.
    """
    waiting = list(zip(spec.sources, spec.source_paths(), strict=True))
    digests: list[tuple[str, str]] = []
    seen: set[Path] = set()
    while waiting:
        name, path = waiting.pop(0)
        if path in seen:
            continue
        seen.add(path)
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise NotFoundError(f"source of {spec.name}", str(path), f"a readable file ({error.strerror})") from None
        # An absolute source says where it lies on this machine, which is nothing the artifact depends on.
        digests.append((Path(name).name if Path(name).is_absolute() else name, hashlib.sha256(contents).hexdigest()))
        waiting.extend(_own_includes(path, contents))
    return digests


def _own_includes(path: Path, contents: bytes) -> Iterator[tuple[str, Path]]:
    for match in _INCLUDE.finditer(contents):
        name = match[1].decode(errors="replace")
        for folder in (path.parent, *INCLUDE_DIRS):
            header = (folder / name).resolve()
            if header.is_file():
                yield name, header
                break
