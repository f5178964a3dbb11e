# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_fi.config import SamplingParams
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling import reference
from distributed_fi.logits_processor import LogitsPipe, MinP, Sample, Softmax, Temperature, TensorType, TopK, TopP
from distributed_fi.sampling import philox_uniform, sampling_from_logits, top_k_mask_logits

VOCAB_SIZE = 333
NAN, INF = float("nan"), float("inf")
SERVING = LogitsPipe([Temperature(), TopK(), Softmax(), TopP(), MinP(), Sample()])


def draw_logits(batch: int, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    return torch.randn(batch, vocab_size, generator=torch.Generator().manual_seed(0)) * 3


def reference_token(logits: list[float], t: float, k: int, p: float, m: float, u: float) -> int:
    head = reference.top_k(logits, k)
    probs = reference.softmax([logit if token in head else -INF for token, logit in enumerate(logits)], t)
    probs = reference.only(probs, reference.top_p(probs, p))
    return reference.draw(reference.only(probs, reference.min_p(probs, m)), u)


def serving_params(batch: int) -> dict[str, torch.Tensor]:
    """Every mix of parameters, greedy rows among them, one row each."""
    row = torch.arange(batch)
    return {
        "temperature": torch.tensor([0.7, 0.0, 1.0, 2.0])[row % 4],
        "top_k": torch.tensor([0, 5, 50], dtype=torch.int32)[row % 3],
        "top_p": torch.tensor([1.0, 0.9, 0.3, 1e-6, 0.99])[row % 5],
        "min_p": torch.tensor([0.0, 0.05, 0.0, 0.5, 0.0, 0.0, 1.0])[row % 7],
        "seed": row * 7919,
        "position": row % 13,
    }


def test_flashinfer_style_call() -> None:
    pipe = LogitsPipe([Temperature(), Softmax(), TopP(), Sample()])
    tokens = pipe(draw_logits(4), temperature=0.7, top_p=0.9)
    assert tokens.shape == (4,)
    assert tokens.dtype == torch.int32
    assert repr(pipe) == "LogitsPipe([Temperature(), Softmax(), TopP(), Sample()])"


def test_serving_pipe_equals_the_reference_row_by_row() -> None:
    batch = 420  # all mixes
    logits, params = draw_logits(batch), serving_params(420)
    u = philox_uniform(params["seed"], params["position"]).tolist()
    rows = [params[name].double().tolist() for name in ("temperature", "top_k", "top_p", "min_p")]
    expected = [
        reference_token(logits[i].tolist(), t, int(k), p, m, u[i])
        for i, (t, k, p, m) in enumerate(zip(*rows, strict=True))
    ]
    assert SERVING(logits, **params).tolist() == expected


def test_a_request_gets_the_same_token_in_any_batch() -> None:
    logits, params = draw_logits(60), serving_params(60)
    together = SERVING(logits, **params)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert torch.equal(SERVING(logits[order], **{name: v[order] for name, v in params.items()}), together[order])
    for i in range(0, 60, 7):
        alone = {name: v[i : i + 1] for name, v in params.items()}
        assert SERVING(logits[i : i + 1], **alone).item() == together[i].item()
        assert SERVING(logits[i : i + 1], **{name: v.item() for name, v in alone.items()}).item() == together[i].item()


@pytest.mark.parametrize("temperature", [0, 0.0, torch.zeros(3), torch.tensor([0.0, 0.0, 1e-9])])
def test_temperature_zero_takes_the_largest_logit_whatever_the_seed(temperature: Any) -> None:
    logits = draw_logits(3)
    logits[1, 200], logits[1, 100] = 50.0, 50.0  # equals: the smaller id
    for seed in range(5):
        tokens = SERVING(logits, temperature=temperature, top_k=9, top_p=0.5, min_p=0.1, seed=seed, position=seed)
        assert tokens.tolist() == [reference.ranked(row)[0] for row in logits.tolist()]


@pytest.mark.parametrize(
    "temperature", [torch.zeros(5), torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5]), torch.full((5,), 0.5)]
)
def test_rows_without_a_distribution_give_minus_one(temperature: torch.Tensor) -> None:
    logits = draw_logits(5)
    params = {"temperature": temperature, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 1, "position": 2}
    good = SERVING(logits, **params).tolist()
    logits[1, 3], logits[2], logits[3, 0] = NAN, -INF, INF
    assert SERVING(logits, **params).tolist() == [good[0], -1, -1, -1, good[4]]


