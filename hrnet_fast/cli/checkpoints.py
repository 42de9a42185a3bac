"""The commands ``info`` and ``convert``, which describe and convert checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrnet_fast.cli.console import json_option, print_json, print_table, show_notes, torch04_option, weights_option

if TYPE_CHECKING:
    from hrnet_fast.detection import DetectorConfig


@click.command()
@click.argument("what")
@click.option("--family", default="auto", show_default=True, help="The checkpoint's family; auto recognises it.")
@click.option(
    "--part",
    default="whole",
    show_default=True,
    help="backbone: the HRNet trunk of any file; or the prefix of a trunk.",
)
@click.option("--size", "input_size", default=None, help="Input HxW to count GFLOPs at, such as 256x192.")
@weights_option
@torch04_option
@json_option
def info(what: str, family: str, part: str, input_size: str | None, weights: str, torch04: bool, as_json: bool) -> None:
    """Describe WHAT: a named network, or a checkpoint file."""
    from hrnet_fast.cli.option_values import parse_size
    from hrnet_fast.complexity import network_complexity
    from hrnet_fast.models.registry import get_variant, list_models

    size = parse_size(input_size) if input_size else None
    about: dict[str, Any] = {"name": what}
    detector: DetectorConfig | None = None
    if what in list_models():
        variant = get_variant(what)
        config = variant.make()
        about |= {"task": variant.task, "description": variant.description}
        size = size or variant.input_size
    elif Path(what).suffix or os.path.exists(what):
        from hrnet_fast.checkpoints import parse_checkpoint

        checkpoint = parse_checkpoint(what, family=family, part=part, weights=weights, torch04=torch04)
        config = checkpoint.config
        tensors = checkpoint.state
        about |= {
            "family": checkpoint.family.name,
            "description": checkpoint.family.description,
            "tensors": len(tensors),
            "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
            "notes": list(checkpoint.notes),
            "assumptions": list(checkpoint.assumptions),
        }
        detector = checkpoint.detector
        if detector is not None:
            about |= {"detector": detector.kind, "classes": detector.num_classes}
        size = size or (256, 256)
    else:
        get_variant(what)  # raises an error with similar names
        return
    params, gflops = network_complexity(config, size)
    counted = "gflops"
    if detector is not None:  # the heads' operations depend on the picture
        params, counted = _count_parameters(detector), "backbone_and_pyramid_gflops"
    about |= {"input": list(size), "parameters": params, counted: round(gflops, 3), "config": config.to_dict()}
    if as_json:
        print_json(about)
        return
    shown = {k: v for k, v in about.items() if k != "config" and v != []}
    shown["parameters"] = f"{params:,} ({params / 1e6:.2f} M)"
    shown["input"] = f"{size[0]}x{size[1]}"
    shown[counted] = f"{gflops:.2f} (multiply-adds / 2^30 at this input)"
    shown["stages"] = "; ".join(
        f"{s.num_modules} x {s.block} {'/'.join(map(str, s.channels))}, {'/'.join(map(str, s.num_blocks))} units"
        for s in config.stages
    )
    rest = {k: v for k, v in config.to_dict().items() if k not in ("stages", "head", "norm")}
    shown["head"] = ", ".join(f"{k}={v}" for k, v in config.to_dict()["head"].items())
    shown["options"] = ", ".join(f"{k}={v}" for k, v in rest.items())
    print_table(("what", "value"), [(k, ", ".join(v) if isinstance(v, list) else str(v)) for k, v in shown.items()])


def _count_parameters(config: DetectorConfig) -> int:
    from hrnet_fast.detection.detector import Detector
    from hrnet_fast.skip_init import meta_device

    with meta_device():
        return sum(p.numel() for p in Detector(config, impl="reference").parameters())


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, help="Family of the output's names; an unknown one lists all.")
@click.option("--family", default="auto", show_default=True, help="The source's family; auto recognises it.")
@click.option(
    "--part", default="backbone", show_default=True, help="With --to backbone: the prefix of one of several trunks."
)
@click.option("--force", is_flag=True, help="Replace OUTPUT if it exists.")
@weights_option
@torch04_option
@json_option
def convert(
    source: Path,
    output: Path,
    target: str,
    family: str,
    part: str,
    force: bool,
    weights: str,
    torch04: bool,
    as_json: bool,
) -> None:
    """Write SOURCE's weights to OUTPUT (.pth, .pt, .safetensors) under another family's names.

    The settings that a detector's file contains are written too, except to .safetensors, which has no place for them.
    """
    from hrnet_fast.checkpoints.convert import convert_with_settings
    from hrnet_fast.checkpoints.files import SAFETENSORS, save_checkpoint

    show_notes()
    room = output.suffix.lower() != SAFETENSORS
    state, detector = convert_with_settings(
        source, target, family=family, part=part, torch04=torch04, weights=weights, room=room
    )
    save_checkpoint(state, output, overwrite=force, detector=detector if room else None)
    done = {"output": str(output), "family": target, "tensors": len(state)}
    if as_json:
        print_json(done)
    else:
        click.echo(f"wrote {done['tensors']} tensors in {target} names to {output}")
