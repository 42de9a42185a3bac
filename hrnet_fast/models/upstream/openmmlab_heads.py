"""The heads and necks that OpenMMLab's packages put on an HRNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.config import DeconvConfig, HeadConfig, HRNetConfig, NormConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.description import count
from hrnet_fast.models.upstream.section import Section

_NORMS = {"BN": "bn", "SyncBN": "syncbn", "GN": "gn", "BN2d": "bn", "naiveSyncBN": "syncbn"}
_NO_EFFECT = ("type", "init_cfg", "loss", "decoder", "train_cfg", "test_cfg", "loss_keypoint", "_scope_")
_RELU = {"type": "ReLU"}
Found = tuple[HeadConfig, tuple[str, ...]]


def read_norm(section: Section, default: Any = None) -> NormConfig | None:
    """``norm_cfg``; None where it is absent or None and has no default.

    Raises:
        ConfigError: another kind of normalisation, scales that are not to train, or an unknown key.
    """
    values = section.get("norm_cfg", default)
    if values is None:
        return None
    norm = Section(values, section.name("norm_cfg"))
    name = str(norm.get("type", "BN")).rpartition(".")[2]
    if name not in _NORMS:
        raise ConfigError(f"from_config: {norm.name('type')} is {name!r}; accepted are {', '.join(_NORMS)}.")
    norm.expect("requires_grad", True)
    kind = _NORMS[name]
    rest: dict[str, Any] = {"eps": norm.get("eps", 1e-5)}
    if kind == "gn":
        rest["groups"] = norm.get("num_groups", 32)
    else:
        rest["momentum"] = norm.get("momentum", 0.1)
    norm.close()
    return NormConfig(kind, **rest)  # type: ignore[arg-type]


def _name(section: Section, *accepted: str) -> str:
    """The registered name, without its scope; the first of `accepted` where there is none."""
    given = section.get("type", accepted[0])
    name = given.__name__ if isinstance(given, type) else str(given).rpartition(".")[2]
    if name not in accepted:
        raise ConfigError(f"from_config: {section.name('type')} is {name!r}; accepted are {', '.join(accepted)}.")
    return name


def _check_channels(section: Section, key: str, needed: Any) -> None:
    given = section.get(key, needed)
    given = tuple(given) if isinstance(given, (list, tuple)) else given
    if given not in (needed, sum(needed) if isinstance(needed, tuple) else needed):
        raise ConfigError(f"from_config: {section.name(key)} is {given!r}, but this backbone gives {needed!r}.")


def decode_head(model: Section, config: HRNetConfig) -> Found:
    """mmsegmentation's: one FCN head, or FCN and OCR heads in a row."""
    given = model.get("decode_head")
    rows = [given] if isinstance(given, Mapping) else list(given)
    sections = [Section(row, f"decode_head[{i}]" if len(rows) > 1 else "decode_head") for i, row in enumerate(rows)]
    if len(rows) > 2:
        raise ConfigError(
            f"from_config: decode_head has {len(rows)} heads; accepted are an FCNHead, or that and an OCRHead."
        )
    notes: list[str] = []
    fcn = sections[0]
    _name(fcn, "FCNHead")
    for key, built, default in (("num_convs", 1, 2), ("concat_input", False, True), ("kernel_size", 1, 3)):
        fcn.expect(key, built, default=default)
    fcn.no_effect("dilation")  # of its 1x1 convolutions
    _check_channels(fcn, "channels", sum(fcn.get("in_channels", config.out_channels)))
    dropout = [_dense_head(section, config, notes) for section in sections]
    classes = [_classes(section) for section in sections]
    if len(sections) == 1:
        if dropout[0]:
            raise ConfigError(
                "from_config: decode_head.dropout_ratio is positive; an FCNHead is built without dropout (-1)."
            )
        fcn.close()
        return HeadConfig("v2", classes[0], conv_bias=False), tuple(notes)
    ocr = sections[1]
    _name(ocr, "OCRHead")
    ocr.expect("scale", 1)
    for key in ("num_convs", "concat_input", "kernel_size"):  # of configurations that copy the FCN head's
        ocr.expect(key, fcn.get(key))
    if classes[0] != classes[1]:
        raise ConfigError(
            f"from_config: the decode heads have {classes[0]} and {classes[1]} classes; both need as many."
        )
    head = HeadConfig(
        "ocr",
        classes[1],
        conv_bias=False,
        channels=ocr.get("channels"),
        key_channels=ocr.get("ocr_channels"),
        ocr_outputs="main",
        dropout=dropout[1],
    )
    fcn.close()
    ocr.close()
    return head, tuple(notes)


def _classes(head: Section) -> int:
    """Channels of the logits: one for two classes if told so (``out_channels``)."""
    classes = count(head.get("num_classes"), head.name("num_classes"))
    given = head.get("out_channels", None)
    return classes if given is None else count(given, head.name("out_channels"))


