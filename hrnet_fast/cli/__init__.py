"""The command line ``hrnet-fast``: one file per group of commands, and :func:`main`, which prints errors."""

from hrnet_fast.cli.app import main

__all__ = ["main"]
