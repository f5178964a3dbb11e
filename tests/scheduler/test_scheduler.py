# SPDX-License-Identifier: Apache-2.0
import pytest

from distributed_fi.config import SamplingParams
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.plan.item import StepItem
from distributed_fi.scheduler.request import Request, RequestState, TokenEvent
from distributed_fi.scheduler.scheduler import ScheduledStep, Scheduler

EOS = 2


def make_scheduler(**limits: int) -> Scheduler:
    small = {"mesh_dp": 1, "num_pages": 20, "page_size": 4, "max_num_seqs": 4}
    return Scheduler(**(small | {"max_batch_tokens": 32, "max_model_len": 40, "run_ahead": 1} | limits))


def make_request(request_id: str, *, prompt_len: int = 3, **params: object) -> Request:
    prompt = list(range(100, 100 + prompt_len))
    return Request(request_id, prompt, SamplingParams(**params), seed=0, eos_token_ids=(EOS,))


def shown(item: StepItem) -> tuple[int, list[int], int, bool]:
    """(slot, tokens, start, samples) of an item."""
    return item.slot, list(item.token_ids), item.start, item.sampling is not None


def scheduled(scheduler: Scheduler) -> ScheduledStep:
    step = scheduler.schedule()
    assert step is not None
    return step


def run_step(scheduler: Scheduler, *tokens: int) -> list[TokenEvent]:
    return scheduler.complete(scheduled(scheduler), tokens)


def scheduled_and_done(scheduler: Scheduler, *tokens: int) -> tuple[StepItem, ...]:
    """The items of a step that is run with these tokens."""
    step = scheduled(scheduler)
    scheduler.complete(step, tokens)
    return step.items


def test_a_prompt_is_computed_then_each_token():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", max_tokens=3))
    first = scheduled(scheduler)
    assert [shown(item) for item in first.items] == [(0, [100, 101, 102], 0, True)]
    assert scheduler.complete(first, [7]) == [TokenEvent("a", 7, 0, None)]
    second = scheduled(scheduler)
    assert [shown(item) for item in second.items] == [(0, [7], 3, True)]
    assert scheduler.complete(second, [8]) == [TokenEvent("a", 8, 1, None)]
    assert run_step(scheduler, 9) == [TokenEvent("a", 9, 2, "length")]
    assert not scheduler.has_work
    assert scheduler.schedule() is None


def test_a_long_prompt_is_cut_into_chunks_and_sampled_after_the_last():
    scheduler = make_scheduler(max_batch_tokens=4)
    scheduler.add(make_request("a", prompt_len=9))
    chunks = []
    for tokens in ([], [], [7]):
        step = scheduled(scheduler)
        chunks += [shown(item) for item in step.items]
        scheduler.complete(step, tokens)
    assert [(len(tokens), start, samples) for _, tokens, start, samples in chunks] == [
        (4, 0, False),
        (4, 4, False),
        (1, 8, True),
    ]


def test_pages_cover_the_tokens_so_far():
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request("a", prompt_len=9))
    assert [len(scheduled(scheduler).items[0].pages)] == [2]


def test_decodes_come_first_and_prompts_fill_the_rest():
    scheduler = make_scheduler(max_batch_tokens=6)
    scheduler.add(make_request("a"))
    run_step(scheduler, 7)
    scheduler.add(make_request("b", prompt_len=4))
    scheduler.add(make_request("c", prompt_len=8))
    step = scheduled(scheduler)
    assert [(item.slot, len(item.token_ids)) for item in step.items] == [(0, 1), (1, 4), (2, 1)]
    assert [request.request_id for request in step.sampled] == ["a", "b"]


def test_a_token_not_yet_known_is_planned_by_its_slot():
    scheduler = make_scheduler(run_ahead=2)
    scheduler.add(make_request("a"))
    scheduler.add(make_request("b"))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert [shown(item) for item in second.items] == [(0, [-1], 3, True), (1, [-2], 3, True)]
    assert scheduler.schedule() is None
    scheduler.complete(first, [7, 8])
    third = scheduled(scheduler)
    assert [shown(item) for item in third.items] == [(0, [-1], 4, True), (1, [-2], 4, True)]
    scheduler.complete(second, [9, 10])
    assert [e.token_id for e in scheduler.complete(third, [11, 12])] == [11, 12]


def test_nothing_is_planned_beyond_the_length():
    scheduler = make_scheduler(run_ahead=2)
    scheduler.add(make_request("a", max_tokens=2))
    first, second = scheduled(scheduler), scheduled(scheduler)
    scheduler.complete(first, [7])
    assert scheduler.schedule() is None
    assert scheduler.complete(second, [8]) == [TokenEvent("a", 8, 1, "length")]


