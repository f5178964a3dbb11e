# SPDX-License-Identifier: Apache-2.0
"""What a user or a model file decides, as frozen dataclasses that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.mesh import Mesh

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")


def check_range(name: str, value: object, expected: str, ok: bool) -> None:
    """Raise InvalidArgumentError(name, value, expected) unless `ok`."""
    if not ok:
        raise InvalidArgumentError(name, value, expected)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when it ends.

    Args:
        temperature: divides the logits; 0 takes the largest logit (ties: the smallest token id).
        top_k: keep the k largest; 0 keeps all. Applied before top_p.
        top_p: keep the smallest set whose probability reaches p, in (0, 1].
        min_p: drop tokens below min_p times the largest probability, in [0, 1].
        seed: keys the random numbers together with the position, so a request's tokens do not
            depend on its neighbours, the batch, or tp. None draws one when the request arrives.
        max_tokens: generated tokens at most.
        stop_token_ids: end on these besides the model's own end tokens.
        ignore_eos: go on past the model's end tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 128
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        t, k, p, m = self.temperature, self.top_k, self.top_p, self.min_p
        check_range("temperature", t, "a finite number >= 0", _is_finite(t) and t >= 0)
        check_range("top_k", k, "an integer in [0, 2^31) (0 keeps all)", _is_int(k) and 0 <= k < 2**31)
        check_range("top_p", p, "a number in (0, 1]", _is_finite(p) and 0 < p <= 1)
        check_range("min_p", m, "a number in [0, 1]", _is_finite(m) and 0 <= m <= 1)
        check_range("max_tokens", self.max_tokens, "an integer >= 1", _is_int(self.max_tokens) and self.max_tokens >= 1)
        seed_ok = self.seed is None or (_is_int(self.seed) and 0 <= self.seed < 2**63)
        check_range("seed", self.seed, "an integer in [0, 2^63)", seed_ok)
        stops = self.stop_token_ids
        stops_ok = isinstance(stops, tuple) and all(_is_int(token) and token >= 0 for token in stops)
        check_range("stop_token_ids", stops, "a tuple of token ids", stops_ok)


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: the base, and how frequencies are scaled to reach beyond the trained context.

    `original_max_position`, in tokens, counts for "llama3", with its `low_freq_factor` and `high_freq_factor`, and
    for "yarn", with its `beta_fast` and `beta_slow` (turns within that context), `truncate` (whole dimensions
    only) and `attention_factor` (multiplies cosines and sines; None: 0.1 ln(factor) + 1).
    """

    theta: float = 10000.0
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_range("rope_theta", self.theta, "a number > 0", _is_finite(self.theta) and self.theta > 0)


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """The experts that stand in the place of the MLP: each token takes the `top_k` its router scores highest.

    Args:
        num_experts: in each layer.
        top_k: experts of a token.
        intermediate_size: of one expert.
        renormalize: the weights of a token's experts, a softmax over all experts, are divided by their sum.
        dense_layers: layers that have an MLP nevertheless.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    renormalize: bool = True
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_experts", "intermediate_size"):
            size = getattr(self, name)
            check_range(f"experts.{name}", size, "an integer >= 1", _is_int(size) and size >= 1)
        k_ok = _is_int(self.top_k) and 1 <= self.top_k <= self.num_experts
        check_range("experts.top_k", self.top_k, f"an integer in [1, num_experts={self.num_experts}]", k_ok)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only model: Llama's, and what its relatives do differently.

    Args:
        architecture: the class's name in config.json, such as "LlamaForCausalLM".
        intermediate_size: of the gated MLP.
        rope: rotary embedding, of all layers but those of `local_rope`.
        local_rope: of the layers with a sliding window; None: they share `rope`.
        sliding_window: tokens that a query sees, itself included; None: all.
        global_layers: layers that see all tokens nevertheless.
        has_qkv_bias: the query, key and value projections add a bias.
        has_qk_norm: each head of queries and keys is normalised before the rotary embedding.
        has_out_norms: what attention and MLP give is normalised before it joins the residual (four norms a layer).
        norm_adds_one: norms multiply by 1 + weight.
        activation: of the MLP's gate.
        query_scale: what logits of attention are multiplied by; None is 1 / sqrt(head_dim).
        attention_soft_cap: c bounds the logits x of attention as c * tanh(x / c); None: no bound.
        logit_soft_cap: the same for the logits of the vocabulary.
        embedding_scale: what embeddings are multiplied by.
        experts: those of a mixture-of-experts model.
        eos_token_ids: tokens that end a request.
        dtype: the checkpoint's.
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    local_rope: RopeConfig | None = None
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    global_layers: tuple[int, ...] = ()
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    has_out_norms: bool = False
    norm_adds_one: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    query_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embedding_scale: float = 1.0
    experts: ExpertsConfig | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_qo_heads", "num_kv_heads", "head_dim",
                     "intermediate_size", "vocab_size", "max_position"):  # fmt: skip
            size = getattr(self, name)
            check_range(name, size, "an integer >= 1", _is_int(size) and size >= 1)
        # Beyond it, one garbled number would make tables of gigabytes.
        check_range("head_dim", self.head_dim, "at most 65536", self.head_dim <= 2**16)
        eps = self.rms_norm_eps
        check_range("rms_norm_eps", eps, "a finite number >= 0", _is_finite(eps) and eps >= 0)
        tied = self.tie_word_embeddings
        check_range("tie_word_embeddings", tied, "true or false", isinstance(tied, bool))
        grouped = self.num_qo_heads % self.num_kv_heads == 0
        check_range("num_qo_heads", self.num_qo_heads, f"a multiple of num_kv_heads={self.num_kv_heads}", grouped)
        window = self.sliding_window
        check_range("sliding_window", window, "an integer >= 1, or None", window is None or window >= 1)
        for name in ("query_scale", "attention_soft_cap", "logit_soft_cap"):
            value = getattr(self, name)
            check_range(name, value, "a number > 0, or None", value is None or (_is_finite(value) and value > 0))

    def is_windowed(self, layer: int) -> bool:
        """Whether the layer's queries see a sliding window only."""
        return self.sliding_window is not None and layer not in self.global_layers

    def has_experts(self, layer: int) -> bool:
        """Whether experts stand in the place of the layer's MLP."""
        return self.experts is not None and layer not in self.experts.dense_layers

    def rope_of(self, layer: int) -> RopeConfig:
        """The rotary embedding of one layer."""
        return self.local_rope if self.local_rope is not None and self.is_windowed(layer) else self.rope


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is served.

    Args:
        model: a Hugging Face folder, a GGUF file, or `package:NAME` for weights an installed package carries.
        load_format: how to read it; "auto" looks; "dummy" draws random weights for the shape in its config.
        mesh: the parallel axes.
        dtype: of weights and activations; "auto" is the checkpoint's on a GPU and float32 on a CPU.
        device: "auto" uses GPUs where the cluster has them.
        page_size: tokens per KV page.
        num_pages: KV pages of each replica; None fits `max_num_seqs` x `max_model_len`, within memory.
        max_num_seqs: requests of one replica in a step.
        max_batch_tokens: tokens of one replica in a step.
        max_model_len: longest prompt + answer; None is the model's own limit.
        seed: of dummy weights.
        run_ahead: steps planned before the oldest one's tokens are back, 1 or 2.
        step_timeout_s: a rank silent for longer than this ends the run with its name.
        collective_timeout_s: deadline of one collective.
        start_timeout_s: deadline of placing, starting and loading the ranks.
        ray_address: an existing cluster ("auto" finds one); None starts a local Ray.
        step_hook: MODULE:FUNCTION or FILE.py:FUNCTION, called with "coordinator" or "rank N" in each process;
            the context manager it returns is entered around every step (profilers, tracers, guards).
    """

    model: str
    load_format: str = "auto"
    mesh: Mesh = field(default_factory=Mesh)
    dtype: str = "auto"
    device: str = "auto"
    page_size: int = 16
    num_pages: int | None = None
    max_num_seqs: int = 64
    max_batch_tokens: int = 2048
    max_model_len: int | None = None
    run_ahead: int = 2
    seed: int = 0
    step_timeout_s: float = 60.0
    collective_timeout_s: float = 30.0
    start_timeout_s: float = 300.0
    ray_address: str | None = None
    step_hook: str | None = None

    def __post_init__(self) -> None:
        check_range(
            "model", repr(self.model), "a path or package:NAME", isinstance(self.model, str) and self.model != ""
        )
        check_range("mesh", self.mesh, "a Mesh", isinstance(self.mesh, Mesh))
        check_range("seed", self.seed, "an integer in [0, 2^63)", _is_int(self.seed) and 0 <= self.seed < 2**63)
        check_range("dtype", self.dtype, f"one of {', '.join(DTYPES)}", self.dtype in DTYPES)
        formats = ", ".join(LOAD_FORMATS)
        check_range("load_format", self.load_format, f"one of {formats}", self.load_format in LOAD_FORMATS)
        check_range("device", self.device, "one of auto, cpu, cuda", self.device in ("auto", "cpu", "cuda"))
        for name in ("page_size", "max_num_seqs", "max_batch_tokens"):
            size = getattr(self, name)
            check_range(name, size, "an integer >= 1", _is_int(size) and size >= 1)
        for name in ("num_pages", "max_model_len"):
            limit = getattr(self, name)
            check_range(name, limit, "an integer >= 1", limit is None or (_is_int(limit) and limit >= 1))
        check_range("run_ahead", self.run_ahead, "1 or 2", self.run_ahead in (1, 2))
        for name in ("step_timeout_s", "collective_timeout_s", "start_timeout_s"):
            seconds = getattr(self, name)
            check_range(name, seconds, "a number of seconds > 0", _is_finite(seconds) and seconds > 0)
