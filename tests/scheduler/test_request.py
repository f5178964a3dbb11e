# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from distributed_fi.config import SamplingParams
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.plan.item import SampleSpec
from distributed_fi.scheduler.request import Request, RequestState, TokenEvent


def started(*, max_new_tokens: int = 4, num_pending: int = 1, **fields: object) -> Request:
    """A request with this many tokens under way."""
    given = {"prompt_token_ids": [5, 6, 7], "params": SamplingParams(), "seed": 0, "eos_token_ids": (2,)}
    request = Request("a", **(given | fields))
    request.max_new_tokens, request.num_pending = max_new_tokens, num_pending
    return request


def test_a_new_request_waits():
    request = Request("a", [5, 6, 7], SamplingParams(), seed=1)
    assert (request.state, request.finish_reason, request.num_tokens) == (RequestState.WAITING, None, 3)


def test_sampling_takes_the_seed_of_the_request():
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=None)
    assert Request("a", [5], params, seed=2**63 - 1).sampling == SampleSpec(0.5, 3, 0.9, 0.1, 2**63 - 1)


def test_tokens_are_counted_from_zero_until_the_length_is_reached():
    request = started(max_new_tokens=2, num_pending=2)
    assert request.receive(9) == TokenEvent("a", 9, 0, None)
    assert request.receive(8) == TokenEvent("a", 8, 1, "length")
    assert (request.generated, request.num_pending) == ([9, 8], 0)


def test_an_end_token_is_reported_with_its_reason():
    assert started().receive(2) == TokenEvent("a", 2, 0, "stop")


def test_an_end_token_at_the_length_counts_as_stop():
    assert started(max_new_tokens=1).receive(2).finish_reason == "stop"


def test_a_request_may_ignore_the_models_end_tokens_but_not_its_own():
    params = SamplingParams(ignore_eos=True, stop_token_ids=(4,))
    assert started(params=params).receive(2).finish_reason is None
    assert started(params=params).receive(4).finish_reason == "stop"


def test_no_token_is_an_error():
    request = started()
    assert request.receive(-1) == TokenEvent("a", -1, 0, "error")
    assert request.generated == []


@pytest.mark.parametrize("prompt", [[], (), np.zeros(0, np.int32)])
def test_an_empty_prompt_is_refused(prompt: object):
    with pytest.raises(InvalidArgumentError, match=r"prompt_token_ids: expected at least one token, got \[\]"):
        Request("a", prompt, SamplingParams(), seed=0)


@pytest.mark.parametrize("prompt", [[1, -1], [2**31], [2**70], [1.5], ["a"], [[1, 2]]])
def test_what_is_no_token_id_is_refused(prompt: list[object]):
    with pytest.raises(InvalidArgumentError, match=r"prompt_token_ids: expected a sequence of integers in \[0, 2\^31"):
        Request("a", prompt, SamplingParams(), seed=0)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int):
    with pytest.raises(InvalidArgumentError, match=f"seed: expected .*, got {seed}"):
        Request("a", [1], SamplingParams(), seed=seed)