def test_the_context_ends_a_request():
    scheduler = make_scheduler(max_model_len=5)
    scheduler.add(make_request("a", prompt_len=3, max_tokens=100))
    assert run_step(scheduler, 7) == [TokenEvent("a", 7, 0, None)]
    assert run_step(scheduler, 8) == [TokenEvent("a", 8, 1, "length")]


def test_a_stop_found_late_drops_the_next_token_and_frees_pages_at_once():
    scheduler = make_scheduler(run_ahead=2)
    scheduler.add(make_request("a"))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert scheduler.complete(first, [EOS]) == [TokenEvent("a", EOS, 0, "stop")]
    assert scheduler.replicas[0].pool.num_used == 0
    assert scheduler.has_work
    assert scheduler.complete(second, [9]) == []
    assert not scheduler.has_work


def test_a_slot_given_back_is_used_while_its_last_step_is_in_flight():
    scheduler = make_scheduler(run_ahead=2, max_num_seqs=1)
    scheduler.add(make_request("a"))
    scheduler.add(make_request("b"))
    first, second = scheduled(scheduler), scheduled(scheduler)
    scheduler.complete(first, [EOS])
    third = scheduled(scheduler)
    assert [shown(item) for item in third.items] == [(0, [100, 101, 102], 0, True)]
    assert scheduler.complete(second, [9]) == []
    assert scheduler.complete(third, [8]) == [TokenEvent("b", 8, 0, None)]


def test_a_sampling_error_ends_only_its_request():
    scheduler = make_scheduler()
    requests = [make_request("a"), make_request("b")]
    for request in requests:
        scheduler.add(request)
    assert run_step(scheduler, -1, 7) == [TokenEvent("a", -1, 0, "error"), TokenEvent("b", 7, 0, None)]
    assert [request.finish_reason for request in requests] == ["error", None]
    assert len(scheduled(scheduler).items) == 1


def test_the_latest_arrival_is_evicted_and_computed_again_with_its_tokens():
    scheduler = make_scheduler(num_pages=6)
    scheduler.add(make_request("old", prompt_len=8, max_tokens=8))
    scheduler.add(make_request("late", prompt_len=6, max_tokens=8))
    for i in range(5):
        run_step(scheduler, 10 + i, 20 + i)
    # "old" has filled 3 pages with 12 tokens and needs a 4th; "late" holds the other 3 with 10 tokens, one more known.
    assert [shown(item) for item in scheduled_and_done(scheduler, 15)] == [(0, [14], 12, True)]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    run_step(scheduler, EOS)
    again = scheduled_and_done(scheduler, 25)
    assert [shown(item) for item in again] == [(0, [*range(100, 106), *range(20, 25)], 0, True)]
    assert run_step(scheduler, EOS) == [TokenEvent("late", EOS, 6, "stop")]


def test_an_evicted_request_comes_back_after_its_token_is_known():
    scheduler = make_scheduler(num_pages=5, max_model_len=16, run_ahead=2)
    requests = [make_request(name, prompt_len=8) for name in ("a", "b")]
    for request in requests:
        scheduler.add(request)
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert [item.slot for item in second.items] == [0]
    assert (requests[1].state, requests[1].num_pending) == (RequestState.WAITING, 1)
    assert scheduler.complete(first, [EOS, 20]) == [TokenEvent("a", EOS, 0, "stop"), TokenEvent("b", 20, 0, None)]
    assert [shown(item) for item in scheduled(scheduler).items] == [(0, [*range(100, 108), 20], 0, True)]
    assert scheduler.complete(second, [9]) == []


def test_an_evicted_request_waits_for_its_token_also_where_another_replica_has_room():
    scheduler = make_scheduler(mesh_dp=2, num_pages=5, max_model_len=16, run_ahead=2)
    for name, prompt_len in {"x": 15, "a": 8, "b": 8}.items():
        scheduler.add(make_request(name, prompt_len=prompt_len))
    first = scheduled(scheduler)
    scheduler.cancel("x")
    second = scheduled(scheduler)
    assert [(item.dp_rank, item.slot) for item in second.items] == [(1, 0)]
    scheduler.complete(first, [9, 10, 20])
    third = scheduled(scheduler)
    assert [(item.dp_rank, list(item.token_ids)) for item in third.items] == [(0, [*range(100, 108), 20]), (1, [-1])]


