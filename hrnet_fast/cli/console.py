"""Shared by the commands: options, tables, progress bars, JSON, errors and exit codes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import click

from hrnet_fast.errors import HRNetFastError

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
impl_option = click.option("--impl", default="auto", show_default=True, help="auto, reference, cpu, triton or cuda.")
weights_option = click.option(
    "--weights",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "raw", "ema"]),
    help="Weights as trained (raw) or their running average (ema); auto: those that the file's upstream loads.",
)
torch04_option = click.option(
    "--torch04",
    is_flag=True,
    help="An authors' segmentation file of the PyTorch 0.4 release (scales act as |w| + eps).",
)


def print_json(data: Any) -> None:
    """Print `data` as indented JSON on standard output."""
    click.echo(json.dumps(data, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table; columns whose header ends in ``>`` are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left", header_style="bold")
    for name in columns:
        right = name.endswith(">")
        table.add_column(name.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as Text, so that brackets are no markup
    # Piped output has no width; rows are then not wrapped below 160 columns.
    console = Console()
    Console(width=None if console.is_terminal else max(console.width, 160)).print(table)


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield `items` under a progress bar on standard error (none if that is no terminal)."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, total=total, description=what, console=console, disable=not console.is_terminal)


def show_notes() -> None:
    """Print the package's warnings, such as entries that loading left out, as notes on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger = logging.getLogger("hrnet_fast")
    logger.handlers = [handler]
    logger.propagate = False


def run_app(app: click.Group, name: str, argv: Sequence[str] | None) -> NoReturn:
    """Run a group of commands and exit.

    Codes are 0 on success, a command's own, 2 on bad input (one line on standard error), 130 on Ctrl-C. A command that
    returns a function has another's code run: there, exceptions and exit codes are not this program's.
    """
    try:
        # The exit code of a command is returned here; commands themselves return None, or what is to run.
        code = app.main(args=list(argv) if argv is not None else None, prog_name=name, standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped.", err=True)
        code = 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except (click.ClickException, HRNetFastError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        click.echo(f"{name}: {'; '.join(lines)}", err=True)
        code = 2
    if callable(code):
        code = code()
    sys.exit(code)
