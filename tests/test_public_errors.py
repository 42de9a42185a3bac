"""Wrong arguments of public functions: one of the package's exceptions, with a message of one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import image, tiny, two_stages
from torch import nn

import hrnet_fast as hf
from hrnet_fast import datasets

FIELDS = [f.name for kind in (hf.HRNetConfig, hf.HeadConfig) for f in dataclasses.fields(kind)]
NORMS = ["bn_momentum", "norm_kind", "norm_eps", "norm_groups"]
MAKE = ["width", "head", "num_outputs", "block", "num_blocks", "num_modules", "num_branches", "stage1_channels"]


@cache
def model() -> hf.HRNet:
    return two_stages()


@cache
def engine() -> hf.Engine:
    return hf.optimize_for_inference(model(), image(32, 32))


def state() -> dict[str, Any]:
    return model().state_dict()


def bad() -> list[Any]:
    """One value of every kind; what of them a place does take is left out there."""
    plain = [None, 3, 2.5, float("nan"), -1, True, "x", b"x", [1], (), {}, object(), int]
    return [*plain, torch.zeros(2), nn.Linear(2, 2), model(), engine()]


def op(name: str, **changes: Any) -> Any:
    xs = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 4)]
    given: dict[str, dict[str, Any]] = {
        "fuse_sum": {"xs": xs},
        "upsample_conv1x1_sum": {"xs": xs, "weights": [torch.zeros(4, 4)] * 2},
        "strided_conv_chain": {"xs": xs[:1], "weight": torch.zeros(4, 4, 3, 3)},
        "grouped_conv3x3": {"xs": xs, "weights": [torch.zeros(4, 4, 3, 3)] * 2},
        "pack_grouped_conv3x3": {"weights": [torch.zeros(4, 4, 3, 3)] * 2},
        "bn_act": {"x": xs[0], "weight": None, "bias": None, "running_mean": None, "running_var": None},
    }
    return getattr(hf.ops, name)(**(given[name] | changes))


OPERATORS = {
    "fuse_sum": ("xs", "scales", "shifts", "size", "mode", "align_corners", "activation", "impl"),
    "upsample_conv1x1_sum": ("xs", "weights", "bias", "size", "mode", "align_corners", "activation", "impl"),
    "strided_conv_chain": ("xs", "weight", "bias", "addend", "relu", "impl"),
    "grouped_conv3x3": ("xs", "weights", "biases", "residuals", "relu", "impl"),
    "pack_grouped_conv3x3": ("weights", "biases"),
    "bn_act": (
        "x", "weight", "bias", "running_mean", "running_var", "residual", "activation", "training", "momentum", "eps",
        "num_batches_tracked", "sync", "impl",
    ),
}  # fmt: skip

MAPS, LABELS = torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64)
OF_LABELS = ("logits", "labels", "class_weights", "ignore_label", "align_corners")
LOSSES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "keypoint_mse": ({"heatmaps": MAPS, "targets": MAPS}, ("heatmaps", "targets", "weights")),
    "keypoint_ohkm": ({"heatmaps": MAPS, "targets": MAPS, "top_k": 2}, ("heatmaps", "targets", "weights", "top_k")),
    "landmark_mse": ({"heatmaps": MAPS, "targets": MAPS}, ("heatmaps", "targets")),
    "pixel_cross_entropy": ({"logits": MAPS, "labels": LABELS}, (*OF_LABELS, "divide_by")),
    "ohem_cross_entropy": ({"logits": MAPS, "labels": LABELS}, (*OF_LABELS, "threshold", "min_kept")),
    "upsample_logits": ({"logits": MAPS, "size": (8, 8)}, ("logits", "size", "align_corners", "impl")),
}


def loss(name: str, **changes: Any) -> Any:
    return getattr(hf.training.losses, name)(**(LOSSES[name][0] | changes))


def coco(folder: Path) -> Path:
    """A file of COCO's format without annotations."""
    path = folder / "annotations.json"
    kinds = [{"id": 1, "name": "fly", "keypoints": ["head"]}]
    path.write_text(json.dumps({"images": [], "categories": kinds, "annotations": []}), encoding="utf-8")
    return path