def test_an_evicted_request_stands_before_those_that_never_ran():
    scheduler = make_scheduler(num_pages=5, max_model_len=16, max_num_seqs=2)
    for name, prompt_len in {"a": 8, "b": 8, "c": 2}.items():
        scheduler.add(make_request(name, prompt_len=prompt_len))
    run_step(scheduler, 10, 20)
    assert [shown(item) for item in scheduled_and_done(scheduler, EOS)] == [(0, [10], 8, True)]
    assert [len(item.token_ids) for item in scheduled_and_done(scheduler, 21, 31)] == [9, 2]


def test_a_request_moved_to_another_replica_keeps_its_age():
    scheduler = make_scheduler(mesh_dp=2, num_pages=5, max_model_len=16)
    scheduler.add(make_request("first", prompt_len=15, max_tokens=1))
    for name, prompt_len in {"a": 8, "b": 8, "late": 2}.items():
        scheduler.add(make_request(name, prompt_len=prompt_len))
    assert [item.dp_rank for item in scheduled_and_done(scheduler, 9, 30, 10, 20)] == [0, 0, 1, 1]
    moved = scheduled_and_done(scheduler, 31, 21, 11)
    assert [(item.dp_rank, len(item.token_ids)) for item in moved] == [(0, 1), (0, 9), (1, 1)]
    for i in range(3):
        run_step(scheduler, 22 + i, 32 + i, 12 + i)
    # "b" needs a page beside "late", which was admitted to this replica before it but arrived after it.
    assert [(item.dp_rank, item.start) for item in scheduled(scheduler).items] == [(0, 12), (1, 12)]


def test_no_more_requests_run_than_a_step_has_tokens():
    scheduler = make_scheduler(max_batch_tokens=2)
    for name in ("a", "b", "c"):
        scheduler.add(make_request(name, prompt_len=1))
    run_step(scheduler, 10, 20)
    run_step(scheduler, 11, 21)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_an_evicted_request_whose_last_token_was_in_flight_is_done():
    scheduler = make_scheduler(num_pages=6, page_size=1, max_batch_tokens=3, run_ahead=2)
    scheduler.add(make_request("a", prompt_len=2, max_tokens=4))
    scheduler.add(make_request("b", prompt_len=3, max_tokens=1))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert scheduler.complete(first, [10]) == [TokenEvent("a", 10, 0, None)]
    third = scheduled(scheduler)
    assert (len(third.items), scheduler.num_waiting) == (1, 1)
    assert scheduler.complete(second, [11, 20])[1] == TokenEvent("b", 20, 0, "length")
    assert scheduler.num_waiting == 0
    assert scheduler.complete(third, [EOS]) == [TokenEvent("a", EOS, 2, "stop")]
    assert not scheduler.has_work


def test_no_request_overtakes_an_older_one():
    scheduler = make_scheduler(num_pages=5)
    scheduler.add(make_request("a", prompt_len=12, max_tokens=1))
    scheduler.add(make_request("long", prompt_len=16, max_tokens=1))
    scheduler.add(make_request("short", prompt_len=2, max_tokens=1))
    assert [len(item.token_ids) for item in scheduled_and_done(scheduler, 7)] == [12]
    assert [len(item.token_ids) for item in scheduled_and_done(scheduler, 7, 7)] == [16, 2]


def test_admission_leaves_a_page_to_those_that_run():
    scheduler = make_scheduler(num_pages=4, max_model_len=16)
    for name in ("a", "b", "c"):
        scheduler.add(make_request(name, prompt_len=4, max_tokens=8))
    assert len(scheduled(scheduler).items) == 2


def test_no_page_is_left_to_those_that_need_none():
    scheduler = make_scheduler(num_pages=3, max_model_len=16)
    for name in ("a", "b", "c"):
        scheduler.add(make_request(name, prompt_len=4, max_tokens=1))
    assert len(scheduled(scheduler).items) == 3


def test_requests_go_to_the_replica_with_the_fewest_pages():
    scheduler = make_scheduler(mesh_dp=2)
    for name, prompt_len in {"a": 9, "b": 3, "c": 3, "d": 12}.items():
        scheduler.add(make_request(name, prompt_len=prompt_len))
    items = scheduled(scheduler).items
    assert [(item.dp_rank, len(item.token_ids)) for item in items] == [(0, 9), (1, 3), (1, 3), (1, 12)]
    assert [item.slot for item in items] == [0, 0, 1, 2]


def test_a_replica_runs_max_num_seqs_requests_at_most():
    scheduler = make_scheduler(mesh_dp=2, max_num_seqs=1)
    for name in ("a", "b", "c"):
        scheduler.add(make_request(name, max_tokens=1))
    assert [(item.dp_rank, item.slot) for item in scheduled_and_done(scheduler, 7, 7)] == [(0, 0), (1, 0)]
    assert [(item.dp_rank, item.slot) for item in scheduled_and_done(scheduler, 7)] == [(0, 0)]


