"""The group of all commands."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hrnet_fast import __version__
from hrnet_fast.cli.checkpoints import convert, info
from hrnet_fast.cli.console import run_app
from hrnet_fast.cli.demo import demo
from hrnet_fast.cli.evaluate import evaluate
from hrnet_fast.cli.inspect import doctor, models, plan, table
from hrnet_fast.cli.launch import launch
from hrnet_fast.cli.recipes import recipe
from hrnet_fast.cli.run import run
from hrnet_fast.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hrnet-fast")
def app() -> None:
    """HRNet for PyTorch: train and evaluate networks; run, inspect and convert checkpoints of every upstream."""


for command in (models, info, convert, table, plan, run, train, evaluate, recipe, launch, doctor, demo):
    app.add_command(command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``hrnet-fast`` and exit; see :func:`hrnet_fast.cli.console.run_app`."""
    run_app(app, "hrnet-fast", argv)
