"""The command ``launch``, which runs a script whose HRNets are accelerated."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from hrnet_fast.cli.console import impl_option


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--memory", default="lean", show_default=True, type=click.Choice(["fast", "lean", "min"]),
    help="What is kept for backward: see hrnet_fast.accelerate.",
)  # fmt: skip
@click.option(
    "--checkpointing", default="keep", show_default=True, type=click.Choice(["keep", "replace"]),
    help="Of units that run again in backward by a flag of theirs: see hrnet_fast.accelerate.",
)  # fmt: skip
@impl_option
@click.option(
    "--legacy", is_flag=True, help="Supply names that newer numpy and scipy lack: np.float, scipy.misc.imresize, ..."
)
@click.option("-m", "--module", is_flag=True, help="SCRIPT is the name of a module, as with python -m.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(
    memory: str, checkpointing: str, impl: str, legacy: bool, module: bool, script: str, arguments: tuple[str, ...]
) -> Callable[[], None]:
    """Run SCRIPT with its ARGUMENTS; every HRNet in it is accelerated when it is moved, wrapped or first called."""
    if not module and not os.path.isfile(script):
        raise click.UsageError(f"{script}: there is no such file; with -m, give the name of a module.")
    from hrnet_fast.implementations import resolve
    from hrnet_fast.integrations.launch import ScriptAcceleration, run_script

    resolve(impl)
    acceleration = ScriptAcceleration({"memory": memory, "checkpointing": checkpointing, "impl": impl}, legacy)
    return lambda: run_script(script, arguments, module, acceleration)
