# SPDX-License-Identifier: Apache-2.0
"""`distributed-fi bench …`: measurements as a table on the terminal and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distributed_fi.cli.console import number, small_table, stderr_console
from distributed_fi.errors import InvalidArgumentError

bench_app = typer.Typer(help="Measure this machine or cluster.")


@bench_app.callback()
def bench() -> None:
    """Measure this machine or cluster."""


@bench_app.command("control-plane")
def control_plane(
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, with commas.")] = "1,2",
    iterations: Annotated[int, typer.Option(help="Round trips of each path.")] = 1000,
    plan_bytes: Annotated[int, typer.Option(help="Size of the plan; 4700 is a few dozen requests.")] = 4700,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """A step plan to every rank and back: the step ring beside Ray calls."""
    from distributed_fi.cluster.benchmarks.control_plane import run

    counts = _rank_counts(ranks)
    if out is not None and not out.parent.is_dir():
        raise InvalidArgumentError("out", out, "a file in a folder that exists")
    with stderr_console().status("Measuring", spinner="line") if sys.stderr.isatty() else stderr_console():
        report = run(counts, iterations, plan_bytes=plan_bytes)
    text = json.dumps(report.to_dict(), indent=1)
    if out is not None:
        out.write_text(text + "\n")
    if as_json:
        print(text)
        return
    rows = [[r.path, str(r.num_ranks), number(r.p50_us), number(r.p99_us), str(r.iterations)] for r in report.rows]
    title = f"A plan of {plan_bytes} bytes to every rank and back"
    Console(highlight=False).print(small_table(title, ["path", "ranks", "p50 us", "p99 us", "round trips"], rows))


def _rank_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidArgumentError("ranks", text, "integers >= 1 with commas between, like 1,2,4") from None
    if min(counts) < 1:
        raise InvalidArgumentError("ranks", text, "integers >= 1 with commas between, like 1,2,4")
    return counts