def test_cancelling_a_waiting_request():
    scheduler = make_scheduler(max_num_seqs=1)
    requests = [make_request("a", max_tokens=1), make_request("b")]
    for request in requests:
        scheduler.add(request)
    assert scheduler.cancel("b")
    run_step(scheduler, 7)
    assert (requests[1].state, requests[1].finish_reason) == (RequestState.FINISHED, "cancelled")
    assert not scheduler.has_work


def test_cancelling_a_running_request_drops_its_tokens_in_flight():
    scheduler = make_scheduler(run_ahead=2)
    scheduler.add(make_request("a"))
    scheduler.add(make_request("b", max_tokens=2))
    first, second = scheduled(scheduler), scheduled(scheduler)
    assert scheduler.cancel("a")
    assert scheduler.replicas[0].pool.num_used == 1
    assert scheduler.complete(first, [7, 8]) == [TokenEvent("b", 8, 0, None)]
    assert scheduler.complete(second, [9, 10]) == [TokenEvent("b", 10, 1, "length")]


def test_cancelling_what_is_not_there_is_no_error():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    assert not scheduler.cancel("b")
    assert scheduler.cancel("a")
    assert not scheduler.cancel("a")


def test_an_id_is_free_again_when_its_request_ended():
    scheduler = make_scheduler(run_ahead=2)
    scheduler.add(make_request("a"))
    first = scheduled(scheduler)
    scheduler.cancel("a")
    scheduler.add(make_request("a"))
    second = scheduled(scheduler)
    assert scheduler.complete(first, [7]) == []
    assert scheduler.complete(second, [8]) == [TokenEvent("a", 8, 0, None)]


def test_a_duplicate_id_is_refused():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    with pytest.raises(InvalidArgumentError, match=r"request_id: expected a new request, .*, got a"):
        scheduler.add(make_request("a"))


def test_a_request_is_added_once():
    scheduler = make_scheduler()
    request = make_request("a")
    scheduler.add(request)
    scheduler.cancel("a")
    with pytest.raises(InvalidArgumentError, match="request_id: expected a new request"):
        scheduler.add(request)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers():
    message = "prompt_token_ids: expected at most 39 tokens: .* max_model_len=40, got 40 tokens"
    with pytest.raises(InvalidArgumentError, match=message):
        make_scheduler().add(make_request("a", prompt_len=40))


def test_the_longest_prompt_is_served():
    scheduler = make_scheduler(max_batch_tokens=64)
    scheduler.add(make_request("a", prompt_len=39))
    assert run_step(scheduler, 7) == [TokenEvent("a", 7, 0, "length")]


def test_a_request_that_the_whole_pool_cannot_hold_is_refused():
    scheduler = make_scheduler(num_pages=4)
    message = "expected at most the 4 pages of a replica, got 10 tokens, which need 5 KV pages with max_tokens=8"
    with pytest.raises(InvalidArgumentError, match=message):
        scheduler.add(make_request("a", prompt_len=10, max_tokens=8))
    scheduler.add(make_request("a", prompt_len=10, max_tokens=7))
    assert scheduler.num_waiting == 1


def test_steps_are_completed_in_order():
    scheduler = make_scheduler(run_ahead=2)
    scheduler.add(make_request("a"))
    first, second = scheduled(scheduler), scheduled(scheduler)
    with pytest.raises(InvalidArgumentError, match="step: expected step 0, the oldest in flight, got 1"):
        scheduler.complete(second, [7])
    scheduler.complete(first, [7])
    scheduler.complete(second, [8])
    with pytest.raises(InvalidArgumentError, match="step: expected a step in flight; there is none, got 1"):
        scheduler.complete(second, [8])


def test_a_step_takes_one_token_per_sample():
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    step = scheduled(scheduler)
    with pytest.raises(InvalidArgumentError, match="tokens: expected one for each of 1 samples, got 2 tokens"):
        scheduler.complete(step, [7, 8])
    assert scheduler.complete(step, [7]) == [TokenEvent("a", 7, 0, None)]


@pytest.mark.parametrize(
    "name", ["mesh_dp", "num_pages", "page_size", "max_num_seqs", "max_batch_tokens", "max_model_len"]
)
def test_a_limit_below_one_is_named(name: str):
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected an integer >= 1, got 0"):
        make_scheduler(**{name: 0})


def test_run_ahead_is_one_or_two():
    with pytest.raises(InvalidArgumentError, match="run_ahead: expected 1 or 2, got 3"):
        make_scheduler(run_ahead=3)