# Each takes one wrong value; the second entry are the kinds of value that are right there.
PLACES: dict[str, tuple[Callable[[Any, Path], Any], tuple[Any, ...]]] = {
    "accelerate": (lambda v, p: hf.accelerate(v), (hf.HRNet,)),
    "accelerate impl": (lambda v, p: hf.accelerate(two_stages(), impl=v), ()),
    "accelerate memory": (lambda v, p: hf.accelerate(two_stages(), memory=v), ()),
    "restore": (lambda v, p: hf.restore(v), (nn.Module,)),
    "explain": (lambda v, p: hf.explain(v), (hf.Engine,)),
    "create_model": (lambda v, p: hf.create_model(v), ()),
    "create_model impl": (lambda v, p: hf.create_model("hrnet_w18_small", impl=v), ()),
    "get_config": (lambda v, p: hf.get_config(v), ()),
    "list_models": (lambda v, p: hf.list_models(v), (str,)),
    "HRNet": (lambda v, p: hf.HRNet(v, width=4) if v is None else hf.HRNet(v), (type(None),)),
    "HRNet norm_layer": (lambda v, p: hf.HRNet(model().config, norm_layer=v), (type(None), type)),
    "HRNet.from_config": (lambda v, p: hf.HRNet.from_config(v), ()),
    "HRNetConfig": (lambda v, p: hf.HRNetConfig(v), ()),
    "HRNetConfig.from_dict": (lambda v, p: hf.HRNetConfig.from_dict(v), ()),
    "StageConfig channels": (lambda v, p: hf.StageConfig(v, (1,)), (list,)),
    "StageConfig num_blocks": (lambda v, p: hf.StageConfig((4,), v), (list,)),
    "StageConfig block": (lambda v, p: hf.StageConfig((4,), (1,), block=v), ()),
    "NormConfig kind": (lambda v, p: hf.NormConfig(v), ()),
    "HeadConfig kind": (lambda v, p: hf.HeadConfig(v), ()),
    "forward": (lambda v, p: model()(v), ()),
    "forward_features": (lambda v, p: model().forward_features(v), ()),
    "forward of the reference": (lambda v, p: hf.restore(tiny("v2p"))(v), ()),
    "optimize_for_inference": (lambda v, p: hf.optimize_for_inference(v, image(32, 32)), (hf.HRNet,)),
    "optimize example": (lambda v, p: hf.optimize_for_inference(model(), v), ()),
    "optimize dtype": (lambda v, p: hf.optimize_for_inference(model(), image(32, 32), dtype=v), (type(None),)),
    "optimize normalize": (lambda v, p: hf.optimize_for_inference(model(), image(32, 32), normalize=v), (type(None),)),
    "optimize mean": (lambda v, p: hf.optimize_for_inference(model(), image(32, 32), normalize=(v, (1.0,) * 3)), ()),
    "optimize max_shapes": (lambda v, p: hf.optimize_for_inference(model(), image(32, 32), max_shapes=v), (int,)),
    "optimize verify": (lambda v, p: hf.optimize_for_inference(model(), image(32, 32), verify=v), (bool,)),
    "engine": (lambda v, p: engine()(v), ()),
    "Engine.prepare": (lambda v, p: engine().prepare(v), ()),
    "Engine.prepare size": (lambda v, p: engine().prepare((1, 3, v, 32)), (int,)),
    "Engine.plan": (lambda v, p: engine().plan(v), (type(None),)),
    "Engine.memory": (lambda v, p: engine().memory(v), (type(None),)),
    "Engine.profile": (lambda v, p: engine().profile(v), ()),
    "Engine.profile rounds": (lambda v, p: engine().profile(image(32, 32), v), (int,)),
    "Engine.save": (lambda v, p: engine().save(v), (str,)),
    "Engine.save shapes": (lambda v, p: engine().save(p / "e.pt", v), (tuple,)),
    "Engine.load": (lambda v, p: hf.Engine.load(v), ()),
    "Engine.load device": (lambda v, p: hf.Engine.load(p / "none.pt", v), ()),
    "Engine.folded": (lambda v, p: engine().folded(v), (type(None),)),
    "Engine.export": (lambda v, p: engine().export(v), (type(None),)),
    "Engine.export_onnx shape": (lambda v, p: engine().export_onnx(p / "e.onnx", v), (type(None),)),
    "multi_scale network": (lambda v, p: hf.multi_scale(v, image(), (1.0,)), (hf.HRNet, hf.Engine, nn.Module)),
    "flip_test": (lambda v, p: hf.flip_test(v, image()), (hf.HRNet, hf.Engine, nn.Module)),
    "flip_test x": (lambda v, p: hf.flip_test(model(), v), ()),
    "flip_test pairs": (lambda v, p: hf.flip_test(model(), image(32, 32), v), (tuple,)),
    "flip_test shift": (lambda v, p: hf.flip_test(model(), image(32, 32), shift=v), (bool, type(None))),
    "decode_keypoints": (lambda v, p: hf.decode_keypoints(v, (64, 64)), ()),
    "decode_keypoints size": (lambda v, p: hf.decode_keypoints(torch.zeros(1, 3, 8, 8), v), ()),
    "decode_keypoints method": (lambda v, p: hf.decode_keypoints(torch.zeros(1, 3, 8, 8), (32, 32), v), ()),
    "encode_keypoints": (lambda v, p: hf.encode_keypoints(v, None, (32, 32), (8, 8)), ()),
    "encode_keypoints size": (lambda v, p: hf.encode_keypoints(torch.zeros(1, 3, 2), None, v, (8, 8)), ()),
    "encode_keypoints sigma": (
        lambda v, p: hf.encode_keypoints(torch.zeros(1, 3, 2), None, (32, 32), (8, 8), sigma=v), (3, 2.5)
    ),
    "multi_scale x": (lambda v, p: hf.multi_scale(model(), v, (1.0,)), ()),
    "multi_scale scales": (lambda v, p: hf.multi_scale(model(), image(), v), (list,)),
    "multi_scale scale": (lambda v, p: hf.multi_scale(model(), image(32, 32), (v,)), (3, 2.5)),
    "multi_scale divisor": (lambda v, p: hf.multi_scale(model(), image(32, 32), (1,), divisor=v), (int,)),
    "multi_scale flip": (lambda v, p: hf.multi_scale(model(), image(32, 32), (1,), flip=v), (bool,)),
    "multi_scale align_corners": (
        lambda v, p: hf.multi_scale(model(), image(32, 32), (1,), align_corners=v), (bool,)
    ),
    "load_checkpoint": (lambda v, p: hf.load_checkpoint(v), ()),
    "load_checkpoint family": (lambda v, p: hf.load_checkpoint(state(), family=v), ()),
    "load_checkpoint impl": (lambda v, p: hf.load_checkpoint(state(), impl=v), ()),
    "load_checkpoint part": (lambda v, p: hf.load_checkpoint(state(), part=v), ()),
    "load_checkpoint head": (lambda v, p: hf.load_checkpoint(state(), head=v), ()),
    "load_checkpoint weights": (lambda v, p: hf.load_checkpoint(state(), weights=v), ()),
    "load_checkpoint decode": (lambda v, p: hf.load_checkpoint(state(), decode=v), (type(None),)),
    "load_checkpoint torch04": (lambda v, p: hf.load_checkpoint(state(), torch04=v), ()),
    "load_backbone part": (lambda v, p: hf.load_backbone(two_stages(), state(), part=v), ()),
    "load_checkpoint weight": (lambda v, p: hf.load_checkpoint(state() | {"conv1.weight": v}), ()),
    "load_checkpoint in_channels": (lambda v, p: hf.load_checkpoint(state(), in_channels=v), (3,)),
    "load_backbone": (lambda v, p: hf.load_backbone(v, state()), (hf.HRNet,)),
    "load_backbone source": (lambda v, p: hf.load_backbone(two_stages(), v), ()),
    "load_backbone family": (lambda v, p: hf.load_backbone(two_stages(), state(), family=v), ()),
    "convert_checkpoint": (lambda v, p: hf.convert_checkpoint(v, to="pose"), ()),
    "convert_checkpoint to": (lambda v, p: hf.convert_checkpoint(state(), to=v), ()),
    "save_checkpoint": (lambda v, p: hf.save_checkpoint(v, p / "s.pth"), (dict,)),
    "save_checkpoint entry": (lambda v, p: hf.save_checkpoint({"a": v}, p / "s.safetensors"), (torch.Tensor,)),
    "save_checkpoint path": (lambda v, p: hf.save_checkpoint({}, v), ()),
    "AuxiliaryLoss": (lambda v, p: hf.training.losses.AuxiliaryLoss(v), (nn.Module,)),
    "AuxiliaryLoss weights": (lambda v, p: hf.training.losses.AuxiliaryLoss(nn.Identity(), weights=v), (list,)),
    "AuxiliaryLoss outputs": (lambda v, p: hf.training.losses.AuxiliaryLoss(nn.Identity())(v, LABELS), ()),
}  # fmt: skip
BOXES = datasets.BoxAugmentation
CROPS = {"input_size": (8, 8), "heatmap_size": (4, 4)}
PLACES |= {
    "coco_keypoints": (datasets.coco_keypoints, ()),
    "coco_keypoints images": (lambda v, p: datasets.coco_keypoints(p / "a", v), ()),
    "coco_keypoints detections": (lambda v, p: datasets.coco_keypoints(coco(p), p, detections=v), (type(None),)),
    "coco_keypoints category": (lambda v, p: datasets.coco_keypoints(coco(p), p, category=v), (type(None),)),
    "coco_keypoints flip_pairs": (lambda v, p: datasets.coco_keypoints(coco(p), p, flip_pairs=v), (type(None),)),
    "mpii": (lambda v, p: datasets.mpii(v), ()),
    "mpii split": (lambda v, p: datasets.mpii(p, v), ()),
    "points_csv": (lambda v, p: datasets.points_csv(v), ()),
    "deeplabcut": (lambda v, p: datasets.deeplabcut(v), ()),
    "deeplabcut box": (lambda v, p: datasets.deeplabcut(p / "a", box=v), ()),
    "face_landmarks": (datasets.face_landmarks, ()),
    "face_landmarks points": (lambda v, p: datasets.face_landmarks(p / "a", p, v), ()),
    "cityscapes": (lambda v, p: datasets.cityscapes(v), ()),
    "cityscapes split": (lambda v, p: datasets.cityscapes(p, v), ()),
    "pascal_context": (lambda v, p: datasets.pascal_context(v), ()),
    "pascal_context num_classes": (lambda v, p: datasets.pascal_context(p, "train", v), ()),
    "mask_folders": (lambda v, p: datasets.mask_folders(v, p, 2), ()),
    "mask_folders masks": (lambda v, p: datasets.mask_folders(p, v, 2), ()),
    "segmentation_list": (lambda v, p: datasets.segmentation_list(v, p, 2), ()),
    "SegmentationDataset num_classes": (lambda v, p: datasets.SegmentationDataset([], v), (int,)),
    "SegmentationDataset ignore_label": (lambda v, p: datasets.SegmentationDataset([], 2, ignore_label=v), (int,)),
    "SegmentationDataset label_map": (lambda v, p: datasets.SegmentationDataset([], 2, label_map=v), (type(None),)),
    "SegmentationDataset skip_broken": (lambda v, p: datasets.SegmentationDataset([], 2, skip_broken=v), (bool,)),
    "a sample": (lambda v, p: datasets.SegmentationDataset([], 2)[v], (int, bool)),
    "normalize": (lambda v, p: datasets.normalize(v), ()),
    "normalize mean": (lambda v, p: datasets.normalize(torch.zeros(1, 3, 2, 2), v), ()),
    "ColorAugmentation images": (lambda v, p: datasets.ColorAugmentation()(v, torch.Generator()), ()),
}
PLACES |= {
    f"KeypointCrops {name}": (lambda v, p, n=name: datasets.KeypointCrops(**(CROPS | {n: v})), right)
    for name, right in {
        "input_size": (), "heatmap_size": (), "method": (), "sigma": (3, 2.5), "padding": (3, 2.5),
        "augmentation": (type(None),), "colors": (type(None),), "upper_body": (),
        "mirror_at_edge": (bool, type(None)), "keypoint_weights": (type(None),), "mean": (), "std": (),
    }.items()
}  # fmt: skip
PLACES |= {
    f"{kind.__name__} {field.name}": (lambda v, p, k=kind, n=field.name: k(**{n: v}), (int, float))
    for kind in (BOXES, datasets.ColorAugmentation)
    for field in dataclasses.fields(kind)
}
PLACES |= {
    f"SegmentationCrops {name}": (lambda v, p, n=name: datasets.SegmentationCrops(**{n: v}), right)
    for name, right in {
        "crop_size": (), "base_size": (3,), "scales": (), "scale_step": (3, 2.5), "stretch": (bool,),
        "flip_probability": (int,), "flip_first": (bool,), "swapped_classes": (tuple,), "colors": (type(None),),
        "mean": (), "std": (),
    }.items()
}  # fmt: skip
PLACES |= {f"override {n}": (lambda v, p, n=n: hf.get_config("hrnetv1_w32_pose", **{n: v}), ()) for n in FIELDS}
PLACES |= {f"override {n}": (lambda v, p, n=n: hf.get_config("hrnetv1_w32_pose", **{n: v}), ()) for n in NORMS}
PLACES |= {f"make {n}": (lambda v, p, n=n: hf.HRNetConfig.make(**{n: v}), ()) for n in MAKE}
PLACES |= {
    f"{name} {argument}": (lambda v, p, n=name, a=argument: op(n, **{a: v}), ())
    for name, arguments in OPERATORS.items()
    for argument in arguments
}
PLACES |= {
    f"{name} {argument}": (lambda v, p, n=name, a=argument: loss(n, **{a: v}), ())
    for name, (_, arguments) in LOSSES.items()
    for argument in arguments
}


