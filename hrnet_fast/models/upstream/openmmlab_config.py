"""Reader of OpenMMLab's mappings: mmpose (0.x, 1.x), mmsegmentation, mmdetection, the authors' detection repository.

The three packages have different HRNets under one name, with different defaults (:data:`_DEFAULTS`).
:func:`_identify_upstream` finds the package of a mapping.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hrnet_fast.config import HeadConfig, HRNetConfig, NormConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.description import UPSTREAMS, Description, check_flag, names, read_stages
from hrnet_fast.models.upstream.openmmlab_decoders import codec_note
from hrnet_fast.models.upstream.openmmlab_dense import read_decode_head, read_pyramid
from hrnet_fast.models.upstream.openmmlab_heads import read_heatmap_head
from hrnet_fast.models.upstream.openmmlab_parts import read_norm
from hrnet_fast.models.upstream.section import Section

# Defaults of each package's backbone. `norm_eval` is the default of its constructor.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mmpose": {"upsample": "nearest", "norm_eval": False},
    "mmseg": {"upsample": "bilinear", "upsample_to": "scale_then_target", "norm_eval": False},
    "mmdet": {"upsample": "nearest", "norm_eval": True},
    "unknown": {"upsample": "nearest", "norm_eval": False},
}
_BACKBONES = {"HRNet": None, "HighResolutionNet": "bn", "SyncHighResolutionNet": "syncbn"}
# Entries of whole models that do not change the output of an HRNet.
_NO_EFFECT = (
    *("type", "data_preprocessor", "train_cfg", "test_cfg", "init_cfg", "pretrained", "metainfo", "_scope_"),
    *("loss_pose", "num_stages"),
)
_OTHERS = (
    *("rpn_head", "roi_head", "bbox_head", "mask_head", "bbox_roi_extractor", "mask_roi_extractor"),
    *("semantic_roi_extractor", "semantic_head", "shared_head", "auxiliary_head"),
)
_UPSTREAM_HINT = "Give upstream='mmpose', 'mmseg' or 'mmdet' if that is wrong"
_HEADS = ("decode_head", "head", "keypoint_head", "neck")


def read_openmmlab_config(cfg: Section, upstream: str | None, part: str) -> Description:
    """Return the network of a whole configuration, a model, a backbone or its ``extra``.

    Args:
        cfg: the mapping.
        upstream: the package; ``None`` identifies it.
        part: ``"backbone"`` reads no head.

    Raises:
        ConfigError: the network is no HRNet, a value cannot be built, or a key is unknown.
    """
    scope = cfg.values.get("default_scope")
    model = cfg.section("model") if "model" in cfg else cfg
    scope = model.values.get("_scope_", scope)
    whole = "backbone" in model
    backbone = model.section("backbone") if whole else model
    nested = "extra" in backbone
    extra = backbone.section("extra") if nested else backbone
    whose, notes = _identify_upstream(model if whole else None, backbone, extra, upstream, scope)
    config = _read_backbone(backbone, extra, whose)
    if nested:
        extra.close()
    backbone.close()
    if not whole:
        return Description(config, notes)
    found = _read_head(config, model, part)
    if found.keypoints is not None:
        notes += codec_note(cfg, model)
    return replace(found, notes=(*notes, *found.notes))


def _registered_type(section: Section, default: str) -> tuple[str, str | None]:
    """Return a registered name and its scope, from ``mmpose.HRNet``, a class, or an import path as mmengine writes."""
    given = section.get("type", default)
    if isinstance(given, type):
        given = f"{given.__module__}.{given.__qualname__}"
    parts = str(given).split(".")
    return parts[-1], parts[0] if len(parts) > 1 else None


def _identify_upstream(
    model: Section | None, backbone: Section, extra: Section, upstream: str | None, default_scope: Any
) -> tuple[str, tuple[str, ...]]:
    """Return the package of a mapping, and a note if it is a guess."""
    name, scope = _registered_type(backbone, "HRNet")
    if name not in _BACKBONES:
        raise ConfigError(
            f"from_config: {backbone.name('type')} is {name!r}; accepted backbones are {', '.join(_BACKBONES)}."
        )
    keys = set(model.values) if model else set()
    neck = (
        _registered_type(model.section("neck"), "")[0] if model and isinstance(model.values.get("neck"), dict) else None
    )
    stage4 = extra.values.get("stage4")
    evidence = (
        (upstream, upstream is not None),
        (scope, scope in UPSTREAMS),
        (default_scope, default_scope in UPSTREAMS),
        ("mmdet", name != "HRNet" or neck == "HRFPN" or bool(keys & {"rpn_head", "roi_head", "bbox_head"})),
        ("mmseg", "decode_head" in keys),
        ("mmpose", bool(keys & {"head", "keypoint_head"})),
        ("mmpose", "upsample" in extra or (isinstance(stage4, dict) and "multiscale_output" in stage4)),
        ("mmpose", "/mmpose/" in str(backbone.values.get("init_cfg"))),
    )
    known = next((str(whose) for whose, true in evidence if true), None)
    if known is not None:
        return known, ()
    return _guess_upstream(backbone)


def _guess_upstream(backbone: Section) -> tuple[str, tuple[str, ...]]:
    """Return the probable package of a bare backbone, by the keys of the packages' own configurations.

    All configurations of mmpose have ``in_channels``, all of mmsegmentation SyncBN and ``norm_eval``; those of the
    other packages do not.
    """
    norm = backbone.values.get("norm_cfg")
    if isinstance(norm, dict) and norm.get("type") == "SyncBN" and "norm_eval" in backbone:
        whose, reason = "mmseg", "its SyncBN and norm_eval: all branches, bilinear fusions"
    elif "in_channels" in backbone:
        whose, reason = "mmpose", "its in_channels: the first branch alone, nearest fusions"
    elif "type" in backbone:
        whose, reason = "mmdet", "having neither in_channels nor norm_eval: all branches, nearest fusions, norm_eval"
    else:
        return "unknown", (
            f"the package of this HRNet is unknown; all branches and nearest fusions are assumed. {_UPSTREAM_HINT}",
        )
    return whose, (f"the package of this HRNet is not given; {whose} is assumed, by {reason}. {_UPSTREAM_HINT}",)


def _read_backbone(backbone: Section, extra: Section, upstream: str) -> HRNetConfig:
    stages = read_stages(extra)
    backbone.no_effect("type", "init_cfg", "pretrained", "_scope_", "block_init_cfg")
    backbone.expect("conv_cfg", None, {"type": "Conv2d"})
    for key in ("plugins", "dcn"):
        backbone.expect(key, None)
    options = dict(_DEFAULTS[upstream])
    kind = _BACKBONES[_registered_type(backbone, "HRNet")[0]]
    norm = NormConfig(kind) if kind else read_norm(backbone, {"type": "BN"})  # type: ignore[arg-type]
    assert norm is not None
    if norm.kind == "gn":
        options["norm_eval"] = False  # group normalisation has no running statistics
    options |= {
        "in_channels": backbone.get("in_channels", 3),
        "norm": norm,
        "norm_eval": backbone.get("norm_eval", options["norm_eval"]),
        "frozen_stages": backbone.get("frozen_stages", -1),
        "zero_init_residual": backbone.get("zero_init_residual", False),
        "gradient_checkpointing": backbone.get("with_cp", False),
        "init": "kaiming",
    }
    options |= _read_upsampling(extra, upstream, options)
    options["multiscale_output"] = _read_multiscale(backbone, extra, upstream)
    return HRNetConfig(stages, HeadConfig("features"), **options)


def _read_upsampling(extra: Section, upstream: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of mmpose's ``extra.upsample``, which the other packages do not have."""
    if "upsample" not in extra:
        return {}
    if upstream != "mmpose":
        raise ConfigError(f"from_config: {extra.name('upsample')} is read by mmpose alone; this is {upstream}'s HRNet.")
    section = extra.section("upsample")
    align = section.get("align_corners", None)
    found = {
        "upsample": section.get("mode", options["upsample"]),
        # None is PyTorch's default, False
        "align_corners": align is not None and check_flag(align, section.name("align_corners")),
    }
    section.close()
    return found