def _dense_head(head: Section, config: HRNetConfig, notes: list[str]) -> float:
    """Check what all decode heads share; return the dropout."""
    head.no_effect(*_NO_EFFECT, "loss_decode", "ignore_index", "sampler", "threshold")
    given = tuple(head.get("in_channels", config.out_channels))
    if given != config.out_channels:  # which mmsegmentation fails on when it runs
        notes.append(f"{head.name('in_channels')} is {given}; built is what the backbone gives, {config.out_channels}")
    head.expect("in_index", tuple(range(len(config.out_channels))), default=-1)
    head.expect("input_transform", "resize_concat", default=None)
    head.expect("align_corners", False)  # the backbone interpolates so whatever its head does
    head.expect("conv_cfg", None, {"type": "Conv2d"})
    head.expect("act_cfg", _RELU)
    norm = read_norm(head)
    if norm is None:
        notes.append(f"{head.name('norm_cfg')} is not given: the head is normalised as the backbone is")
    elif norm != config.norm:
        raise ConfigError(
            f"from_config: {head.name('norm_cfg')} is {norm}, the backbone's is {config.norm}; both need one."
        )
    if "dropout_ratio" not in head:
        notes.append(
            f"{head.name('dropout_ratio')} is not given: no dropout is built (mmsegmentation's default is 0.1)"
        )
    return max(0.0, float(head.get("dropout_ratio", 0.0)))


def heatmap_head(model: Section, config: HRNetConfig) -> Found:
    """mmpose's 1.x (``head``) and 0.x (``keypoint_head``)."""
    key = "head" if "head" in model else "keypoint_head"
    head = model.section(key)
    accepted = ("HeatmapHead", "TopdownHeatmapSimpleHead", "AssociativeEmbeddingHead", "AESimpleHead")
    name = _name(head, *accepted, "AEHigherResolutionHead", "CIDHead", "DEKRHead", "TopDownSimpleHead")
    neck = model.get("neck", None)
    if name in ("CIDHead", "DEKRHead"):
        return HeadConfig("features"), (f"the trunk alone: mmpose's {name} and its neck are left out",)
    if name == "AEHigherResolutionHead":
        _no_neck(neck)
        return _higher(head, config), ()
    if head.get("deconv_out_channels", head.get("num_deconv_layers", True)):
        raise ConfigError(
            "from_config: this head has deconvolutions, which HRNet's do not; accepted are deconv_out_channels=None "
            "(mmpose 1.x) and num_deconv_layers=0 (0.x)."
        )
    head.no_effect(*_NO_EFFECT, "deconv_kernel_sizes", "num_deconv_filters", "num_deconv_kernels")
    head.no_effect("keypoint_loss", "tag_loss")
    kernel, mixes, notes = _final_layers(head, config)
    outputs = _outputs(head, name)
    kind = "face" if mixes else "v1"
    if mixes:
        _check_norm(config)
    _check_inputs(head, neck, config, mixes)
    head.close()
    if name in ("AssociativeEmbeddingHead", "AESimpleHead"):
        notes += (f"{name}'s heatmaps and tags are one tensor of {outputs} channels, heatmaps first",)
    return HeadConfig(kind, outputs, kernel), notes  # type: ignore[arg-type]


def _outputs(head: Section, name: str) -> int:
    """Channels of the heatmaps; grouping adds a tag per keypoint or one in all."""
    if name == "AssociativeEmbeddingHead":
        keypoints, size = count(head.get("num_keypoints"), head.name("num_keypoints")), head.get("tag_dim", 1)
        return keypoints + int(size) * (keypoints if head.get("tag_per_keypoint", True) else 1)
    if name == "AESimpleHead":
        keypoints = count(head.get("num_joints"), head.name("num_joints"))
        tags = keypoints if head.get("tag_per_joint", True) else 1
        return keypoints + (tags if head.get("with_ae_loss")[0] else 0)
    return count(head.get("out_channels"), head.name("out_channels"))


