# SPDX-License-Identifier: Apache-2.0
"""The operators that are PyTorch on every device give on CUDA what they give on the CPU, where their own tests are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed_fi import activation, gemm, moe, norm, quantization, rope, sampling
from distributed_fi.config import RopeConfig


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, WEIGHT = draw(13, 256), draw(256, seed=1)
LOGITS, BIAS = draw(13, 32), draw(32, seed=1)
TOPK_IDX = LOGITS.topk(4).indices
INDPTR = torch.tensor([0, 3, 3, 13])
EXPERTS = draw(3, 40, 256, seed=2)
DRAFT, TARGET = draw(13, 2, 32).softmax(-1), draw(13, 3, 32, seed=1).softmax(-1)


def mixture(x: Tensor, topk_idx: Tensor, weights: Tensor) -> Tensor:
    order = moe.sort_by_expert(topk_idx, 32)
    return moe.moe_unpermute(moe.moe_permute(x, order), order, weights)


def fused(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x, residual = x.clone(), residual.clone()
    norm.gemma_fused_add_rmsnorm(x, residual, weight)
    return x, residual


def there_and_back(quantize: Callable[..., Any], dequantize: Callable[..., Tensor], **how: Any) -> Callable[..., Any]:
    return lambda x: dequantize(*quantize(x, **how), **how)


def grouped(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return moe.grouped_topk(logits, 4, num_expert_group=8, topk_group=3, bias=bias)


def speculative(draft: Tensor, tokens: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    return sampling.chain_speculative_sampling(draft, tokens, target, seed=3, position=7)


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "topk_softmax": (lambda logits: moe.topk_softmax(logits, 4), (LOGITS,)),
    "topk_sigmoid": (lambda logits, bias: moe.topk_sigmoid(logits, 4, bias=bias), (LOGITS, BIAS)),
    "grouped_topk": (grouped, (LOGITS, BIAS)),
    "mixture": (mixture, (X, TOPK_IDX, LOGITS[:, :4].clone())),
    "permute_fp8": (
        lambda x, idx: moe.moe_permute(x.to(torch.float8_e4m3fn), moe.sort_by_expert(idx, 32)).float(),
        (X, TOPK_IDX),
    ),
    "gemma_rmsnorm": (norm.gemma_rmsnorm, (X, WEIGHT)),
    "gemma_fused_add_rmsnorm": (fused, (X, X.flip(0), WEIGHT)),
    "layernorm": (norm.layernorm, (X, WEIGHT, WEIGHT)),
    "gelu_and_mul": (activation.gelu_and_mul, (X,)),
    "gelu_tanh_and_mul": (activation.gelu_tanh_and_mul, (X,)),
    "bmm": (lambda a, b: gemm.bmm(a, b, out_dtype=torch.float32), (EXPERTS.half(), EXPERTS.half().transpose(1, 2))),
    "grouped_gemm_nt": (gemm.grouped_gemm_nt, (X, EXPERTS, INDPTR)),
    "segment_gemm": (
        lambda x, w, indptr: gemm.segment_gemm(x, w, weight_column_major=True, seg_indptr=indptr),
        (X, EXPERTS, INDPTR),
    ),
    "fp8": (there_and_back(quantization.fp8_quantize, quantization.fp8_dequantize, granularity="128x128"), (X,)),
    "int8": (there_and_back(quantization.int8_quantize, quantization.int8_dequantize, granularity="1x128"), (X,)),
    "nvfp4": (there_and_back(quantization.nvfp4_quantize, quantization.nvfp4_dequantize), (X,)),
    "mxfp4": (there_and_back(quantization.mxfp4_quantize, quantization.mxfp4_dequantize), (X,)),
    "segment_packbits": (quantization.segment_packbits, (WEIGHT[:13] > 0, INDPTR)),
    "yarn": (
        lambda x: rope.make_cos_sin_cache(RopeConfig(scaling="yarn", factor=4.0), 64, 100, x.device),
        (X,),
    ),
    "top_k": (lambda x: sampling.top_k(x, 7), (X.round(),)),
    "chain_speculative_sampling": (speculative, (DRAFT, TOPK_IDX[:, :2].clone(), TARGET)),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_same_as_on_the_cpu(name: str) -> None:
    op, inputs = CASES[name]
    found = op(*(x.cuda() for x in inputs))
    expected = op(*inputs)
    torch.testing.assert_close(found, expected, check_device=False, rtol=1e-5, atol=1e-4)
