"""Read the upstream code bases' own configurations into an :class:`HRNetConfig`.

Two dialects: the authors' yaml (upper case, ``MODEL.EXTRA.STAGE2.NUM_MODULES``) and OpenMMLab's mappings (lower
case, ``backbone.extra.stage2.num_modules``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrnet_fast.config import BlockKind, HeadConfig, HRNetConfig, NormConfig, StageConfig
from hrnet_fast.errors import ConfigError

_BLOCKS: dict[str, BlockKind] = {"BASIC": "basic", "BOTTLENECK": "bottleneck"}
_AUTHORS_DENSE: dict[str, dict[str, Any]] = {
    "nearest": {"upsample": "nearest", "upsample_to": "scale"},
    "bilinear": {"upsample": "bilinear", "upsample_to": "target"},
}
_STAGE1 = StageConfig((64,), (4,), 1, "bottleneck")


def config_from_upstream(cfg: str | os.PathLike[str] | Mapping[str, Any]) -> HRNetConfig:
    """Return the network that an upstream's file or mapping describes (see :meth:`HRNet.from_config`).

    Raises:
        ConfigError: nothing there that describes an HRNet, or a value this package has no counterpart for.
    """
    if isinstance(cfg, (str, os.PathLike)):
        cfg = _read_yaml(Path(cfg))
    if not isinstance(cfg, Mapping):
        raise ConfigError(f"from_config: {type(cfg).__name__} given; accepted are a yaml path or a mapping.")
    try:
        if "MODEL" in cfg:
            return _from_authors(cfg)
        if "model" in cfg and isinstance(cfg["model"], Mapping):
            cfg = cfg["model"]
        if "backbone" in cfg or "extra" in cfg or "stage2" in cfg:
            return _from_openmmlab(cfg)
    except ConfigError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ConfigError(f"from_config: the configuration lacks or mistypes {error}.") from error
    raise ConfigError(
        f"from_config: no HRNet found under the keys {', '.join(map(str, list(cfg)[:8]))}; accepted are the authors' "
        "MODEL.EXTRA and OpenMMLab's backbone or extra."
    )


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"from_config: {path} cannot be read as yaml: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"from_config: {path} holds no mapping.")
    return data


def _stages(extra: Mapping[str, Any], *, upper: bool) -> tuple[StageConfig, ...]:
    def key(name: str) -> str:
        return name.upper() if upper else name

    stages = []
    for k in range(1, 10):
        stage = extra.get(key(f"stage{k}"))
        if stage is None:
            if k == 1:
                stages.append(_STAGE1)  # the pose repositories leave their constant first stage out
                continue
            break
        block = _BLOCKS.get(str(stage[key("block")]).upper())
        if block is None:
            raise ConfigError(
                f"from_config: stage{k} has block {stage[key('block')]!r}; accepted are BASIC, BOTTLENECK."
            )
        fuse = str(stage.get(key("fuse_method"), "SUM")).upper()
        if fuse != "SUM":
            raise ConfigError(f"from_config: stage{k} has FUSE_METHOD {fuse!r}; the upstreams know SUM only.")
        stages.append(
            StageConfig(
                tuple(stage[key("num_channels")]),
                tuple(stage[key("num_blocks")]),
                stage[key("num_modules")],
                block,
            )
        )
    return tuple(stages)


def _from_authors(cfg: Mapping[str, Any]) -> HRNetConfig:
    model = cfg["MODEL"]
    extra = model["EXTRA"]
    name = str(model.get("NAME", "")).lower()
    stages = _stages(extra, upper=True)
    classes = cfg.get("DATASET", {}).get("NUM_CLASSES", 0) or model.get("NUM_CLASSES", 0)
    kernel = extra.get("FINAL_CONV_KERNEL", 1)
    align = bool(model.get("ALIGN_CORNERS", "ocr" in name))
    if "ocr" in name:
        ocr = model.get("OCR", {})
        head = HeadConfig(
            "ocr",
            classes,
            kernel,
            channels=ocr.get("MID_CHANNELS", 512),
            key_channels=ocr.get("KEY_CHANNELS", 256),
            dropout=ocr.get("DROPOUT", 0.05),
        )
        return HRNetConfig(stages, head, align_corners=align, **_AUTHORS_DENSE["bilinear"])
    if "seg" in name:
        head = HeadConfig("v2", classes, kernel)
        return HRNetConfig(stages, head, align_corners=align, **_AUTHORS_DENSE["bilinear"])
    if "cls" in name:
        head = HeadConfig("c", model.get("NUM_CLASSES", 1000))
        return HRNetConfig(stages, head, init="kaiming")
    if "DECONV" in extra or "higher" in name:
        raise ConfigError(f"from_config: MODEL.NAME={model.get('NAME')!r} has deconvolutions; HRNet's heads have none.")
    if "pose" in name:
        head = HeadConfig("v1", model["NUM_JOINTS"], kernel)
        return HRNetConfig(stages, head, multiscale_output=False)
    if "NUM_JOINTS" in model:  # the facial-landmark repository calls its net "hrnet"
        head = HeadConfig("face", model["NUM_JOINTS"], kernel)
        return HRNetConfig(stages, head, norm=NormConfig(momentum=0.01), **_AUTHORS_DENSE["bilinear"])
    raise ConfigError(
        f"from_config: MODEL.NAME={model.get('NAME')!r} names none of the authors' networks (pose_hrnet, seg_hrnet, "
        "seg_hrnet_ocr, cls_hrnet, or hrnet with MODEL.NUM_JOINTS)."
    )


_MM_NORMS = {"BN": "bn", "SyncBN": "syncbn", "GN": "gn", "BN2d": "bn", "naiveSyncBN": "syncbn"}


def _from_openmmlab(cfg: Mapping[str, Any]) -> HRNetConfig:
    backbone = cfg.get("backbone", cfg)
    extra = backbone.get("extra", backbone)
    if backbone.get("type", "HRNet") not in ("HRNet", "mmpose.HRNet", "mmseg.HRNet", "mmdet.HRNet"):
        raise ConfigError(f"from_config: backbone type {backbone['type']!r}; accepted is HRNet.")
    if (backbone.get("conv_cfg") or {}).get("type", "Conv2d") != "Conv2d":
        raise ConfigError(f"from_config: conv_cfg {backbone['conv_cfg']!r}; accepted is Conv2d.")
    norm = dict(backbone.get("norm_cfg") or {"type": "BN"})
    kind = _MM_NORMS.get(norm.get("type", "BN"))
    if kind is None:
        raise ConfigError(f"from_config: norm_cfg type {norm['type']!r}; accepted are {', '.join(_MM_NORMS)}.")
    options: dict[str, Any] = {
        "in_channels": backbone.get("in_channels", 3),
        "norm": NormConfig(kind, norm.get("momentum", 0.1), norm.get("eps", 1e-5), norm.get("num_groups", 32)),  # type: ignore[arg-type]
        "norm_eval": backbone.get("norm_eval", False),
        "frozen_stages": backbone.get("frozen_stages", -1),
        "zero_init_residual": backbone.get("zero_init_residual", False),
        "gradient_checkpointing": backbone.get("with_cp", False),
        "init": "kaiming",
    }
    head, more = _openmmlab_head(cfg)
    return HRNetConfig(_stages(extra, upper=False), head, **options, **more)


def _openmmlab_head(cfg: Mapping[str, Any]) -> tuple[HeadConfig, dict[str, Any]]:
    """The head, and what its repository's backbone does differently."""
    if "decode_head" in cfg:
        return _decode_head(cfg["decode_head"])
    for name in ("head", "keypoint_head"):
        if name in cfg:
            return _heatmap_head(cfg[name], cfg["backbone"])
    if cfg.get("neck"):
        neck = cfg["neck"][0] if isinstance(cfg["neck"], (list, tuple)) else cfg["neck"]
        if neck.get("type", "HRFPN") not in ("HRFPN", "mmdet.HRFPN"):
            raise ConfigError(f"from_config: neck type {neck['type']!r}; accepted is HRFPN.")
        if str(neck.get("pooling_type", "AVG")).upper() != "AVG":
            raise ConfigError(f"from_config: neck pooling_type {neck['pooling_type']!r}; accepted is AVG.")
        return HeadConfig("v2p", channels=neck["out_channels"], num_levels=neck.get("num_outs", 5)), {}
    backbone = cfg.get("backbone", cfg)
    # mmpose's backbone reads the fourth stage's entry, mmsegmentation's and mmdetection's their own.
    stage4 = backbone.get("extra", backbone).get("stage4", {})
    multiscale = stage4.get("multiscale_output", backbone.get("multiscale_output", True))
    return HeadConfig("features"), {"multiscale_output": multiscale}