def _final_layers(head: Section, config: HRNetConfig) -> tuple[int, bool, tuple[str, ...]]:
    """The last convolution's kernel, whether a 1x1 convolution of all resolutions stands before it, and notes."""
    extra, final = head.section("extra", {}) if head.get("extra", None) else Section({}), Section({})
    if head.get("final_layer", {}) is None:
        raise ConfigError(f"from_config: {head.name('final_layer')} is None; a final convolution is built always.")
    if head.get("final_layer", None):
        final = head.section("final_layer")
        final.expect("type", "Conv2d", "Conv")
    kernel = extra.get("final_conv_kernel", final.get("kernel_size", 1))
    notes: tuple[str, ...] = ()
    if "padding" in final:
        final.expect("padding", kernel // 2)
    elif kernel != 1 and final.values:
        notes = (
            f"{final.name('kernel_size')}={kernel} is built with padding {kernel // 2}, which keeps the size of the "
            "maps; mmpose pads only if told to, by padding=",
        )
    final.close()
    widths = head.get("conv_out_channels", None) or ()
    kernels = head.get("conv_kernel_sizes", None) or (1,) * len(widths)
    layers = extra.get("num_conv_layers", 0)
    kernels = extra.get("num_conv_kernels", (1,) * layers) if layers else kernels
    extra.close()
    if layers:
        widths = (sum(config.out_channels),) * layers
    if widths and (tuple(widths), tuple(kernels)) != ((sum(config.out_channels),), (1,)):
        raise ConfigError(
            f"from_config: {head.path} has convolutions to {tuple(widths)} channels of sizes {tuple(kernels)} before "
            "its final one (conv_out_channels, num_conv_layers); accepted is one 1x1 convolution to "
            f"{sum(config.out_channels)} channels, the sum of all branches."
        )
    return kernel, bool(widths), notes


def _check_norm(config: HRNetConfig) -> None:
    """mmpose normalises these heads by plain batch normalisation whatever its backbone has."""
    if config.norm not in (NormConfig("bn"), NormConfig("syncbn")):
        raise ConfigError(
            f"from_config: the backbone's norm_cfg is {config.norm}, but mmpose's head has plain batch normalisation; "
            "one normalisation serves the whole network here."
        )


def _check_inputs(head: Section, neck: Any, config: HRNetConfig, mixes: bool) -> None:
    """A head with `mixes` takes all resolutions, concatenated at 1/4; the others take the only one."""
    if neck is not None:
        _concatenation(Section(neck, "neck"), mixes)
    many = tuple(range(len(config.out_channels)))
    head.expect("in_index", *((many, -1, 0) if mixes else (0, -1)))
    head.expect("input_transform", *(("resize_concat", None) if mixes else (None,)))
    head.expect("align_corners", False, None)
    _check_channels(head, "in_channels", config.out_channels if mixes else config.out_channels[0])
    if config.multiscale_output != mixes:
        raise ConfigError(
            f"from_config: stage4.multiscale_output is {config.multiscale_output}, but {head.path} takes "
            + ("all resolutions." if mixes else "the highest resolution alone.")
        )


def _concatenation(neck: Section, mixes: bool) -> None:
    _name(neck, "FeatureMapProcessor")
    neck.expect("concat", mixes, default=False)
    neck.expect("select_index", None)
    neck.expect("scale_factor", 1.0)
    for key in ("apply_relu", "align_corners"):
        neck.expect(key, False)
    neck.close()


def _no_neck(neck: Any) -> None:
    if neck is not None:
        raise ConfigError(f"from_config: neck {neck!r} before an AEHigherResolutionHead; none is accepted.")


def _higher(head: Section, config: HRNetConfig) -> HeadConfig:
    """mmpose 0.x's HigherHRNet."""
    head.no_effect(*_NO_EFFECT)
    _check_norm(config)
    _check_channels(head, "in_channels", config.out_channels[0])
    keypoints = count(head.get("num_joints"), head.name("num_joints"))
    tags = keypoints if head.get("tag_per_joint", True) else 1
    number = head.get("num_deconv_layers", 1)
    blocks = head.get("num_basic_blocks", 4)
    filters, kernels = head.get("num_deconv_filters", (32,)), head.get("num_deconv_kernels", (4,))
    concat, grouped = head.get("cat_output"), head.get("with_ae_loss")
    rows = list(zip(filters, kernels, concat, strict=False))[:number]
    if min(len(rows), len(grouped) - 1) < number:
        raise ConfigError(
            f"from_config: {head.name('num_deconv_layers')} is {number}, which needs as many entries in "
            "num_deconv_filters, num_deconv_kernels and cat_output, and one more in with_ae_loss."
        )
    extra = head.section("extra", {})
    kernel = extra.get("final_conv_kernel", 1)
    extra.close()
    head.close()
    return HeadConfig(
        "higher",
        keypoints,
        kernel,
        deconvs=tuple(DeconvConfig(c, k, blocks, bool(cat)) for c, k, cat in rows),
        tags=tuple(tags if with_tags else 0 for with_tags in grouped[: number + 1]),
    )


def pyramid(model: Section, config: HRNetConfig) -> Found:
    """mmdetection's HRFPN, and the older one of the authors' detection repository."""
    given = model.get("neck")
    if isinstance(given, (list, tuple)):
        if len(given) != 1:
            raise ConfigError(f"from_config: neck has {len(given)} parts; accepted is an HRFPN alone.")
        given = given[0]
    neck = Section(given, "neck")
    _name(neck, "HRFPN")
    neck.no_effect("init_cfg", "with_cp", "with_checkpoint", "_scope_")  # memory, not numbers
    neck.expect("conv_cfg", None, {"type": "Conv2d"})
    neck.expect("share_conv", False)
    neck.expect("normalize", None)
    _check_channels(neck, "in_channels", config.out_channels)
    pooling = str(neck.expect("pooling_type", "AVG", "MAX", default=neck.expect("pooling", "AVG", "MAX")))
    norm = read_norm(neck)
    notes: tuple[str, ...] = ()
    if norm is not None:
        notes = (
            "neck.norm_cfg is built after each of the neck's convolutions; mmdetection 3.3's HRFPN reads past it "
            "(pyramid_norm=None builds that)",
        )
    head = HeadConfig(
        "v2p",
        channels=neck.get("out_channels"),
        num_levels=neck.get("num_outs", 5),
        pyramid_stride=neck.get("stride", 1),
        pyramid_norm=norm,
        pyramid_pool="max" if pooling == "MAX" else "avg",
    )
    neck.close()
    return head, notes
