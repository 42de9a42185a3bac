"""HRNets of the packages on the index, in models of their own, with batches that these are trained with."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mmcv_ext
import torch
from tiny_networks import enliven
from torch import Tensor, nn

Batch = dict[str, Any]  # what a model's trainer passes on: "inputs", [N, 3, H, W], and what they are to give


@dataclass(frozen=True)
class Size:
    """How large a network is: ``timm`` names the one of timm, the other fields are OpenMMLab's."""

    width: int = 4
    stage1_channels: int = 4
    blocks: int = 1
    modules: tuple[int, int, int] = (1, 1, 1)
    timm: str = "hrnet_w18_small"

    def extra(self) -> dict[str, Any]:
        """Return the stages as OpenMMLab's configurations describe them."""
        first = {
            "num_modules": 1, "num_branches": 1, "block": "BOTTLENECK",
            "num_blocks": (self.blocks,), "num_channels": (self.stage1_channels,),
        }  # fmt: skip
        stages: dict[str, Any] = {"stage1": first}
        for k, modules in enumerate(self.modules, start=2):
            stages[f"stage{k}"] = {
                "num_modules": modules, "num_branches": k, "block": "BASIC",
                "num_blocks": (self.blocks,) * k, "num_channels": tuple(self.width << i for i in range(k)),
            }  # fmt: skip
        return stages

    @property
    def channels(self) -> list[int]:
        return [self.width << k for k in range(4)]


TINY = Size()
W18 = Size(18, 64, 4, (1, 4, 3), "hrnet_w18")


@dataclass(frozen=True)
class Upstream:
    """A package with an HRNet.

    Attributes:
        distribution: its name on the index.
        package: the name to import.
        model: a whole model of it, in training mode, with weights that matter.
        backbone: the path of the HRNet in it; empty for the model itself.
        targets: what the model learns from `inputs`.
        checkpointing: whether its units can checkpoint themselves.
    """

    distribution: str
    package: str
    model: Callable[[Size, Any], nn.Module]
    backbone: str
    targets: Callable[[Tensor], Any]
    checkpointing: bool = True

    def build(self, size: Size = TINY, **options: Any) -> Any:
        """Return the model; `options` are of the HRNet."""
        with quietly():
            torch.manual_seed(0)
            return enliven(self.model(size, options))

    def batch(self, inputs: Tensor) -> Batch:
        return {"inputs": inputs, "data_samples": self.targets(inputs)}

    def version(self) -> str:
        return importlib.metadata.version(self.distribution)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that packages give when they are imported or make their networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def openmmlab(package: str) -> Any:
    """Return the registry of models of one of OpenMMLab's packages."""
    mmcv_ext.install()
    with quietly():
        importlib.import_module(f"{package}.models")
        return importlib.import_module(f"{package}.registry").MODELS


def outputs_of(model: Any, x: Tensor) -> list[Tensor]:
    """Return all maps that a model computes from images, without a loss."""
    takes_samples = hasattr(model, "data_preprocessor")
    found = model(x, None) if takes_samples else model(x)
    return [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, Tensor)]


def _openmmlab_model(package: str, size: Size, options: Any, **parts: Any) -> nn.Module:
    backbone = {"type": "HRNet", "in_channels": 3, "extra": size.extra(), **options}
    # mmengine's own preprocessor: those of the packages make float32 of float64.
    config = {"data_preprocessor": {"type": "mmengine.BaseDataPreprocessor"}, "backbone": backbone, **parts}
    registry, models = importlib.import_module("mmengine.registry"), openmmlab(package)
    with registry.DefaultScope.overwrite_default_scope(
        package
    ):  # the inference functions of another may have set theirs
        model: nn.Module = models.build(config)
    return model


def _pose_model(size: Size, options: Any) -> nn.Module:
    codec = {"type": "MSRAHeatmap", "input_size": (64, 64), "heatmap_size": (16, 16), "sigma": 2}
    head = {
        "type": "HeatmapHead", "in_channels": size.width, "out_channels": 3, "deconv_out_channels": None,
        "loss": {"type": "KeypointMSELoss", "use_target_weight": True}, "decoder": codec,
    }  # fmt: skip
    return _openmmlab_model("mmpose", size, options, type="TopdownPoseEstimator", head=head)


