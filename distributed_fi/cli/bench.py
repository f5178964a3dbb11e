# SPDX-License-Identifier: Apache-2.0
"""`distributed-fi bench …`: measurements as tables and JSON."""

from __future__ import annotations

import typer

bench_app = typer.Typer(help="Measure.", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Measure this machine or cluster."""
