# SPDX-License-Identifier: Apache-2.0
"""Requests through one engine: ends, cancellation, streams, refusals. A tiny model with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from distributed_fi.config import EngineConfig, SamplingParams
from distributed_fi.coordinator.engine import Engine
from distributed_fi.errors import EngineClosedError, InvalidArgumentError

pytestmark = pytest.mark.ray

MAX_MODEL_LEN, VOCAB_SIZE = 128, 500
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
PROMPT = (1, 2, 3)
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def shared_engine(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(MODEL))
    config = EngineConfig(model=str(folder), load_format="dummy", max_model_len=MAX_MODEL_LEN, max_num_seqs=4)
    with Engine(config) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The shared engine; every test must leave it without work."""
    yield shared_engine
    while shared_engine.loop.in_flight:
        shared_engine.step()
    assert not shared_engine.has_work
    replica = shared_engine.scheduler.replicas[0]
    assert (replica.num_free_slots, replica.pool.num_used) == (4, 0)


def test_stop_token_ends_a_request_and_is_its_last_token(engine: Engine) -> None:
    (free,) = engine.generate([PROMPT], GREEDY)
    assert (len(free.token_ids), free.finish_reason) == (4, "length")
    stop = free.token_ids[1]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, stop_token_ids=(stop,))
    (stopped,) = engine.generate([PROMPT], params)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]


def test_answer_ends_where_the_context_does(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True)
    (completion,) = engine.generate([(5,) * (MAX_MODEL_LEN - 2)], params)
    assert (len(completion.token_ids), completion.finish_reason) == (2, "length")


def test_completions_are_in_the_order_of_more_prompts_than_slots(engine: Engine) -> None:
    prompts = [(n,) * n for n in range(1, 7)]
    completions = engine.generate(prompts, GREEDY)
    assert [completion.prompt_token_ids for completion in completions] == prompts
    assert all(len(completion.token_ids) == 4 for completion in completions)
    assert engine.completions == {}


def test_cancelled_request_keeps_its_tokens_and_frees_its_slot(engine: Engine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    request_id = engine.add_request(PROMPT, params)
    events = [event for _ in range(3) for event in engine.step()]
    engine.cancel(request_id)
    completion = engine.completions.pop(request_id)
    assert completion.finish_reason == "cancelled"
    assert completion.token_ids == [event.token_id for event in events]
    assert len(events) == 3
    assert engine.scheduler.num_running == 0
    while engine.has_work:
        assert engine.step() == []  # its tokens in flight are dropped


def test_cancelling_an_ended_request_changes_nothing(engine: Engine) -> None:
    request_id = engine.add_request(PROMPT, GREEDY)
    while engine.has_work:
        engine.step()
    engine.cancel(request_id)
    assert engine.completions.pop(request_id).finish_reason == "length"


def test_stream_yields_the_tokens_that_generate_returns(engine: Engine) -> None:
    prompts = [PROMPT, (9, 8)]
    expected = [completion.token_ids for completion in engine.generate(prompts, GREEDY)]
    streamed: dict[str, list[int]] = {}
    for event in engine.stream(prompts, GREEDY):
        answer = streamed.setdefault(event.request_id, [])
        assert event.index == len(answer)
        assert event.finish_reason == ("length" if event.index == 3 else None)
        answer.append(event.token_id)
    assert list(streamed.values()) == expected
    assert engine.completions == {}


def test_abandoned_stream_cancels_its_requests_alone(engine: Engine) -> None:
    other = engine.add_request((7,), SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    stream = engine.stream([PROMPT, (9, 8)], SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True))
    next(stream)
    assert engine.scheduler.num_running == 3
    stream.close()
    assert engine.scheduler.num_running == 1
    assert list(engine.completions) == [other]
    while engine.has_work:
        engine.step()
    completion = engine.completions.pop(other)
    assert (len(completion.token_ids), completion.finish_reason) == (8, "length")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), r"^prompt: expected at least one token, got $"),
        ((1,) * MAX_MODEL_LEN, r"^prompt: expected fewer than 128 tokens, .*, got 128 tokens$"),
        ((1, 500), r"^prompt: expected token ids in \[0, 500\), got \(1, 500\)$"),
        ((1, -1), r"^prompt: expected token ids in \[0, 500\), got \(1, -1\)$"),
    ],
    ids=["no tokens", "too long", "beyond the vocabulary", "negative"],
)
def test_bad_prompt_is_refused_and_the_good_one_beside_it_is_not_queued(
    engine: Engine, prompt: tuple[int, ...], message: str
) -> None:
    for call in (engine.generate, lambda *arguments: list(engine.stream(*arguments))):
        with pytest.raises(InvalidArgumentError, match=message):
            call([PROMPT, prompt], GREEDY)
        assert not engine.has_work
        assert engine.completions == {}


def test_unfinished_id_is_not_given_twice(engine: Engine) -> None:
    engine.add_request(PROMPT, GREEDY, request_id="mine")
    with pytest.raises(InvalidArgumentError, match=r"^request_id: .*, got mine$"):
        engine.add_request(PROMPT, GREEDY, request_id="mine")
    while engine.has_work:
        engine.step()
    assert len(engine.completions.pop("mine").token_ids) == 4


def test_summary_counts_what_was_served(engine: Engine) -> None:
    before = engine.stats.summary()
    engine.generate([PROMPT, (9, 8)], GREEDY)
    summary = engine.stats.summary()
    assert (before["num_prompt_tokens"] or 0) + 5 == summary["num_prompt_tokens"]
    assert (before["num_output_tokens"] or 0) + 8 == summary["num_output_tokens"]
    timed = ("load_s", "prefill_ms", "tokens_per_s", "step_broadcast_p50_us", "step_broadcast_p99_us")
    assert all((summary[name] or 0) > 0 for name in timed)


def test_closed_engine_says_so_and_closes_twice(shared_engine: Engine) -> None:
    """The last test of this module: nothing is served after it."""
    shared_engine.close()
    with pytest.raises(EngineClosedError, match=r"^the engine is closed$"):
        shared_engine.step()
    shared_engine.close()
