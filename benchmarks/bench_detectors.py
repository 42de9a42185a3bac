"""Whole detectors of the paper's table 19: Faster R-CNN on HRNetV2p, beside torchvision's on ResNets with FPN.

``bench_paper_tables`` times backbone and pyramid alone. Weights are random, and normalisations use fixed statistics of
the input, as in mmdetection's configurations. Both detect with 1,000 proposals of an image, and train on 512 of them
with all layers free. The number of detections depends on weights, which is why no results are compared; those of
``accelerate`` and of the engine are compared with eager PyTorch's before they are timed, up to the proposals' logits.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks.bench_paper_tables import OURS, TABLES, about, paper
from benchmarks.harness import Case, Entry, Session
from benchmarks.networks import images
from hrnet_fast.detection import Detector, DetectorConfig, Target, make_detector_config, total_loss
from hrnet_fast.measure import Call, error_limit, relative_error

TABLE, NAME = TABLES["19"], "19 detectors"
CLASSES = 80
BACKBONES = {
    "faster_rcnn_r50_fpn": "resnet50",
    "faster_rcnn_r101_fpn": "resnet101",
    "faster_rcnn_x101_64x4d_fpn": "resnext101_64x4d",
}
SMOKE = ("faster_rcnn_r50_fpn", "faster_rcnn_hrnetv2p_w18")
EAGER, ACCELERATE, ENGINE = "eager channels-last", "hrnet_fast accelerate", "hrnet_fast engine"


def detector(row: str, smoke: bool) -> Any:
    """Return the detector of a row; a smaller one with fewer boxes for smoke tests."""
    torch.manual_seed(0)
    if row in OURS:
        if not smoke:
            return ours(make_detector_config("faster_rcnn", int(row.rpartition("_w")[2]), CLASSES))
        sizes: dict[str, Any] = {"num_blocks": 1, "num_modules": (1, 1, 1), "stage1_blocks": 1, "channels": 16}
        config = make_detector_config("faster_rcnn", 4, CLASSES, **sizes)
        assert config.rpn is not None
        assert config.roi is not None
        proposals = dataclasses.replace(config.rpn.test_proposals, per_image=20)
        stage = dataclasses.replace(config.roi.stages[0], fc_channels=16)
        rpn = dataclasses.replace(config.rpn, train_proposals=proposals, test_proposals=proposals)
        return ours(dataclasses.replace(config, rpn=rpn, roi=dataclasses.replace(config.roi, stages=(stage,))))
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    name, boxes = ("resnet18", 20) if smoke else (BACKBONES[row], 1000)
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    # Training proposes as many boxes as mmdetection's configuration.
    most = {"rpn_post_nms_top_n_train": boxes, "rpn_post_nms_top_n_test": boxes}
    model = FasterRCNN(backbone, CLASSES + 1, image_mean=[0.0] * 3, image_std=[1.0] * 3, **most)
    # Its input is normalised and has its size, as that of ours.
    model.transform.resize = lambda image, target=None: (image, target)
    return model


def ours(config: DetectorConfig) -> Detector:
    return Detector(config, impl="reference")


def with_statistics(model: Any, x: Tensor) -> Any:
    """Let the backbone's normalisations have the statistics of `x`: random weights would grow without."""
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model.backbone(x)
    return model.eval()


def train(model: Any) -> Any:
    """Switch to training, where normalisations keep their statistics."""
    model.train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def proposals_logits(model: Any, x: Tensor) -> list[Tensor]:
    """Return what the proposals of one of our detectors are selected by."""
    logits, deltas = model.rpn_head(model.levels(x))
    return [*logits, *deltas]


