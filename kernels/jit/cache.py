# SPDX-License-Identifier: Apache-2.0
"""Content-addressed folder of built kernels, shared by any number of processes without a lock.

An artifact is written in a staging folder of the same file system and appears under its final name by one rename.
A rename onto an artifact that is there fails, so the first builder wins and the others use what it built.
A killed builder leaves its staging folder behind; whoever builds next removes those that are old.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distributed_fi import env
from distributed_fi.kernels.jit.artifact import Artifact, Manifest, folder_name, read_artifact

STAGING = "staging"
LOGS = "logs"
ABANDONED_AFTER_S = 3600.0
_log = logging.getLogger(__name__)
_reported: set[Path] = set()


@dataclass(frozen=True)
class ArtifactCache:
    """Artifacts under `root`, and under `fallback` where root cannot be written."""

    root: Path
    fallback: Path | None = None

    def find(self, name: str, arch: str, key: str) -> Artifact | None:
        """The intact artifact of a key, or None."""
        if (artifact := read_artifact(self.root / folder_name(name, arch, key))) is not None:
            return artifact
        if self.fallback is None or not _is_ours_alone(self.fallback.parent):
            return None
        return read_artifact(self.fallback / folder_name(name, arch, key))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A fresh folder beside the artifacts, gone afterwards."""
        parent = self._writable() / STAGING
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, manifest: Manifest) -> Artifact:
        """Move a finished folder out of staging to its final name, or take the one that came first.

        Raises:
            OSError: neither could be done.
        """
        final = folder.parent.parent.parent / folder_name(manifest.name, manifest.arch, manifest.key)
        for _ in range(100):
            try:
                folder.rename(final)
            except OSError:
                if (winner := read_artifact(final)) is not None:
                    return winner
                _move_away(final, folder.parent)
                continue
            break
        artifact = read_artifact(final)
        if artifact is None:
            raise OSError(f"{final}: damaged while it was published")
        return artifact

    def keep_log(self, log: Path, name: str) -> Path:
        """Save the log of a failed build where its message can point to."""
        folder = log.parents[3] / LOGS
        folder.mkdir(exist_ok=True)
        return Path(shutil.copy(log, folder / f"{name.replace('/', '.')}-{os.getpid()}-{time.time_ns()}.log"))

    def _writable(self) -> Path:
        try:
            _probe(self.root)
        except OSError as error:
            if self.fallback is None:
                raise
            _make_private(self.fallback.parent)
            _probe(self.fallback)
            if self.root not in _reported:
                _reported.add(self.root)
                _log.warning("%s cannot be written (%s): kernels go to %s", self.root, error.strerror, self.fallback)
            return self.fallback
        return self.root


def kernel_cache() -> ArtifactCache:
    """The cache of DFI_CACHE_DIR, with a private folder for temporary files as its fallback."""
    return ArtifactCache(env.cache_dir(), _private_folder())


def _private_folder() -> Path:
    """A folder for this user alone, the same for all of the user's processes."""
    return Path(tempfile.gettempdir()) / f"distributed_fi-{os.getuid()}" / "kernels"


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours_alone(folder):
        raise PermissionError(errno.EPERM, "others can write there", str(folder))


def _is_ours_alone(folder: Path) -> bool:
    """Anyone can create names in the folder for temporary files: code is loaded only from where no other can write."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _probe(root: Path) -> None:
    """Raise OSError unless files can be created under root, which is created where needed."""
    (root / STAGING).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root / STAGING):
        pass


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir():
        try:
            newest = max(p.stat().st_mtime for p in (folder, *folder.rglob("*")))
        except OSError:
            continue  # its builder has just finished
        if time.time() - newest > ABANDONED_AFTER_S:
            shutil.rmtree(folder, ignore_errors=True)


def _move_away(damaged: Path, staging: Path) -> None:
    """Take a damaged artifact out of the way; a loader that has it mapped keeps it until it ends."""
    try:
        damaged.rename(staging / f"damaged-{time.time_ns()}")
    except FileNotFoundError:
        return  # somebody else did
