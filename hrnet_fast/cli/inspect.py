"""``models``, ``table`` and ``doctor``: what there is."""

from __future__ import annotations

import click

from hrnet_fast.cli.console import json_option, print_json, print_table, progress


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
    """Print a table of the paper beside what this package gives."""


@table.command("complexity")
@json_option
def complexity_table(as_json: bool) -> None:
    """Parameters and GFLOPs of every HRNet of the paper, and ours (Tables 1, 3, 15, 16, Appendix D)."""
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


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions and devices, and which implementations can run here and why not."""
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
    rows += [(name, value or "not set") for name, value in found["environment"].items()]
    print_table(("what", "here"), rows)
    word = {True: "yes", False: "no"}
    usable = [(n, word[i["usable"]], i["reason"]) for n, i in found["implementations"].items()]
    title = f"For a network, impl='auto' means {found['auto']} here"
    print_table(("implementation", "usable", "why"), usable, title=title)