def _read_multiscale(backbone: Section, extra: Section, upstream: str) -> bool:
    """Return ``multiscale_output``. mmpose reads it from stage 4, with default False; the others from the backbone."""
    stage4 = extra.values.get("stage4") or {}
    own = backbone.get("multiscale_output", upstream != "mmpose")
    name = (extra.name("stage4") if "multiscale_output" in stage4 else backbone.path) + ".multiscale_output"
    return check_flag(stage4.get("multiscale_output", own), name.lstrip("."))


def _read_head(config: HRNetConfig, model: Section, part: str) -> Description:
    """Return the network with its head or neck."""
    model.no_effect(*_NO_EFFECT)
    others = {key: None for key in _OTHERS if model.get(key, None) is not None}
    notes: tuple[str, ...] = (f"left out, as no part of HRNet: {names(others)}",) if others and part == "all" else ()
    keypoints: str | None = None
    if part == "backbone":
        model.no_effect(*_HEADS)
    elif "decode_head" in model:
        head, more = read_decode_head(model, config)
        config, notes = replace(config, head=head, upsample="bilinear", upsample_to="scale_then_target"), notes + more
    elif "head" in model or "keypoint_head" in model:
        head, more, keypoints = read_heatmap_head(model, config)
        config, notes = replace(config, head=head), notes + more
    elif model.get("neck", None):
        head, more = read_pyramid(model, config)
        config, notes = replace(config, head=head), notes + more
    model.close()
    return Description(config, notes, keypoints)