def _pose_targets(inputs: Tensor) -> list[Any]:
    structures, data = importlib.import_module("mmpose.structures"), importlib.import_module("mmengine.structures")
    samples = []
    for one in inputs:
        heatmaps = one[:, ::4, ::4].clone()
        fields, labels = data.PixelData(heatmaps=heatmaps), data.InstanceData(keypoint_weights=torch.ones(1, 3))
        sample = structures.PoseDataSample()
        sample.gt_fields, sample.gt_instance_labels = fields, labels
        samples.append(sample)
    return samples


def _segmentation_model(size: Size, options: Any) -> nn.Module:
    norm = {"type": "BN", "requires_grad": True}
    head = {
        "type": "FCNHead", "in_channels": size.channels, "in_index": (0, 1, 2, 3), "channels": 15 * size.width,
        "input_transform": "resize_concat", "kernel_size": 1, "num_convs": 1, "concat_input": False,
        "dropout_ratio": -1, "num_classes": 3, "norm_cfg": norm, "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    }  # fmt: skip
    backbone = {"norm_cfg": norm, "norm_eval": False, **options}
    parts = {"decode_head": head, "train_cfg": {}, "test_cfg": {"mode": "whole"}}
    return _openmmlab_model("mmseg", size, backbone, type="EncoderDecoder", **parts)


def _segmentation_targets(inputs: Tensor) -> list[Any]:
    structures, data = importlib.import_module("mmseg.structures"), importlib.import_module("mmengine.structures")
    samples = []
    for one in inputs:
        sample = structures.SegDataSample(metainfo={"img_shape": tuple(one.shape[1:])})
        sample.gt_sem_seg = data.PixelData(data=one.argmax(0, keepdim=True))
        samples.append(sample)
    return samples


def _detection_model(size: Size, options: Any) -> nn.Module:
    neck = {"type": "HRFPN", "in_channels": size.channels, "out_channels": 8, "stride": 2, "num_outs": 5}
    head = {
        "type": "FCOSHead", "num_classes": 2, "in_channels": 8, "stacked_convs": 1, "feat_channels": 8,
        "strides": [4, 8, 16, 32, 64], "norm_cfg": {"type": "GN", "num_groups": 2},
    }  # fmt: skip
    parts = {"neck": neck, "bbox_head": head, "train_cfg": None, "test_cfg": None}
    return _openmmlab_model("mmdet", size, options, type="FCOS", **parts)


def _detection_targets(inputs: Tensor) -> list[Any]:
    structures, data = importlib.import_module("mmdet.structures"), importlib.import_module("mmengine.structures")
    samples = []
    for one in inputs:
        sample = structures.DetDataSample(metainfo={"img_shape": tuple(one.shape[1:])})
        boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [20.0, 8.0, 60.0, 60.0]], dtype=one.dtype)
        sample.gt_instances = data.InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]))
        samples.append(sample)
    return samples


def _timm_model(size: Size, options: Any) -> nn.Module:
    timm = importlib.import_module("timm")
    model: nn.Module = timm.create_model(size.timm, num_classes=4, **options)
    return model


def _smp_model(size: Size, options: Any) -> nn.Module:
    with quietly():
        smp = importlib.import_module("segmentation_models_pytorch")
        decoder: Any = {"encoder_weights": None, "decoder_channels": (32, 16, 8, 8, 4), "classes": 3}
        model: nn.Module = smp.Unet(f"tu-{size.timm}", **decoder, **options)
    return model


UPSTREAMS = {
    one.package: one
    for one in (
        Upstream("mmpose", "mmpose", _pose_model, "backbone", _pose_targets),
        Upstream("mmsegmentation", "mmseg", _segmentation_model, "backbone", _segmentation_targets),
        Upstream("mmdet", "mmdet", _detection_model, "backbone", _detection_targets),
        Upstream("timm", "timm", _timm_model, "", lambda x: x.mean((1, 2, 3)).argsort() % 4, False),
        Upstream(
            "segmentation-models-pytorch", "segmentation_models_pytorch", _smp_model, "encoder.model",
            lambda x: x.argmax(1), False,
        ),
    )
}  # fmt: skip
