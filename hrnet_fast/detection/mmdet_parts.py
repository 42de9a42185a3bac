"""Readers of the parts that mmdetection's heads share: losses, coders, assigners, samplers and selections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.detection.config_parts import AssignConfig, BoxLossConfig, ProposalConfig, SampleConfig
from hrnet_fast.models.upstream.openmmlab_parts import check_head_channels, registered_name
from hrnet_fast.models.upstream.section import Section


def accept_layers(head: Section, channels: int, *norms: Any) -> None:
    """Check the settings of a head's layers that every head has.

    Raises:
        ConfigError: inputs of another width, a normalisation that is none of `norms`, or other convolutions.
    """
    head.no_effect("init_cfg", "_scope_", "train_cfg", "test_cfg", "type")
    head.expect("conv_cfg", None, {"type": "Conv2d"})
    norm = head.get("norm_cfg", None)
    if norm is not None and isinstance(norm, dict) and norm.get("type") == "GN" and norms:
        groups = Section(norm, head.name("norm_cfg"))
        groups.no_effect("type", "num_groups", "requires_grad")
        groups.close()
    else:
        head.expect("norm_cfg", None, default=None)
    check_head_channels(head, "in_channels", channels)


def read_weight(loss: Section, kind: str, **flags: bool) -> float:
    """Return the factor of a loss of class `kind`, whose `flags` must be as given."""
    registered_name(loss, kind)
    for name, default in (("use_sigmoid", kind == "FocalLoss"), ("use_mask", False)):
        loss.expect(name, flags.get(name, False), default=default)
    loss.expect("reduction", "mean")
    loss.expect("class_weight", None)
    weight: float = loss.get("loss_weight", 1.0)
    loss.close()
    return weight


def read_box_loss(loss: Section) -> BoxLossConfig:
    smooth = registered_name(loss, "L1Loss", "SmoothL1Loss") == "SmoothL1Loss"
    loss.expect("reduction", "mean")
    beta = loss.get("beta", 1.0) if smooth else 1.0
    found = BoxLossConfig("smooth_l1" if smooth else "l1", beta, loss.get("loss_weight", 1.0))
    loss.close()
    return found


def read_stds(coder: Section) -> tuple[float, ...]:
    """Return the divisors of ``DeltaXYWHBBoxCoder``, or of the one of 1.x."""
    registered_name(coder, "DeltaXYWHBBoxCoder", "LegacyDeltaXYWHBBoxCoder")
    coder.expect("target_means", (0.0, 0.0, 0.0, 0.0))
    coder.expect("clip_border", True)
    coder.expect("add_ctr_clamp", False)
    coder.no_effect("ctr_clamp", "use_box_type")
    found = tuple(coder.get("target_stds", (1.0, 1.0, 1.0, 1.0)))
    coder.close()
    return found


def is_legacy(model: Any) -> set[bool]:
    """Return whether coders, anchors and pooling in a configuration are those of 1.x; both where it has both."""
    if isinstance(model, (list, tuple)):
        return {found for value in model for found in is_legacy(value)}
    if not isinstance(model, Mapping):
        return set()
    name = str(model.get("type", "")).rpartition(".")[2]
    if name == "RoIAlign":
        return {not model.get("aligned", True)}
    if name.endswith(("DeltaXYWHBBoxCoder", "AnchorGenerator")):
        return {name.startswith("Legacy")}
    return is_legacy(list(model.values()))


def read_assign(assigner: Section) -> AssignConfig:
    registered_name(assigner, "MaxIoUAssigner")
    for key, value in (("gt_max_assign_all", True), ("ignore_wrt_candidates", True), ("perm_repeat_gt_cfg", None)):
        assigner.expect(key, value)
    assigner.expect("iou_calculator", {"type": "BboxOverlaps2D"})
    assigner.no_effect("gpu_assign_thr")  # where it computes
    found = AssignConfig(
        positive_iou=assigner.get("pos_iou_thr"),
        negative_iou=assigner.get("neg_iou_thr"),
        least_iou=assigner.get("min_pos_iou", 0.0),
        match_low_quality=assigner.get("match_low_quality", True),
        ignore_iof=assigner.get("ignore_iof_thr", -1),
    )
    assigner.close()
    return found


def read_sample(sampler: Section) -> SampleConfig:
    registered_name(sampler, "RandomSampler")
    sampler.expect("neg_pos_ub", -1)
    found = SampleConfig(
        number=sampler.get("num"),
        positive_fraction=sampler.get("pos_fraction"),
        add_objects=sampler.get("add_gt_as_proposals", True),
    )
    sampler.close()
    return found


def read_nms(section: Section) -> float:
    """Return the IoU of a section's non-maximum suppression."""
    nms = section.section("nms")
    nms.expect("type", "nms")
    iou: float = nms.get("iou_threshold")
    nms.close()
    return iou


def read_proposals(settings: Section) -> ProposalConfig:
    settings.expect("nms_across_levels", False)
    found = ProposalConfig(
        before_nms=settings.get("nms_pre"),
        per_image=settings.get("max_per_img"),
        nms_iou=read_nms(settings),
        least_size=settings.get("min_bbox_size"),
    )
    settings.close()
    return found


def read_selection(settings: Section) -> dict[str, Any]:
    """Return the fields that :class:`RoIConfig` and :class:`FCOSConfig` share."""
    return {
        "score_threshold": settings.get("score_thr"),
        "nms_iou": read_nms(settings),
        "per_image": settings.get("max_per_img"),
    }