def detect(model: Any, x: Tensor, dtype: torch.dtype) -> Call:
    """Return a call that gives the boxes of all images."""
    ours = isinstance(model, Detector)

    def call() -> list[Tensor]:
        with torch.inference_mode(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return [one.boxes if ours else one["boxes"] for one in model(x if ours else list(x))]

    return call


def step(model: Any, x: Tensor, dtype: torch.dtype) -> Call:
    """Return a call that makes a training step, of three objects in each image."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # with rate 0, every step has the same work
    height, width = x.shape[-2:]
    corners = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.4, 0.9, 0.9], [0.6, 0.1, 0.7, 0.3]], device=x.device)
    boxes = corners * torch.tensor([width, height, width, height], device=x.device)
    labels = torch.tensor([1, 2, 3], device=x.device)

    def losses() -> Tensor:
        if isinstance(model, Detector):
            return total_loss(model.losses(x, [Target(boxes, labels)] * len(x)))
        return torch.stack(list(model(list(x), [{"boxes": boxes, "labels": labels}] * len(x)).values())).sum()

    def call() -> list[Tensor]:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = losses()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return [loss.detach()]

    return call


def prepared(model: Any, name: str, x: Tensor, dtype: torch.dtype, training: bool) -> Call:
    """Return the call of a contender, whose proposals' logits were compared with float64's on a part of an image."""
    x = x.to(memory_format=torch.channels_last)
    own = copy.deepcopy(model).to(x.device, memory_format=torch.channels_last)
    fast = train(copy.deepcopy(own)) if training else copy.deepcopy(own)
    if name == ACCELERATE:
        hf.accelerate(fast)
    elif name == ENGINE:
        hf.optimize_for_inference(fast, x, dtype=dtype, inplace=True)
    if name != EAGER:
        part = x[:1, :, :128, :128].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            exact = proposals_logits(copy.deepcopy(model).double(), part.cpu().double())
            with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
                errors = [relative_error([t.cpu() for t in proposals_logits(m, part)], exact) for m in (own, fast)]
        assert errors[1] <= error_limit(errors[0], dtype), f"{name}: error {errors[1]:.1e}, eager's {errors[0]:.1e}"
    if not isinstance(fast, Detector):
        assert torch.equal(fast.transform(list(x))[0].tensors, x)  # it works on the same pixels
    return (step if training else detect)(fast, x, dtype)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("quantity", ["inference", "training step"])
def bench_detectors(benchmark: BenchmarkFixture, session: Session, quantity: str, batch: int) -> None:
    """Inference, or a training step (forward, backward, SGD), of all rows."""
    small, smoke, training = session.scale == "small", not session.measuring, quantity == "training step"
    if batch not in ((2,) if training else TABLE.small_batches if small else TABLE.batches):
        pytest.skip("not a case of this scale")
    size = (TABLE.small_training if small else TABLE.training) if training else TABLE.inference
    size = (64, 64) if smoke else TABLE.small_inference if small and not training else size
    dtype = session.dtypes[-1 if training and session.device.type != "cpu" else 0]
    x = images(batch, size, session.device)
    where, entries = f"{size[0]}x{size[1]} batch {batch}", {}
    for row in SMOKE if smoke else TABLE.rows():
        model = with_statistics(detector(row, smoke).to(session.device), x).cpu()
        names = (EAGER, ACCELERATE if training else ENGINE)
        column = "train_s_per_iter" if training else f"infer_s_bs{batch}"
        given = {"params": about(TABLE, row, batch, size) | {"table": NAME}, "paper": figure(row, column)}
        for name in names if row in OURS else names[:1]:
            make = functools.partial(prepared, model, name, x, dtype, training)
            entries[f"{row}: {name}"] = Entry(make, case=f"{row} {where}", contender=name, **given)
    case = Case(f"table {NAME}", f"detection {where}", quantity, dtype)
    session.time_networks(benchmark, case, entries, seconds=5 if small else 25, rounds=(3, 15))


def figure(row: str, column: str) -> dict[str, Any] | None:
    """Return the paper's figure, under this suite's name."""
    found = paper(TABLE, row, column)
    return found and found | {"table": NAME}


assert set(BACKBONES) | {row for row in OURS if row.startswith("faster")} == set(TABLE.rows())
