"""The command group, and the conversion of errors to messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from hrnet_fast import __version__
from hrnet_fast.cli.bench import bench
from hrnet_fast.cli.checkpoints import convert, info
from hrnet_fast.cli.demo import demo
from hrnet_fast.cli.inspect import doctor, models, plan, table
from hrnet_fast.cli.run import run
from hrnet_fast.errors import HRNetFastError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hrnet-fast")
def app() -> None:
    """HRNet for PyTorch: run, inspect and convert checkpoints of every upstream."""


for command in (models, info, convert, table, plan, run, doctor, demo, bench):
    app.add_command(command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 for success, 2 for bad input (one line on standard error), 130 for Ctrl-C, or a command's own code.
    """
    try:
        # app.main returns the exit code of a command that exits; commands themselves return None.
        code = app.main(args=list(argv) if argv is not None else None, prog_name="hrnet-fast", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped.", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except HRNetFastError as error:
        _fail(str(error))
    sys.exit(code)


def _fail(message: str) -> None:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    click.echo(f"hrnet-fast: {'; '.join(lines)}", err=True)
    sys.exit(2)