def test_parameters_given_to_the_constructor() -> None:
    logits, source = draw_logits(8), {"seed": 1, "position": torch.arange(8)}
    preset = LogitsPipe([Temperature(0.5), TopK(top_k=4), Softmax(), TopP(0.9), MinP(0.1), Sample()])
    params = {"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1}
    assert torch.equal(preset(logits, **source), SERVING(logits, **params, **source))
    override = preset(logits, temperature=0.0, **source)  # a value in the call wins
    assert torch.equal(override, logits.argmax(-1).int())
    assert repr(preset).startswith("LogitsPipe([Temperature(temperature=0.5), TopK(top_k=4)")


def test_pipes_that_end_before_sampling() -> None:
    logits = draw_logits(3)
    torch.testing.assert_close(LogitsPipe([Temperature()])(logits, temperature=0.5), logits * 2)
    masked = LogitsPipe([TopK()], input_type="logits")(logits, top_k=3)
    assert torch.equal(masked, top_k_mask_logits(logits, 3))
    probs = LogitsPipe([Softmax(), TopK(), MinP()])(logits, top_k=3, min_p=0.0)
    expected = [reference.only(reference.softmax(row), reference.top_k(row, 3)) for row in logits.tolist()]
    torch.testing.assert_close(probs, torch.tensor(expected))


def test_input_type_is_inferred_where_only_one_fits() -> None:
    assert LogitsPipe([TopK(), TopP(), Sample()]).input_type is TensorType.PROBS
    assert LogitsPipe([TopK(), Softmax(), Sample()]).input_type is TensorType.LOGITS
    logits, source = draw_logits(3), {"seed": 4, "position": 2}
    assert torch.equal(
        LogitsPipe([Sample()], input_type="logits")(logits, **source), sampling_from_logits(logits, **source)
    )
    by_probs = LogitsPipe([Sample(deterministic=True)], input_type=TensorType.PROBS)(logits.softmax(-1), **source)
    assert torch.equal(by_probs, sampling_from_logits(logits, **source))
    with pytest.raises(InvalidArgumentError, match="input_type: expected logits or probs, since the processors take"):
        LogitsPipe([TopK(), Sample()])
    with pytest.raises(InvalidArgumentError, match="input_type: expected logits, which Softmax takes, got probs"):
        LogitsPipe([Softmax()], input_type="probs")


def test_generator() -> None:
    pipe, logits = LogitsPipe([Softmax(), Sample()]), draw_logits(50)
    first = pipe(logits, generator=torch.Generator().manual_seed(5))
    assert torch.equal(pipe(logits, generator=torch.Generator().manual_seed(5)), first)


def test_no_rows() -> None:
    none = torch.empty(0, VOCAB_SIZE)
    params = {name: v[:0] for name, v in serving_params(4).items()}
    for tokens in (SERVING(none, **params), LogitsPipe([Softmax(), TopP(), Sample()])(none, top_p=0.5)):
        assert tokens.shape == (0,)
        assert tokens.dtype == torch.int32


def test_logits_are_left_alone() -> None:
    logits = draw_logits(6)
    before = logits.clone()
    SERVING(logits, **{**serving_params(6), "temperature": torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 1.0])})
    LogitsPipe([TopK()], input_type="logits")(logits, top_k=0).zero_()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_logits_are_sampled_as_their_float32_values(dtype: torch.dtype) -> None:
    logits, params = draw_logits(40).to(dtype), serving_params(40)
    assert torch.equal(SERVING(logits, **params), SERVING(logits.float(), **params))


@pytest.mark.parametrize(
    ("processors", "message"),
    [
        ([], r"processors: expected at least one processor, got \[\]"),
        (
            [Temperature(), TopP()],
            r"processors\[1\]: expected TopP after a processor that gives probs \(Softmax, TopK, TopP, MinP\), "
            "got TopP after Temperature, which gives logits",
        ),
        (
            [Softmax(), TopP(), Temperature()],
            r"processors\[2\]: expected Temperature after a processor that gives logits \(Temperature, TopK\), "
            "got Temperature after TopP, which gives probs",
        ),
        ([Softmax(), Softmax()], r"processors\[1\]: expected Softmax after .*, got Softmax after Softmax"),
        ([Softmax(), Sample(), TopK()], r"processors\[2\]: .*, got TopK after Sample, which gives token ids"),
        ([TopK(), MinP(), Softmax()], r"processors\[2\]: .*, got Softmax after MinP, which gives probs"),
        ([Softmax], r"processors\[0\]: expected one of Temperature\(\), Softmax\(\), .*, got <class"),
    ],
)
def test_wrong_chains(processors: list[Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        LogitsPipe(processors)


GOOD = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_p": None}, r"top_p: expected a number in \(0, 1\], or a tensor \[batch\], for TopP\(\), got None"),
        (
            {"temprature": 0.5},
            r"temprature: expected only the parameters of this pipe \(temperature, top_k, top_p, min_p, seed, "
            r"position, generator\), got 0.5",
        ),
        ({"seed": 3}, "position: expected the position of the token, since a seed is given, got None"),
        ({"seed": 3, "temperature": 0.0}, "position: expected the position of the token"),
        ({"temperature": torch.tensor([1.0, -2.0])}, "temperature: expected a finite number >= 0, got -2.0 in row 1"),
        ({"min_p": torch.tensor([[0.1, 0.1]])}, r"min_p: expected \[batch=2\], got \[1, 2\]"),
        ({"top_p": "0.9"}, r"top_p: expected a number in \(0, 1\], got 0.9"),
    ],
)
def test_wrong_parameters(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        SERVING(draw_logits(2), **{**GOOD, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", NAN), ("top_k", -1), ("top_k", 2**31), ("top_p", 0.0), ("top_p", 1.5),
     ("min_p", -0.1), ("min_p", 1.1), ("seed", -1), ("seed", 2**63)],
)  # fmt: skip
def test_values_are_refused_in_the_words_of_sampling_params(name: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError) as by_config:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError) as by_pipe:
        SERVING(draw_logits(2), **{**GOOD, "seed": 0, "position": 0, name: value})
    assert str(by_pipe.value) == str(by_config.value)


def test_constructors_check_numbers() -> None:
    with pytest.raises(InvalidArgumentError, match=r"top_p: expected a number in \(0, 1\], got 2"):
        TopP(2)


def test_wrong_logits() -> None:
    with pytest.raises(InvalidArgumentError, match=r"logits: expected \[batch, vocab_size\], got \[7\]"):
        SERVING(torch.ones(7), **GOOD)
    with pytest.raises(InvalidArgumentError, match=r"probs: expected \[batch, vocab_size >= 1\], got \[3, 0\]"):
        LogitsPipe([TopP(0.5), Sample()])(torch.ones(3, 0))
