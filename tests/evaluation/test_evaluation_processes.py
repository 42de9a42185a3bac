"""Two processes evaluate a part each, without repeated samples, and have the figures of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_samples import keypoint_dataset, recipe, segmentation_dataset

from hrnet_fast import datasets
from hrnet_fast.evaluation import evaluate_keypoints, evaluate_segmentation

BOXES = torch.tensor([[8.0, 6.0, 40.0, 60.0], [20.0, 10.0, 70.0, 30.0], [1.0, 30.0, 50.0, 50.0]])


def both(folder: Path) -> list[Any]:
    """Evaluate three made poses and a single made mask: the parts of two processes are uneven, one is empty."""
    dataset = keypoint_dataset(folder / "poses", BOXES, 3)
    crops = datasets.KeypointCrops((32, 32), (8, 8))
    made = segmentation_dataset(folder / "maps", [(16, 24)], 3)

    def heatmaps(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 4)

    return [
        evaluate_keypoints(heatmaps, dataset, crops, recipe("pck"), "cpu", batch_size=2),
        evaluate_segmentation(heatmaps, made, datasets.SegmentationCrops(), recipe("miou"), "cpu"),
    ]


PROGRAM = """
import sys
from datetime import timedelta
from pathlib import Path
from torch import distributed
sys.path[:0] = sys.argv[3:]
from test_evaluation_processes import both

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
expected = both(folder / f"alone{rank}")
distributed.init_process_group(
    "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
found = both(folder / f"together{rank}")
for one, together, parts in zip(expected, found, ((1, 2), (0, 1))):
    assert together.figures == one.figures, (together.figures, one.figures)
    assert together.count == one.count
    first = sum(parts[:rank])
    names = [Path(sample.path).name for sample in one.samples]
    assert [Path(sample.path).name for sample in together.samples] == names[first:first + parts[rank]]
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_have_the_figures_of_one(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path), *paths],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
