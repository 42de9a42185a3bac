"""Write docs/upstreams.md: what accelerate, engines, checkpoints and configurations do in the packages' own models.

The checks are those of tests/upstreams; here they run on networks of the published width 18. `--check` compares
counts of blocks with the committed page's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "upstreams")]

import upstream_checks as checks  # noqa: E402
from tiny_networks import image  # noqa: E402
from upstream_networks import UPSTREAMS, W18, Upstream  # noqa: E402
from upstream_trainers import TRAINERS  # noqa: E402

PAGE = ROOT / "docs" / "upstreams.md"
OPENMMLAB = ("mmpose", "mmseg", "mmdet")
COMMAND = "python scripts/upstream_table.py"

HEAD = """# In the packages' own models

Written by `{command}` with torch {torch} on a CPU. The models are the packages' own, with an HRNet of width 18
(timm's `hrnet_w18`) and random weights; `tests/upstreams` holds smaller ones to the same.

## Training, engines and files

{main}

- **Blocks fused**: of all that `hf.explain` lists after `hf.accelerate(model)`.
- **Outputs, gradients, statistics**: largest relative error of a tensor in float64 against the package's own forward
  and backward, in training (batch 2, 64x64) and evaluation. Gradients include the input's; statistics are running means
  and variances and the counters.
- **Engine**: largest relative error of `hf.optimize_for_inference` of the model's HRNet, in float32.
- **Steps**: the trainer, and the largest relative differences of losses and of final weights between a plain and an
  accelerated network, after three steps in float64. The networks are tiny.
- **Files**: largest relative error of the branches that this package computes from the file which that trainer wrote.
  `hf.convert_checkpoint` gives all tensors of the HRNet back unchanged. Files of mmpose, mmsegmentation and timm also
  load as whole networks, whose outputs agree to 1e-6 in float32.

## Blocks that keep their own forward

{variants}

Kept are the bytes that are alive between forward and backward in float32, at batch 2 and 128x128. With
`checkpointing="replace"` running statistics move once per step. OpenMMLab's units run again in backward and move them
twice. torchvision's frozen normalisation keeps no map for its own backward, so that plain modules keep less than with
`memory="lean"`; `memory="min"` keeps the least.

The authors' repositories are on no index. The tests hold modules that are built as theirs to the same
([correctness](correctness.md)).

## Configurations

Files that the packages install and that have an HRNet, read by mmengine and `hf.HRNet.from_config`.

{configurations}
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count(model: torch.nn.Module) -> str:
    fused, total, _ = checks.blocks(model)
    return f"{fused} of {total}"


def main_row(upstream: Upstream) -> list[str]:
    plain = upstream.build(W18).double()
    fast = checks.accelerated(plain)
    found = checks.errors(fast, plain, image(64, 64, batch=2, dtype=torch.float64))
    row = [f"{upstream.distribution} {upstream.version()}", count(fast)]
    row += [_power(e) for e in (found.outputs, found.gradients, found.statistics)]
    row.append(_power(checks.engine_error(upstream, plain.float(), image(64, 64))))
    _, trainer, file = TRAINERS[upstream.package]
    with tempfile.TemporaryDirectory() as folder:
        steps = checks.training_difference(upstream, Path(folder))
        difference = checks.checkpoint_difference(upstream, Path(folder) / "fast" / file)
    version = importlib.metadata.version(trainer)
    return [*row, f"{trainer} {version}: {_power(steps.losses)}, {_power(steps.weights)}", _power(difference)]


def _power(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def variants() -> Iterator[tuple[str, Any, Any, str]]:
    """Yield the page's rows below the first table: a name, the plain model, the accelerated one, what executes it."""
    for package in OPENMMLAB:
        plain = UPSTREAMS[package].build(W18, with_cp=True, norm_eval=False)
        yield f"{package}, `with_cp=True`", plain, checks.accelerated(plain), "keep"
        replaced = checks.accelerated(plain, checkpointing="replace")
        yield f'{package}, `with_cp=True`, `checkpointing="replace"`', plain, replaced, "keep"
    plain = UPSTREAMS["mmseg"].build(W18)
    yield "mmseg, an image of 66x97", plain, checks.accelerated(plain), "odd"
    from timm.layers import freeze_batch_norm_2d

    plain = freeze_batch_norm_2d(UPSTREAMS["timm"].build(W18))
    for memory in ("lean", "min"):
        fast = checks.accelerated(plain, memory=memory)
        yield f'timm, `freeze_batch_norm_2d`, `memory="{memory}"`', plain, fast, "keep"
    yield "timm, `freeze_batch_norm_2d`, bfloat16 autocast", plain, checks.accelerated(plain), "autocast"


def variant_row(name: str, plain: Any, fast: Any, how: str) -> list[str]:
    if how == "keep":
        x = image(128, 128, batch=2)
        kept = " to ".join(f"{checks.kept_bytes(m, x) / 1e6:.0f}" for m in (plain, fast)) + " MB"
    else:
        kept = ""
        with torch.no_grad(), torch.autocast("cpu", enabled=how == "autocast"):
            checks.outputs_of(fast, image(66, 97) if how == "odd" else image(64, 64, batch=2))
    return [name, count(fast), kept, _reasons(checks.blocks(fast)[2])]


def _reasons(found: dict[str, int]) -> str:
    """Return reasons without what differs between blocks of one kind."""
    totals: dict[str, int] = {}
    for reason, number in found.items():
        text = "at the last call: a map does not fit its target's size" if "does not fit" in reason else reason
        totals[text] = totals.get(text, 0) + number
    return "; ".join(f"{number}: {text}" for text, number in totals.items())


def configuration_row(package: str) -> list[str]:
    found = checks.configurations(checks.configuration_files(package))
    loaded = [f"{n} of {found.found}" for n in (found.loaded, found.backbones)]
    return [package, *loaded, _reasons(found.reasons)]


def page() -> str:
    main = [main_row(one) for one in UPSTREAMS.values()]
    header = ["package", "blocks fused", "outputs", "gradients", "statistics", "engine", "steps", "files"]
    rows = [variant_row(*one) for one in variants()]
    return HEAD.format(
        command=COMMAND,
        torch=torch.__version__.partition("+")[0],
        main=table(header, main),
        variants=table(["model", "blocks fused", "kept, plain to accelerated", "reasons"], rows),
        configurations=table(
            ["package", "whole networks", "HRNets", "refused"], [configuration_row(name) for name in OPENMMLAB]
        ),
    )


def outdated() -> list[str]:
    """Return rows that count other blocks than the committed page: of the packages, and of mmpose's variants."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    counts = {cells[1]: cells[2] for line in lines if len(cells := [c.strip() for c in line.split("|")]) > 3}
    fresh = {f"{u.distribution} {u.version()}": count(checks.accelerated(u.build(W18))) for u in UPSTREAMS.values()}
    fresh |= {name: count(fast) for name, _, fast, _ in itertools.islice(variants(), 2)}
    return [name for name, blocks in fresh.items() if counts.get(name) != blocks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare the blocks of the committed page; write nothing")
    if parser.parse_args().check:
        found = outdated()
        sys.exit(f"docs/upstreams.md is outdated in {', '.join(found)}; run {COMMAND}" if found else 0)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
