# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore
from transformers import AutoModelForCausalLM, PreTrainedModel

from distributed_fi.comm.group import Group
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.attention.batch_attention import BatchAttention
from distributed_fi.kernels.kv_cache.append import plan_append
from distributed_fi.mesh import Mesh
from distributed_fi.models.decoder import DecoderModel, load_model
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.plan.sharding import shard_model

PAGE_SIZE, MAX_LEN, VOCAB = 4, 40, 101
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PROMPTS = [[3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46], [26], [43, 38, 32, 79, 50]]


class PagedRequests:
    """Requests that grow in a paged KV cache: what a runner does with a model, spelled out."""

    def __init__(self, model: DecoderModel, num_requests: int = len(PROMPTS)):
        self.model, self.lengths = model, [0] * num_requests
        self.pages_each = -(-MAX_LEN // PAGE_SIZE)
        self.num_pages = self.pages_each * num_requests
        # Shuffled: no two neighbours in a request are neighbours in the cache.
        pages = random.Random(0).sample(range(self.num_pages), self.num_pages)
        self.table = torch.tensor(pages, dtype=torch.int32).view(num_requests, self.pages_each)
        shape = model.kv_cache_shape(self.num_pages, PAGE_SIZE)
        self.kv_caches = [(torch.zeros(shape, dtype=model.dtype),) * 2 for _ in model.layers]
        self.kv_caches = [(k, v.clone()) for k, v in self.kv_caches]

    @torch.inference_mode()
    def step(self, new_tokens: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Append tokens to each request, possibly none; per request the logits [its new tokens, vocab_size]."""
        model, counts = self.model, [len(tokens) for tokens in new_tokens]
        positions = [start + i for start, n in zip(self.lengths, counts, strict=True) for i in range(n)]
        self.lengths = [start + n for start, n in zip(self.lengths, counts, strict=True)]
        slots = plan_append(
            [request for request, n in enumerate(counts) for _ in range(n)],
            positions,
            self.table.view(-1),
            [self.pages_each * request for request in range(len(counts) + 1)],
            page_size=PAGE_SIZE,
            num_pages=self.num_pages,
            device="cpu",
        )
        attentions = {window_left: BatchAttention(kv_layout="NHD", device="cpu") for window_left in model.windows}
        for window_left, attention in attentions.items():
            attention.plan(
                [sum(counts[:request]) for request in range(len(counts) + 1)],
                self.lengths,
                self.table,
                len(model.shard.heads.qo),
                len(model.shard.heads.kv),
                model.config.head_dim,
                model.config.head_dim,
                dtype_q=model.dtype,
                page_size=PAGE_SIZE,
                causal=True,
                window_left=window_left,
                sm_scale=model.config.query_scale,
                logits_soft_cap=model.config.attention_soft_cap,
            )
        token_ids = torch.tensor([token for tokens in new_tokens for token in tokens], dtype=torch.int32)
        hidden = model.forward(token_ids, torch.tensor(positions), self.kv_caches, attentions, slots)
        return list(model.logits(hidden).split(counts))


def rank_model(
    model: Path, mesh: Mesh, group: Group, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> DecoderModel:
    checkpoint = open_checkpoint(str(model), **kwargs)
    shard = shard_model(checkpoint.config, mesh, group.rank)
    return load_model(checkpoint, shard, group, dtype=dtype, device="cpu", max_position=MAX_LEN)


def on_ranks(tp: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` returns on each of tp ranks, which are threads here."""
    store = HashStore()
    with ThreadPoolExecutor(tp) as pool:
        return list(pool.map(lambda rank: work(Group.from_store(store, rank, tp)), range(tp)))


def greedy(requests: PagedRequests, prompt: list[int], *, num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """The tokens of largest logit after a prompt, one step each, and all logits that were computed."""
    parts = requests.step([prompt])
    tokens = [int(parts[-1][-1].argmax())]
    while len(tokens) < num_tokens:
        parts += requests.step([tokens[-1:]])
        tokens.append(int(parts[-1][-1].argmax()))
    return tokens, torch.cat(parts)


@torch.inference_mode()
def theirs(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([tokens])).logits[0]


GEMMA = {"sliding_window": 4, "query_pre_attn_scalar": 11}
GEMMA3 = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MIXTRAL = {"num_local_experts": 4, "shard_size": "1GB"}
EXPERTS = {"shard_size": "1GB", "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 19}
GEMMA3_LINEAR = {
    "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False},
    "tied": {"tie_word_embeddings": True},
    "llama3_rope": {"rope_parameters": LLAMA3_ROPE},
    "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}},
    "one_kv_head": {"num_key_value_heads": 1},
    "head_dim_apart": {"head_dim": 20},
    "mistral": {"arch": "mistral", "sliding_window": None},
    "mistral_window": {"arch": "mistral", "sliding_window": 4},
    "qwen2": {"arch": "qwen2"},
    "qwen2_tied": {"arch": "qwen2", "tie_word_embeddings": True},
    "qwen2_windows": {"arch": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"arch": "qwen3"},
    "qwen3_tied_head_dim_apart": {"arch": "qwen3", "head_dim": 20, "tie_word_embeddings": True},
    "gemma2": {"arch": "gemma2", **GEMMA},
    "gemma2_small_caps": {
        "arch": "gemma2", **GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0,
    },
    "gemma3": {"arch": "gemma3", **GEMMA, **GEMMA3},
    "gemma3_pattern": {"arch": "gemma3", **GEMMA, "sliding_window_pattern": 2},
    "mixtral": {"arch": "mixtral", **MIXTRAL},
    "mixtral_window": {"arch": "mixtral", **MIXTRAL, "sliding_window": 4},
    "qwen3_moe": {"arch": "qwen3_moe", **EXPERTS, "norm_topk_prob": True},
    "qwen3_moe_dense_layer": {"arch": "qwen3_moe", **EXPERTS, "mlp_only_layers": [1]},
    "qwen3_moe_every_second": {"arch": "qwen3_moe", **EXPERTS, "decoder_sparse_step": 2},
    "gemma3_linear_rope": {"arch": "gemma3", **GEMMA, **GEMMA3, "rope_parameters": GEMMA3_LINEAR},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(make_hf, variant: str) -> None:
    folder, reference = make_hf(**VARIANTS[variant])
    logits = PagedRequests(rank_model(folder, Mesh(), Group.single())).step(PROMPTS)
    for ours, prompt in zip(logits, PROMPTS, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs(reference, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["llama3_rope", "mistral_window", "qwen2_windows", "gemma2", "gemma3"])
def test_chunks_and_single_tokens_continue_a_request(make_hf, variant: str) -> None:
    folder, reference = make_hf(**VARIANTS[variant])
    requests = PagedRequests(rank_model(folder, Mesh(), Group.single()), num_requests=2)
    long, short = list(range(7, 37)), [5, 50, 55]
    steps = [(long[:9], []), (long[9:20], short[:2]), (long[20:21], short[2:]), (long[21:30], [])]
    parts = [requests.step(step) for step in steps]
    for request, tokens in enumerate((long, short)):
        ours = torch.cat([part[request] for part in parts])
        torch.testing.assert_close(ours, theirs(reference, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tp", [2, 3, 5])
def test_logits_of_several_ranks_are_those_of_one(make_hf, tp: int, tied: bool) -> None:
    folder, _ = make_hf(tie_word_embeddings=tied, rope_parameters=LLAMA3_ROPE)

    def two_steps(group: Group) -> list[torch.Tensor]:
        requests = PagedRequests(rank_model(folder, Mesh(tp=group.world_size), group))
        return requests.step(PROMPTS) + requests.step([[9], [8, 7], [6]])

    alone = two_steps(Group.single())
    ranks = on_ranks(tp, two_steps)
    for logits in ranks:
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
        assert all(map(torch.equal, logits, ranks[0]))


FAMILIES = ["qwen2_tied", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3_moe_dense_layer"]


@pytest.mark.parametrize("tp", [2, 3])
@pytest.mark.parametrize("variant", FAMILIES)
def test_every_familys_logits_and_greedy_tokens_are_those_of_transformers_on_several_ranks(
    make_hf, variant: str, tp: int
) -> None:
    folder, reference = make_hf(**VARIANTS[variant])

    def answer(group: Group) -> tuple[list[int], torch.Tensor]:
        requests = PagedRequests(rank_model(folder, Mesh(tp=group.world_size), group), num_requests=1)
        return greedy(requests, PROMPTS[0], num_tokens=12)

    for tokens, logits in on_ranks(tp, answer):
        expected = theirs(reference, PROMPTS[0] + tokens[:-1])
        assert tokens == expected[len(PROMPTS[0]) - 1 :].argmax(-1).tolist()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["untied", "qwen3", "gemma2"])
def test_bfloat16_stays_near_float32(make_hf, variant: str) -> None:
    folder, reference = make_hf(**VARIANTS[variant])
    logits = PagedRequests(rank_model(folder, Mesh(), Group.single(), torch.bfloat16)).step(PROMPTS)
    for ours, prompt in zip(logits, PROMPTS, strict=True):
        exact = theirs(reference, prompt)
        rounded = theirs(reference.to(torch.bfloat16), prompt).float()
        reference.float()
        # As far from float32 as transformers' own bfloat16 run, or twice that.
        assert (ours - exact).abs().max() <= 2 * (rounded - exact).abs().max()


def test_a_gguf_model_is_that_of_transformers(make_gguf) -> None:
    path, _ = make_gguf("Q8_0")
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    logits = PagedRequests(rank_model(path, Mesh(), Group.single())).step(PROMPTS)
    for ours, prompt in zip(logits, PROMPTS, strict=True):
        torch.testing.assert_close(ours, theirs(reference, prompt), rtol=1e-4, atol=1e-4)


def test_dummy_weights_give_the_same_logits_for_every_tp(make_hf) -> None:
    folder, _ = make_hf()

    def step(group: Group) -> list[torch.Tensor]:
        model = rank_model(folder, Mesh(tp=group.world_size), group, load_format="dummy", seed=3)
        return PagedRequests(model).step(PROMPTS)

    torch.testing.assert_close(on_ranks(2, step)[1], step(Group.single()), rtol=1e-4, atol=1e-4)


def test_a_rank_tells_its_cache_shape_and_windows(make_hf) -> None:
    folder, _ = make_hf(arch="mistral", sliding_window=4)
    model = rank_model(folder, Mesh(), Group.single())
    assert model.kv_cache_shape(10, 16) == (10, 16, 3, 8)
    assert model.windows == (3,)


def test_layers_with_different_windows_need_a_plan_for_each(make_hf) -> None:
    folder, _ = make_hf(**VARIANTS["gemma2"])
    model = rank_model(folder, Mesh(), Group.single())
    assert model.windows == (3, -1)
    assert [layer.window_left for layer in model.layers] == [3, -1, 3]


@pytest.mark.parametrize("max_position", [0, 65])
def test_positions_beyond_the_context_are_refused(make_hf, max_position: int) -> None:
    folder, _ = make_hf()
    checkpoint = open_checkpoint(str(folder))
    shard = shard_model(checkpoint.config, Mesh(), 0)
    with pytest.raises(InvalidArgumentError, match="max_position: expected 1 to 64, the model's context"):
        load_model(checkpoint, shard, Group.single(), dtype=torch.float32, device="cpu", max_position=max_position)


@pytest.mark.model
def test_smollm2s_logits_and_greedy_tokens_are_those_of_transformers(smollm2_file: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32
    )
    tokenizer = open_checkpoint(str(smollm2_file)).tokenizer()
    prompt = tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])[-12:]
    requests = PagedRequests(rank_model(smollm2_file, Mesh(), Group.single()), num_requests=1)
    answer, logits = greedy(requests, prompt, num_tokens=8)
    torch.testing.assert_close(logits, theirs(reference, prompt + answer[:-1]), rtol=1e-3, atol=1e-3)
    assert "Paris" in tokenizer.decode(answer)
