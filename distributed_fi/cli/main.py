# SPDX-License-Identifier: Apache-2.0
"""`distributed-fi`: the commands, and how each ends: 0 well, 2 a mistake to mend, 1 broken, 130 interrupted."""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer

from distributed_fi.cli.bench import bench_app
from distributed_fi.cli.build import build
from distributed_fi.cli.generate import generate
from distributed_fi.errors import DfiError

INTERRUPTED = 128 + signal.SIGINT
# Of click, which some releases of typer import and others carry inside.
UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="distributed-fi",
    help="LLM inference kernels served by a Ray cluster.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(build)
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Run a command; every error of ours is one line on stderr and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run a command line and return its exit code."""
    # A terminated driver must unwind like an interrupted one, or its ranks would outlive it.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        command = typer.main.get_command(app)
        code = command.main(args=args or ["--help"], prog_name="distributed-fi", standalone_mode=False)
    except UsageError as error:
        return _complain(error.format_message(), 2)
    except DfiError as error:
        return _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    print(f"distributed-fi: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
