"""The command ``hrnet-fast``. One file per group of commands; :func:`main` prints every error as one line."""

from hrnet_fast.cli.app import main

__all__ = ["main"]
