# SPDX-License-Identifier: Apache-2.0
"""Every error this project raises on purpose.

Each names what was given and what would be right, in one line, and carries the exit code that the
command line ends with: 2 where the caller can mend it (a bad value, a missing file, a machine too
small), 1 where something broke while serving.
"""

from __future__ import annotations


class DfiError(Exception):
    """Base of all errors of this project; each can be pickled, so that it crosses processes as itself."""

    exit_code = 1
    fields: tuple[object, ...] = ()

    def __init__(self, *fields: object):
        super().__init__(*fields)
        self.fields = fields

    def __reduce__(self) -> tuple[type[DfiError], tuple[object, ...], dict[str, object]]:
        # OSError, which some of ours are too, keeps two arguments at most in `args`.
        return type(self), self.fields, self.__dict__


class InvalidArgumentError(DfiError, ValueError):
    """A value the caller passed cannot be used: names the argument, the value, and what would be right."""

    exit_code = 2

    def __init__(self, argument: str, value: object, expected: str):
        super().__init__(argument, value, expected)
        self.argument, self.value, self.expected = argument, value, expected

    def __str__(self) -> str:
        return f"{self.argument}: expected {self.expected}, got {_shown(self.value)}"


class UnsupportedError(InvalidArgumentError):
    """A valid request that this build, backend or device does not serve."""


class NotFoundError(InvalidArgumentError):
    """A named model, file or resource does not exist."""


class CorruptWeightsError(DfiError):
    """A weight file is truncated, damaged, or does not hold what its own header or the model says."""

    exit_code = 2

    def __init__(self, path: str, problem: str):
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class ResourceError(DfiError):
    """The machine or cluster lacks something the request needs: says how much is needed and there."""

    exit_code = 2

    def __init__(self, resource: str, needed: str, available: str):
        super().__init__(resource, needed, available)
        self.resource, self.needed, self.available = resource, needed, available

    def __str__(self) -> str:
        return f"{self.resource}: {self.needed} needed, {self.available} available"


class UnreachableError(DfiError, ConnectionError):
    """A service at a given address did not answer in time."""

    exit_code = 2

    def __init__(self, service: str, address: str, problem: str):
        super().__init__(service, address, problem)
        self.service, self.address, self.problem = service, address, problem

    def __str__(self) -> str:
        return f"{self.service} at {self.address}: {self.problem}"


class CompilerNotFoundError(DfiError):
    """A program that builds kernels is missing: says where it was looked for and what to install."""

    exit_code = 2

    def __init__(self, compiler: str, looked_in: str, remedy: str):
        super().__init__(compiler, looked_in, remedy)
        self.compiler, self.looked_in, self.remedy = compiler, looked_in, remedy

    def __str__(self) -> str:
        return f"{self.compiler}: not found in {self.looked_in}; {self.remedy}"


class KernelBuildError(DfiError):
    """A kernel could not be built: carries the compiler's first error, the failing source, and the whole log's path."""

    def __init__(self, kernel: str, source: str, problem: str, log: str):
        super().__init__(kernel, source, problem, log)
        self.kernel, self.source, self.problem, self.log = kernel, source, problem, log

    def __str__(self) -> str:
        return f"kernel {self.kernel}: {self.source}: {self.problem} (log: {self.log})"


class CollectiveError(DfiError):
    """A collective failed on one rank: names rank, operation, its number in the group, and the cause."""

    def __init__(self, rank: int, op: str, seq: int, problem: str):
        super().__init__(rank, op, seq, problem)
        self.rank, self.op, self.seq, self.problem = rank, op, seq, problem

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.op} (collective {self.seq}): {self.problem}"


class CollectiveTimeoutError(CollectiveError, TimeoutError):
    """A collective did not finish before its deadline, because a peer is late, stopped or dead."""


class PlanError(DfiError):
    """A plan buffer is not what the reader expects: wrong magic, version, epoch, length or digest."""


class RankError(DfiError):
    """A rank failed inside a step: names the rank and carries its error's text."""

    def __init__(self, rank: int, problem: str):
        super().__init__(rank, problem)
        self.rank, self.problem = rank, problem

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.problem}"


class EngineClosedError(DfiError):
    """An engine was used after its end."""


class RankDiedError(RankError):
    """The process of a rank is gone."""


class StepTimeoutError(RankError, TimeoutError):
    """A rank did not answer a step before its deadline."""


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
