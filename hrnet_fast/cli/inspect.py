"""The commands ``models``, ``table``, ``plan`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from hrnet_fast.cli.console import json_option, print_json, print_table, progress
from hrnet_fast.errors import InputError


@click.command()
@click.argument("pattern", default="*")
@json_option
def models(pattern: str, as_json: bool) -> None:
    """List the named networks that match PATTERN (a shell pattern such as '*pose*')."""
    from hrnet_fast.models.registry import get_variant, list_models

    found = [get_variant(name) for name in list_models(pattern)]
    if not found:
        raise click.UsageError(f"no model matches {pattern!r}; `hrnet-fast models` lists all.")
    if as_json:
        print_json(
            [{"name": v.name, "task": v.task, "input": v.input_size, "description": v.description} for v in found]
        )
        return
    rows = [(v.name, v.task, f"{v.input_size[0]}x{v.input_size[1]}", v.description) for v in found]
    print_table(("model", "task", "input", "description"), rows)


@click.group()
def table() -> None:
    """Print a table: parameters and GFLOPs beside the paper's, or launch counts."""


@table.command("complexity")
@json_option
def complexity_table(as_json: bool) -> None:
    """Parameters and GFLOPs of every HRNet of the paper, and ours (Tables 1, 3, 7, 15, 16, Appendix D)."""
    import dataclasses

    from hrnet_fast.complexity import complexity_entries, complexity_row

    entries = complexity_entries()
    rows = [complexity_row(entry) for entry in progress(entries, len(entries), "counting")]
    if as_json:
        print_json([dataclasses.asdict(r) | {"agrees": r.agrees, "difference": r.difference} for r in rows])
        return
    lines = []
    for r in rows:
        state = "agrees" if r.agrees else f"{r.difference:+.1%}"
        lines.append(
            (
                r.table,
                r.model,
                f"{r.input_size[0]}x{r.input_size[1]}",
                f"{r.paper_params:g}",
                f"{r.params:.2f}",
                f"{r.paper_gflops:g}",
                f"{r.gflops:.2f}",
                state + (f": {r.note}" if r.note else ""),
            )
        )
    columns = ("table", "model", "input", "params, paper (M)>", "ours>", "GFLOPs, paper>", "ours>", "difference")
    print_table(columns, lines, title="Parameters / 10^6 and multiply-adds / 2^30")


@table.command("launches")
@json_option
def launches_table(as_json: bool) -> None:
    """Operator calls of a plain forward, steps of an engine's plan, and launches with grouped branches."""
    import dataclasses

    from hrnet_fast.launches import NETWORKS, launches_row

    rows = [launches_row(name) for name in progress(NETWORKS, len(NETWORKS), "planning")]
    if as_json:
        print_json([dataclasses.asdict(r) for r in rows])
        return
    lines = [
        (r.model, f"{r.input_size[0]}x{r.input_size[1]}", str(r.operator_calls), str(r.steps), str(r.grouped))
        for r in rows
    ]
    print_table(("model", "input", "operator calls>", "steps of the plan>", "launches, branches grouped>"), lines)


@click.command()
@click.argument("model")
@click.option("--size", default=None, help="Input HxW; the model's usual size by default.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 65536), help="Images in a call.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--steps", is_flag=True, help="List all steps.")
@click.option("--dot", type=click.Path(path_type=Path), help="Write a Graphviz file instead.")
@click.option("--force", is_flag=True, help="Replace an existing Graphviz file.")
def plan(model: str, size: str | None, batch: int, dtype: str, steps: bool, dot: Path | None, force: bool) -> None:
    """Show how an engine would execute a named MODEL; needs no weights."""
    import torch

    from hrnet_fast.cli.option_values import parse_size
    from hrnet_fast.inference.planning.lowering import make_plan
    from hrnet_fast.models import HRNet
    from hrnet_fast.models.registry import get_variant
    from hrnet_fast.skip_init import meta_device

    if steps and dot is not None:
        raise InputError("--steps and --dot exclude each other; give one of them.")
    if dot is not None and dot.exists() and not force:
        raise InputError(f"{dot} exists already; give another name, or --force to replace it.")
    variant = get_variant(model)
    height, width = parse_size(size) if size else variant.input_size
    with meta_device():
        network = HRNet(variant.make(), impl="reference").eval()
    made = make_plan(network, (batch, network.config.in_channels, height, width), getattr(torch, dtype))
    if dot is None:
        text = str(made)
        click.echo(text if steps else "\n".join(text.splitlines()[:2]))
        return
    try:
        dot.write_text(made.to_dot() + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{dot}: cannot be written ({error}).") from error
    click.echo(f"written: {dot}")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions and devices, and which implementations can run here."""
    from hrnet_fast.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    rows = [("hrnet_fast", found["hrnet_fast"]), ("python", found["python"]), ("platform", found["platform"])]
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    rows += [("device", device) for device in found["devices"]]
    rows += [(name, version or "not found") for name, version in found["tools"].items()]
    built = found["extension"]
    rows.append(("extension", ", ".join(f"{k} {v}" for k, v in built.items()) if built else "not built"))
    rows += [("engine", line) for line in found["engine"]]
    rows += [(name, value or "not set") for name, value in found["environment"].items()]
    print_table(("what", "here"), rows)
    word = {True: "yes", False: "no"}
    usable = [(n, word[i["usable"]], i["reason"]) for n, i in found["implementations"].items()]
    title = f"For a network, impl='auto' means {found['auto']} here"
    print_table(("implementation", "usable", "why"), usable, title=title)
