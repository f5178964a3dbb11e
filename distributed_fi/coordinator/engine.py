# SPDX-License-Identifier: Apache-2.0
"""The engine: a model served by a gang of ranks, requests in, token events out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from distributed_fi.config import EngineConfig, SamplingParams
from distributed_fi.coordinator.gang import Gang, LoadProgress, PoolNeed
from distributed_fi.coordinator.limits import page_bytes, plan_bytes, resolve_dtype
from distributed_fi.coordinator.served_model import Prompt, ServedModel
from distributed_fi.coordinator.step_loop import StepLoop
from distributed_fi.coordinator.step_stats import StepStats
from distributed_fi.errors import EngineClosedError
from distributed_fi.scheduler.request import Request
from distributed_fi.scheduler.scheduler import Scheduler, TokenEvent
from distributed_fi.workers.ring.writer import RingWriter
from distributed_fi.workers.step_hook import load_step_hook

EPOCH = 1
RING_SLOTS = 4
ERROR_TEXT_BYTES = 4096  # of a rank's failure
BROADCASTS_MEASURED = 100


@dataclass
class Completion:
    """One request's answer so far; `finish_reason` is stop, length, cancelled or error once it ended."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


class Engine:
    """Serves one model on its mesh until closed; use it as a context manager.

        with Engine(EngineConfig(model="SmolLM2.gguf", mesh=Mesh(tp=2))) as engine:
            for completion in engine.generate(["Once upon a time"], SamplingParams(max_tokens=20)):
                print(engine.model.tokenizer.decode(completion.token_ids))

    Args:
        model: what to serve and how, or a ServedModel, whose tokenizer may have served already.
        on_load: called with (bytes read, bytes in all) while the ranks load weights.
    Raises:
        InvalidArgumentError, NotFoundError, CorruptWeightsError, ResourceError, UnreachableError: before any
            rank is started where that can be known; nothing is left running.
    Notes: not thread-safe; one thread adds requests and turns the steps.
    """

    def __init__(self, model: EngineConfig | ServedModel, *, on_load: LoadProgress | None = None):
        self.model = model if isinstance(model, ServedModel) else ServedModel(model)
        self.config, self.stats = self.model.config, StepStats()
        self.completions: dict[str, Completion] = {}
        self._arrival_s: dict[str, float] = {}
        self._next_id = 0
        self.hook = load_step_hook(self.config.step_hook)
        # Made and given up at once: a /dev/shm too small is found before Ray is started.
        self._make_ring(self.model.limits.wanted_pages).close()
        self.gang = Gang(self.config)
        try:
            self._start(on_load)
        except BaseException:
            self.gang.stop(is_broken=True)
            raise

    def _start(self, on_load: LoadProgress | None) -> None:
        config, mesh = self.config, self.config.mesh
        begun = time.monotonic()
        device_type = self.gang.start()
        dtype = resolve_dtype(config, self.model.shape, device_type)
        need = PoolNeed(
            page_bytes=[page_bytes(config, self.model.shape, rank, dtype) for rank in range(mesh.world_size)],
            wanted_pages=self.model.limits.wanted_pages,
            least_pages=self.model.limits.least_pages,
        )
        num_pages = self.gang.load(dtype, self.model.limits.max_model_len, need, on_load)
        ring = self._make_ring(num_pages)
        self.gang.open_ring(ring, epoch=EPOCH)
        self.scheduler = Scheduler(
            mesh_dp=mesh.dp,
            num_pages=num_pages,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_batch_tokens=config.max_batch_tokens,
            max_model_len=self.model.limits.max_model_len,
            run_ahead=config.run_ahead,
        )
        self.loop = StepLoop(
            self.scheduler,
            ring,
            mesh,
            epoch=EPOCH,
            page_size=config.page_size,
            run_ahead=config.run_ahead,
            timeout_s=config.step_timeout_s,
            hook=self.hook,
            stats=self.stats,
        )
        self.loop.measure_broadcast(BROADCASTS_MEASURED)
        self.stats.load_s = time.monotonic() - begun

    def _make_ring(self, num_pages: int) -> RingWriter:
        return RingWriter.create(
            self.config.mesh.world_size,
            slot_bytes=plan_bytes(self.config, num_pages),
            reply_bytes=max(4 * self.config.max_num_seqs, ERROR_TEXT_BYTES),
            num_slots=RING_SLOTS,
            epoch=EPOCH,
        )

    def add_request(self, prompt: Prompt, params: SamplingParams, *, request_id: str | None = None) -> str:
        """Queue a prompt, text or token ids; its tokens come from the following `step()` calls.

        Raises:
            InvalidArgumentError: an empty prompt, one too long for the model or the KV pool, a token id
                outside the vocabulary, or an id in use.
        """
        token_ids = self.model.encode(prompt)
        if request_id is None:
            request_id, self._next_id = f"request-{self._next_id}", self._next_id + 1
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self.scheduler.add(Request(request_id, token_ids, params, seed, self.model.shape.eos_token_ids))
        self.completions[request_id] = Completion(request_id, token_ids)
        self._arrival_s[request_id] = time.monotonic()
        self.stats.num_prompt_tokens += len(token_ids)
        return request_id

    def cancel(self, request_id: str) -> None:
        """End a request early; what it has generated stays in its completion. An ended one stays as it is."""
        if self.scheduler.cancel(request_id):
            self.completions[request_id].finish_reason = "cancelled"

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self.loop.in_flight)

    def step(self) -> list[TokenEvent]:
        """Run one step; the tokens it brought, at most one a request.

        Raises:
            RankError, RankDiedError, StepTimeoutError, PlanError: the gang is broken; close the engine.
            EngineClosedError: it was closed.
        """
        if self.gang.ring is None:
            raise EngineClosedError("the engine is closed")
        begun = time.monotonic()
        events = self.loop.turn()
        now = time.monotonic()
        for event in events:
            completion = self.completions[event.request_id]
            if event.index == 0:
                self.stats.first_token_ms.append(1e3 * (now - self._arrival_s.pop(event.request_id)))
            if event.finish_reason != "error":
                completion.token_ids.append(event.token_id)
            completion.finish_reason = event.finish_reason
        self.stats.num_output_tokens += len(events)
        if any(event.index > 0 for event in events):
            self.stats.decode_s += now - begun
        return events

    def stream(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[TokenEvent]:
        """Queue prompts and yield their tokens as they come; requests are named in the order of the prompts.

        Whoever stops listening cancels what is left. Errors as `add_request`, before any prompt is queued.
        """
        ids = self._add_all(prompts, params)
        try:
            while any(self.completions[i].finish_reason is None for i in ids):
                yield from (event for event in self.step() if event.request_id in ids)
        finally:
            self._forget(ids)

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[Completion]:
        """Answer prompts, all batched together; completions in the order of the prompts.

        Errors as `add_request`, before any prompt is queued.
        """
        ids = self._add_all(prompts, params)
        completions = [self.completions[i] for i in ids]
        try:
            while any(completion.finish_reason is None for completion in completions):
                self.step()
        finally:
            self._forget(ids)
        return completions

    def close(self) -> None:
        """End all ranks, and the local Ray if this engine started it; safe to call twice."""
        if self.gang.ring is None:
            return
        try:
            self.loop.drain()
        except BaseException:
            self.gang.stop(is_broken=True)
            raise
        self.gang.stop()

    def _add_all(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
        encoded = [self.model.encode(prompt) for prompt in prompts]
        return [self.add_request(prompt, params) for prompt in encoded]

    def _forget(self, ids: Sequence[str]) -> None:
        for request_id in ids:
            self.cancel(request_id)
            self.completions.pop(request_id, None)
            self._arrival_s.pop(request_id, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.gang.stop(is_broken=True)
