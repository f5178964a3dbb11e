# SPDX-License-Identifier: Apache-2.0
"""A group of ranks that run collectives together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed import Store

from distributed_fi.comm import join
from distributed_fi.comm.backend import Backend, LocalBackend
from distributed_fi.comm.deadline import check_timeout
from distributed_fi.comm.fingerprint import DTYPES, Call, sizes_digest
from distributed_fi.comm.operand import (
    SUM_DTYPES,
    agreed_shape,
    byte_view,
    check_norm_operands,
    check_operand,
    check_sum,
    contiguous_target,
    delivered,
    dim_index,
    even_rows,
    output_like,
    rank_sizes,
)
from distributed_fi.comm.store_check import StoreCheck
from distributed_fi.errors import CollectiveError, InvalidArgumentError
from distributed_fi.kernels.norm.rmsnorm import fused_add_rmsnorm


class Group:
    """A set of ranks that run collectives together; made by from_store, from_process_group or single.

    Every rank makes the same calls in the same order. Attributes: rank, world_size, device, name, timeout_s,
    backend ("gloo", "nccl", "local").

    CPU: a call returns when it is done. Sums are in rank order, in float32 for float32, bfloat16 and float16
    (float64 in float64, integers exact, modulo their range): the result is bitwise the same on every rank and
    from run to run. What the ranks call (operation, number, dtype, shape, sizes) travels with the data and is
    always compared.

    CUDA: a call is issued on the current stream and never blocks the host (barrier does); graph-capturable.
    Sums are in NCCL's order and precision: the same on all ranks, but not the rank order. synchronize() waits
    for the stream with a deadline. With check=True the calls are compared on the host first (0.5 ms each).

    timeout_s bounds joining and, on the CPU, every call. On CUDA it bounds barrier and synchronize only: the
    other calls do not wait, and a hung one shows there. After a failure the group is broken: each later call
    raises at once with the first cause. An InvalidArgumentError does not break it: nothing was sent. One thread
    at a time. No call is differentiable: inputs that require grad are read, results never do. Inference mode and
    grad mode may change from call to call.
    """

    def __init__(
        self,
        backend: Backend,
        rank: int,
        world_size: int,
        *,
        device: torch.device,
        timeout_s: float,
        name: str,
    ):
        self.rank, self.world_size, self.device = rank, world_size, device
        self.timeout_s, self.name, self.backend = timeout_s, name, backend.name
        self._backend = backend
        self._store: Store | None = None  # kept alive: rank 0's may be the server
        self._check: StoreCheck | None = None
        self._last = Call("barrier", 0, torch.uint8, ())
        self._broken: CollectiveError | None = None
        self._is_closed = False

    @classmethod
    def from_store(
        cls,
        store: Store,
        rank: int,
        world_size: int,
        *,
        device: torch.device | str = "cpu",
        timeout_s: float = 30.0,
        name: str = "world",
        host: str | None = None,
        check: bool = False,
    ) -> Self:
        """Make a group of its own process group, beside torch's default one, which it neither needs nor touches.

        Args:
            store: any torch.distributed Store that all ranks reach; the group keeps it alive. Keys are prefixed
                with the name, so that several groups, and several of one name one after the other, share a store.
            rank: in [0, world_size).
            device: cpu (gloo) or one CUDA device (NCCL).
            timeout_s: bound of joining and of every call that waits (see the class), seconds.
            host: address on which this rank listens for its peers (gloo). None: loopback where the store is on
                loopback, else gloo's choice (GLOO_SOCKET_IFNAME, or the host name's address).
            check: compare calls on the host before they are issued (CUDA; the CPU always compares).
        Raises:
            InvalidArgumentError: a rank, world_size, device or timeout out of range.
            CollectiveTimeoutError: a rank did not join in time; names it.
            CollectiveError: the ranks disagree about world_size or device, or could not be connected.
        """
        own = join.Member(rank, world_size, join.group_device(device), check_timeout(timeout_s), name)
        if world_size == 1:
            return cls(LocalBackend(own.device, name), 0, 1, device=own.device, timeout_s=own.timeout_s, name=name)
        prefixed, backend = join.connect(store, own, host=host)
        group = cls(backend, rank, world_size, device=own.device, timeout_s=own.timeout_s, name=name)
        group._store = store
        if check and own.device.type == "cuda":
            group._check = StoreCheck(prefixed, rank, world_size, name=name, timeout_s=own.timeout_s)
        return group

    @classmethod
    def from_process_group(
        cls,
        process_group: Any,
        *,
        device: torch.device | str | None = None,
        timeout_s: float = 30.0,
        name: str = "adopted",
    ) -> Self:
        """Run on an existing torch.distributed process group, which stays its owner's.

        Args:
            process_group: a ProcessGroup whose backend for `device` is gloo (CPU) or NCCL (CUDA). gloo: the
                group sends messages of three tags of its own. close() leaves it as it is; a timeout ends it.
            device: None takes CUDA's current device where the process group serves it by NCCL, else the CPU.
        Raises:
            UnsupportedError: another backend.
        """
        rank, world_size = process_group.rank(), process_group.size()
        where = join.group_device(join.main_device(process_group) if device is None else device)
        own = join.Member(rank, world_size, where, check_timeout(timeout_s), name)
        backend = join.adopt(process_group, own)
        return cls(backend, rank, world_size, device=own.device, timeout_s=own.timeout_s, name=name)

    @classmethod
    def single(cls, device: torch.device | str = "cpu", *, timeout_s: float = 30.0, name: str = "single") -> Self:
        """A group of one rank: every call is local and needs no store."""
        where = join.group_device(device)
        return cls(LocalBackend(where, name), 0, 1, device=where, timeout_s=check_timeout(timeout_s), name=name)

    def all_reduce(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Sum over the ranks, on every rank.

        out = sum over r of x_r

        Args:
            x: any shape, the same on all ranks; float32, float64, bfloat16, float16, int32, int64 or uint8.
            out: x's shape and dtype; x itself for in place, else memory that does not overlap it. None allocates.
        Returns:
            `out`.
        Raises:
            InvalidArgumentError: a tensor of wrong type, dtype, device or shape.
            CollectiveError, CollectiveTimeoutError: see the class.
        """
        check_operand(x, SUM_DTYPES, self.device)
        result = output_like(x, out, x.shape, may_be_x=True)
        target = contiguous_target(result)
        self._run("all_reduce", x.dtype, x.shape, 0, self._backend.all_reduce, x.contiguous(), target)
        return delivered(result, target)

    def all_gather(
        self, x: Tensor, *, dim: int = 0, sizes: Sequence[int] | None = None, out: Tensor | None = None
    ) -> Tensor:
        """The ranks' tensors, joined along one dimension in rank order.

        out = cat([x_0, x_1, ...], dim)

        Args:
            x: at least one dimension; the same shape on all ranks but for `sizes`; any dtype.
            dim: the dimension to join along, may be negative.
            sizes: x_r.shape[dim] of every rank r, where they differ; the same list on all ranks.
            out: where to write; must not overlap x. None allocates.
        Returns:
            x's shape with the sum of the sizes at `dim`.
        Raises: as all_reduce.
        """
        check_operand(x, DTYPES, self.device)
        axis = dim_index(x, dim)
        lengths = rank_sizes("sizes", sizes, self.world_size, even=x.shape[axis])
        if lengths[self.rank] != x.shape[axis]:
            raise InvalidArgumentError("sizes", lengths, f"{x.shape[axis]} for rank {self.rank}, as x has there")
        shapes = [[*x.shape[:axis], n, *x.shape[axis + 1 :]] for n in lengths]
        result = output_like(x, out, [*x.shape[:axis], sum(lengths), *x.shape[axis + 1 :]])
        # One part after the other in memory is the result itself where nothing but 1s stands before the dimension.
        is_joined = prod(x.shape[:axis]) == 1 and result.is_contiguous()
        staging = result if is_joined else x.new_empty(result.numel())
        counts = [prod(shape) * x.itemsize for shape in shapes]
        agreed, digest = agreed_shape(x.shape, axis, sizes)
        flat = (byte_view(x), byte_view(staging), counts)
        self._run("all_gather", x.dtype, agreed, digest, self._backend.all_gather, *flat)
        if is_joined:
            return result
        parts = staging.split([prod(shape) for shape in shapes])
        with torch.inference_mode():
            torch.cat([p.view(shape) for p, shape in zip(parts, shapes, strict=True)], axis, out=result)
        return result

    def reduce_scatter(self, x: Tensor, *, sizes: Sequence[int] | None = None, out: Tensor | None = None) -> Tensor:
        """Sum over the ranks, of which each rank gets its rows.

        out on rank r = (sum over ranks of x)[start_r : start_r + sizes[r]]

        Args:
            x: [rows, ...], the same shape on all ranks; dtypes of all_reduce.
            sizes: rows of every rank, the same list on all ranks; None divides x evenly.
            out: where to write; must not overlap x. None allocates.
        Returns:
            [sizes[rank], ...].
        Raises: as all_reduce.
        """
        check_operand(x, SUM_DTYPES, self.device)
        dim_index(x, 0)
        even = even_rows(x, self.world_size, alternative="sizes=") if sizes is None else 0
        lengths = rank_sizes("sizes", sizes, self.world_size, even=even)
        check_sum("sizes", lengths, x.shape[0])
        result = output_like(x, out, [lengths[self.rank], *x.shape[1:]])
        target = contiguous_target(result)
        counts = [n * prod(x.shape[1:]) for n in lengths]
        digest = 0 if sizes is None else sizes_digest(sizes)
        flat = (x.contiguous().view(-1), target.view(-1), counts)
        self._run("reduce_scatter", x.dtype, x.shape, digest, self._backend.reduce_scatter, *flat)
        return delivered(result, target)

    def broadcast(self, x: Tensor, src: int = 0) -> Tensor:
        """Overwrite x with rank src's x, in place.

        Args:
            x: any shape and dtype, the same on all ranks.
        Returns:
            x.
        Raises: as all_reduce.
        """
        check_operand(x, DTYPES, self.device)
        if not isinstance(src, int) or not 0 <= src < self.world_size:
            raise InvalidArgumentError("src", src, f"a rank in [0, {self.world_size})")
        flat = x if x.is_contiguous() else x.contiguous()
        self._run("broadcast", x.dtype, x.shape, src, self._backend.broadcast, byte_view(flat), src)
        return delivered(x, flat)

    def all_to_all(
        self,
        x: Tensor,
        *,
        send_counts: Sequence[int] | None = None,
        recv_counts: Sequence[int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows from every rank to every rank.

        out = cat over r of (the rows that rank r has for this rank)

        Args:
            x: [rows, ...], first the rows for rank 0, then those for rank 1, ...; any dtype.
            send_counts: rows for each rank; None divides x evenly.
            recv_counts: rows from each rank; given exactly where send_counts is, on all ranks or none.
            out: where to write; must not overlap x. None allocates.
        Returns:
            [sum of recv_counts, ...].
        Raises: as all_reduce.
        """
        check_operand(x, DTYPES, self.device)
        dim_index(x, 0)
        if (send_counts is None) != (recv_counts is None):
            raise InvalidArgumentError("recv_counts", recv_counts, "both send_counts and recv_counts, or neither")
        even = even_rows(x, self.world_size, alternative="counts") if send_counts is None else 0
        sends = rank_sizes("send_counts", send_counts, self.world_size, even=even)
        recvs = rank_sizes("recv_counts", recv_counts, self.world_size, even=even)
        check_sum("send_counts", sends, x.shape[0])
        result = output_like(x, out, [sum(recvs), *x.shape[1:]])
        target = contiguous_target(result)
        row_bytes = prod(x.shape[1:]) * x.itemsize
        counts = ([n * row_bytes for n in sends], [n * row_bytes for n in recvs])
        agreed = x.shape if send_counts is None else (-1, *x.shape[1:])
        self._run("all_to_all", x.dtype, agreed, 0, self._backend.all_to_all, byte_view(x), byte_view(target), *counts)
        return delivered(result, target)

    def all_reduce_residual_rmsnorm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float = 1e-6,
        *,
        norm_out: Tensor | None = None,
        residual_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum over the ranks, residual addition and RMSNorm.

        residual_out = sum over r of x_r + residual
        norm_out = residual_out / sqrt(mean(residual_out^2) + eps) * weight

        Args:
            x: [..., hidden_size], float32, bfloat16 or float16: this rank's part of the sum.
            residual: x's shape and dtype, the same values on all ranks.
            weight: [hidden_size], x's dtype.
            eps: added to the mean square.
            norm_out: where to write the norm; may be x, else memory that overlaps no other operand. None allocates.
            residual_out: where to write the sum; may be residual, else as norm_out. None allocates.
        Returns:
            norm_out and residual_out, both of x's shape and dtype.
        Raises: as all_reduce.
        Notes: the sum over the ranks is rounded to x's dtype before the residual is added.
        """
        device = self.device
        check_norm_operands(x, residual, weight, norm_out=norm_out, residual_out=residual_out, device=device)
        total = torch.empty_like(residual.detach()) if residual_out is None else residual_out
        norm = self.all_reduce(x, out=norm_out)
        with torch.inference_mode():
            fused_add_rmsnorm(norm, delivered(total, residual), weight, eps)
        return norm, total

    def barrier(self) -> None:
        """Return when every rank has called it; on CUDA also when the current stream has come that far.

        Raises:
            CollectiveTimeoutError: a rank did not come in time.
        """
        self._run("barrier", torch.uint8, (), 0, self._backend.barrier)
        if self.device.type == "cuda":
            self.synchronize()

    def synchronize(self, timeout_s: float | None = None) -> None:
        """Wait on the host until the current stream has ended, at most timeout_s (default: the group's).

        Raises:
            CollectiveTimeoutError: it has not; names the oldest collective that has not ended. The group is
                broken and its communicator aborted, which frees the stream.
        Notes: nothing to do on the CPU, where calls return when they are done.
        """
        self._raise_if_unusable()
        limit = self.timeout_s if timeout_s is None else check_timeout(timeout_s)
        try:
            self._backend.synchronize(self._last, limit)
        except BaseException as error:
            self._break(error)
            raise

    def close(self) -> None:
        """Leave the group. Never hangs; peers that still call into the group get an error. May be repeated."""
        self._is_closed = True
        self._backend.close()
        self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Group({self.name!r}, rank {self.rank} of {self.world_size}, {self.device}, {self.backend})"

    def _run(
        self,
        op: str,
        dtype: torch.dtype,
        shape: Sequence[int],
        detail: int,
        collective: Callable[..., None],
        *args: Any,
    ) -> None:
        """Number the call, carry it out, and remember the first failure."""
        self._raise_if_unusable()
        call = self._last = Call(op, self._last.seq + 1, dtype, tuple(shape), detail)
        try:
            if self._check is not None:
                self._check.compare(call)
            # One state for all that is kept and written, whatever state of autograd the caller is in.
            with torch.inference_mode():
                collective(call, *args)
        except BaseException as error:  # KeyboardInterrupt too: the peers are then one call ahead
            self._break(error)
            raise

    def _raise_if_unusable(self) -> None:
        if self._broken is None and not self._is_closed:
            return
        cause = self._broken
        problem = f"broken since: {cause}" if cause else "it was closed"
        seq = self._last.seq + 1
        raise CollectiveError(self.rank, "call", seq, f"group {self.name!r}: {problem}") from cause

    def _break(self, error: BaseException) -> None:
        op, seq = self._last.op, self._last.seq
        if isinstance(error, CollectiveError):
            self._broken = error
        else:
            self._broken = CollectiveError(self.rank, op, seq, f"group {self.name!r}: interrupted by {error!r}")
        self._backend.abort()