def one_line(message: str) -> bool:
    return "\n" not in message and 10 < len(message) < 600


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_wrong_arguments_raise_one_line(place: str, tmp_path: Path) -> None:
    """What is taken, is taken; whatever else happens is one of this package's exceptions."""
    call, right = PLACES[place]
    kinds = tuple(kind for kind in right if isinstance(kind, type))
    values = [value for kind in right if not isinstance(kind, type) for value in [kind]]
    told: list[str] = []
    for value in bad():
        if (kinds and isinstance(value, kinds)) or any(type(value) is type(v) and value == v for v in values):
            continue
        try:
            call(value, tmp_path)
        except hf.HRNetFastError as error:
            told.append(str(error))
    assert [message for message in told if not one_line(message)] == []
    assert len(told) >= 8, "most of them are wrong anywhere"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("accelerate", None),
        ("restore", None),
        ("explain", None),
        ("optimize_for_inference", None),
        ("load_backbone", None),
    ],
)
def test_none_in_place_of_a_model_is_explained(place: str, value: Any, tmp_path: Path) -> None:
    """OpenMMLab's backbones once returned None from train(), and so from eval()."""

    class Backbone(nn.Module):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    assert Backbone().eval() is None
    with pytest.raises(hf.InputError, match=r"None given; accepted is an nn\.Module; .*model\.eval\(\) on a line"):
        PLACES[place][0](value, tmp_path)


def test_our_networks_return_themselves() -> None:
    net = tiny("v1", frozen_stages=1, norm_eval=True)
    assert net.train() is net
    assert net.eval() is net


@pytest.mark.parametrize(
    "way", [copy.copy, copy.deepcopy, pickle.dumps, lambda e: torch.save(e, "/dev/null"), lambda e: pickle.dumps([e])]
)
def test_copying_an_engine_names_what_to_do(way: Callable[[Any], Any]) -> None:
    with pytest.raises(hf.InputError, match=r"Engine\.save\(path\) .* Engine\.load\(path\)"):
        way(engine())
    with torch.no_grad():
        assert torch.equal(engine()(image(32, 32)), engine()(image(32, 32)))


def test_booleans_are_no_other_values() -> None:
    """A word or a number in place of True or False would count as True in silence."""
    for name in ("align_corners", "multiscale_output", "norm_eval", "conv_bias", "upsample_logits"):
        for value in ("no", 0, 1, None):
            with pytest.raises(hf.ConfigError, match=f"{name}={value!r} must be True or False"):
                hf.get_config("hrnetv1_w32_pose", **{name: value})