def _decode_head(heads: Any) -> tuple[HeadConfig, dict[str, Any]]:
    """mmsegmentation's: one FCN head, or FCN and OCR heads in a row."""
    dense: dict[str, Any] = {"upsample": "bilinear", "upsample_to": "scale_then_target"}
    fcn = heads if isinstance(heads, Mapping) else heads[0]
    # The backbone interpolates without aligned corners whatever the head does.
    for key, accepted in (("num_convs", 1), ("concat_input", False), ("kernel_size", 1), ("align_corners", False)):
        if fcn.get(key, accepted) != accepted:
            raise ConfigError(f"from_config: decode_head has {key}={fcn[key]!r}; HRNet's has {accepted!r}.")
    if isinstance(heads, Mapping):
        return HeadConfig("v2", heads["num_classes"], conv_bias=False), dense
    main = heads[-1]
    ocr = {"channels": main["channels"], "key_channels": main["ocr_channels"], "ocr_outputs": "main"}
    return HeadConfig("ocr", main["num_classes"], conv_bias=False, **ocr), dense


def _heatmap_head(head: Mapping[str, Any], backbone: Mapping[str, Any]) -> tuple[HeadConfig, dict[str, Any]]:
    """mmpose's 1.x (``head``) and 0.x (``keypoint_head``); both have three deconvolutions unless told otherwise."""
    if head.get("deconv_out_channels", head.get("num_deconv_layers", True)):
        raise ConfigError(
            "from_config: this head has deconvolutions, which HRNet's do not; accepted are deconv_out_channels=None "
            "(mmpose 1.x) and num_deconv_layers=0 (0.x)."
        )
    extra, final = head.get("extra") or {}, head.get("final_layer") or {}
    kernel = extra.get("final_conv_kernel", final.get("kernel_size", 1))
    upsample = dict(backbone.get("extra", backbone).get("upsample") or {})
    options: dict[str, Any] = {
        "upsample": upsample.get("mode", "nearest"),
        "align_corners": bool(upsample.get("align_corners")),
        "multiscale_output": backbone.get("extra", backbone)["stage4"].get("multiscale_output", False),
    }
    if head.get("conv_out_channels") or extra.get("num_conv_layers"):
        return HeadConfig("face", head["out_channels"], kernel), options
    return HeadConfig("v1", head["out_channels"], kernel), options
