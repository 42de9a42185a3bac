"""The commands of ``docs/training.md`` run in their order, on the mouse frames and on made data."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from command_line import call
from tiny_recipes import MOUSE, save_coco, save_masks, settings

import hrnet_fast as hf
from hrnet_fast.demo.random_weights import random_weights
from hrnet_fast.keypoints import KEYPOINT_SETS

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
# Small inputs for commands whose networks are the paper's.
SMALL = ("inputs.input_size=[64, 64]", "inputs.heatmap_size=[16, 16]", "data.workers=0")
# What their w32_256x192_adam_lr1e-3.yaml has and differs from the defaults of their code, with fewer layers.
AUTHORS = """
DATASET: {DATASET: coco, COLOR_RGB: true, ROOT: 'data/coco/', TRAIN_SET: train2017, TEST_SET: val2017}
TEST: {POST_PROCESS: true, FLIP_TEST: true, SHIFT_HEATMAP: true, IMAGE_THRE: 0.0, OKS_THRE: 0.9, IN_VIS_THRE: 0.2,
       USE_GT_BBOX: true, COCO_BBOX_FILE: data/coco/detections.json}
MODEL:
  NAME: pose_hrnet
  NUM_JOINTS: 17
  IMAGE_SIZE: [192, 256]
  HEATMAP_SIZE: [48, 64]
  EXTRA:
    FINAL_CONV_KERNEL: 1
    STAGE2: {NUM_MODULES: 1, NUM_BRANCHES: 2, BLOCK: BASIC, NUM_BLOCKS: [1, 1], NUM_CHANNELS: [4, 8], FUSE_METHOD: SUM}
    STAGE3: {NUM_MODULES: 1, NUM_BRANCHES: 3, BLOCK: BASIC, NUM_BLOCKS: [1, 1, 1], NUM_CHANNELS: [4, 8, 16],
             FUSE_METHOD: SUM}
    STAGE4: {NUM_MODULES: 1, NUM_BRANCHES: 4, BLOCK: BASIC, NUM_BLOCKS: [1, 1, 1, 1], NUM_CHANNELS: [4, 8, 16, 32],
             FUSE_METHOD: SUM}
"""


def commands() -> list[list[str]]:
    blocks = [text for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if not language]
    return [shlex.split(line) for text in blocks for line in text.splitlines()]


def make_data(folder: Path) -> None:
    """Make what the page's commands name."""
    shutil.copytree(MOUSE, folder / "mouse")
    save_coco(folder / "flies", ("head", "left_wing", "right_wing"))
    save_masks(folder / "streets", 11)
    coco = save_coco(folder / "coco", KEYPOINT_SETS["coco"].names, 2, ("train2017", "val2017"))
    for part in ("train2017", "val2017"):
        (coco / "annotations" / f"{part}.json").rename(coco / "annotations" / f"person_keypoints_{part}.json")
    (coco / "detections.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [4, 4, 36, 32], "score": 0.9}]')
    torch.save(random_weights(hf.get_config("hrnetv1_w32_pose"), "pose"), folder / "pose_hrnet_w32_256x192.pth")
    (folder / "w32_256x192_adam_lr1e-3.yaml").write_text(AUTHORS)
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "yaml":
            (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)


def quick(command: list[str]) -> list[str]:
    """Return a command with settings that make it quick; those of a run are in its folder afterwards."""
    if command[0] == "recipe" or "--resume" in command or (command[0] == "eval" and command[1].startswith("runs/")):
        return command
    if "--authors-yaml" in command or "paper/pose_w32_coco" in command:
        coco = [f"data.{part}.images={part}2017" for part in ("train", "val")]
        short = ("loop.epochs=1", "loop.batch_size=2", *SMALL, *coco)
        return [*command, *(word for setting in short for word in ("--set", setting))]
    task = "segmentation" if command[1] == "streets.yaml" else "pose"
    return [*command, *settings(task, *(["data.hold_out=2"] if command[1] == "small/mouse" else []))]


@pytest.mark.slow
def test_commands_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path)
    ran = set()
    for program, *arguments in commands():
        if program == "torchrun":  # test_training_commands.py starts two processes
            assert arguments[2:5] == ["-m", "hrnet_fast.cli", "train"]
            continue
        assert program == "hrnet-fast"
        code, _, err = call(capsys, *quick(arguments))
        assert code == 0, (arguments, err)
        ran.add(arguments[0])
    assert ran == {"recipe", "train", "eval"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mouse", "flies", "streets", "authors"}
    for row in re.findall(r"^\| `(.*?)` \|", PAGE.read_text().split("## A run's folder")[1], re.M):
        for name in row.replace("`", "").split(", "):
            assert name == "tensorboard/" or (tmp_path / "runs" / "mouse" / name).is_file(), name
