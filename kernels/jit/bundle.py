# SPDX-License-Identifier: Apache-2.0
"""Built kernels in one archive: made where there is a compiler, used where there is none.

A tar file with a folder per artifact. A kernel is found in it by its sources, parameters, architecture and ABI; which
compilers built it does not matter to who has no compiler.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

from distributed_fi import env
from distributed_fi.errors import InvalidArgumentError, NotFoundError
from distributed_fi.kernels.jit.artifact import LIBRARY, LOG, MANIFEST, Artifact, Manifest, parse_manifest
from distributed_fi.kernels.jit.cache import ArtifactCache

_KEY = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)
_received: list[KernelBundle] = []


class KernelBundle:
    """An archive of artifacts; `origin` names it in errors.

    Raises:
        InvalidArgumentError: it is no such archive, or damaged.
    """

    def __init__(self, contents: bytes, origin: str):
        self.origin = origin
        self._artifacts: dict[tuple[str, str, str], tuple[Manifest, dict[str, bytes]]] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(contents), mode="r:") as tar:
                folders = _folders(tar)
            for files in folders.values():
                manifest = parse_manifest(files[MANIFEST].decode())
                self._artifacts[manifest.name, manifest.arch, manifest.source_key] = manifest, files
                self._check(manifest, files[LIBRARY])
        except (tarfile.TarError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError("kernel bundle", origin, "an archive made by distributed-fi build") from None

    def __len__(self) -> int:
        return len(self._artifacts)

    def install(self, name: str, arch: str, source_key: str, cache: ArtifactCache) -> Artifact | None:
        """Put a kernel into the cache, if it is not there; None where the bundle does not have it."""
        found = self._artifacts.get((name, arch, source_key))
        if found is None:
            return None
        manifest, files = found
        artifact = cache.find(name, arch, manifest.key)
        if artifact is not None and artifact.manifest == manifest:
            return artifact
        with cache.staging() as folder:
            target = folder / "0"
            target.mkdir()
            for file in (LIBRARY, LOG, MANIFEST):
                (target / file).write_bytes(files.get(file, b""))
            return cache.publish(target, manifest)

    def _check(self, manifest: Manifest, library: bytes) -> None:
        intact = hashlib.sha256(library).hexdigest() == manifest.library_sha256
        if not intact or not _KEY.fullmatch(manifest.key):
            raise InvalidArgumentError("kernel bundle", self.origin, f"an undamaged {manifest.name} in it")


def pack(artifacts: Iterable[Artifact]) -> bytes:
    """An archive of artifacts; the same bytes for the same artifacts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as tar:
        for artifact in sorted({a.folder: a for a in artifacts}.values(), key=lambda a: a.folder.name):
            for name in (MANIFEST, LOG, LIBRARY):
                contents = (artifact.folder / name).read_bytes()
                member = tarfile.TarInfo(f"{artifact.folder.name}/{name}")
                member.size = len(contents)
                tar.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def receive_bundle(contents: bytes, origin: str) -> int:
    """Use a bundle for every kernel this process loads from now on; returns how many it has.

    Raises:
        InvalidArgumentError: damaged on the way.
    """
    bundle = KernelBundle(contents, origin)
    _received.append(bundle)
    return len(bundle)


def find_in_bundles(name: str, arch: str, source_key: str, cache: ArtifactCache) -> Artifact | None:
    """A kernel from the bundles this process received, or from DFI_KERNEL_BUNDLE.

    Raises:
        NotFoundError, InvalidArgumentError: DFI_KERNEL_BUNDLE is not there, or no bundle.
    """
    given = env.kernel_bundle()
    bundles = [*reversed(_received), *([_read_bundle(given)] if given is not None else [])]
    for bundle in bundles:
        if (artifact := bundle.install(name, arch, source_key, cache)) is not None:
            return artifact
    if bundles:
        origins = ", ".join(bundle.origin for bundle in bundles)
        _log.warning("%s for %s is not in %s, or was built from other sources", name, arch, origins)
    return None


@functools.cache
def _read_bundle(path: Path) -> KernelBundle:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise NotFoundError("DFI_KERNEL_BUNDLE", str(path), f"a readable file ({error.strerror})") from None
    return KernelBundle(contents, str(path))


def _folders(tar: tarfile.TarFile) -> dict[str, dict[str, bytes]]:
    """Contents of the files in each folder; nothing is written, so names can do no harm."""
    folders: dict[str, dict[str, bytes]] = {}
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        file = tar.extractfile(member) if member.isfile() else None
        if file is not None and name in (LIBRARY, LOG, MANIFEST):
            folders.setdefault(folder, {})[name] = file.read()
    return folders
