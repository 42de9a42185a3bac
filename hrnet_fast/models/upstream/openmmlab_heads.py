"""Readers of mmpose's heads: heatmaps and landmarks of 0.x and 1.x, associative embedding, HigherHRNet."""

from __future__ import annotations

from typing import Any

from hrnet_fast.config import DeconvConfig, HeadConfig, HRNetConfig, NormConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.description import check_flag, check_int
from hrnet_fast.models.upstream.openmmlab_decoders import read_decoder, read_test_cfg
from hrnet_fast.models.upstream.openmmlab_parts import NO_EFFECT, check_head_channels, registered_name
from hrnet_fast.models.upstream.section import Section

_GROUPING = ("AssociativeEmbeddingHead", "AESimpleHead")


def read_heatmap_head(model: Section, config: HRNetConfig) -> tuple[HeadConfig, tuple[str, ...], str | None]:
    """Return mmpose's ``head`` (1.x) or ``keypoint_head`` (0.x), notes, and the decoding method of its heatmaps."""
    key = "head" if "head" in model else "keypoint_head"
    head = model.section(key)
    accepted = ("HeatmapHead", "TopdownHeatmapSimpleHead", *_GROUPING)
    name = registered_name(head, *accepted, "AEHigherResolutionHead", "CIDHead", "DEKRHead", "TopDownSimpleHead")
    neck = model.get("neck", None)
    if name in ("CIDHead", "DEKRHead"):
        return HeadConfig("features"), (f"the trunk alone: mmpose's {name} and its neck are left out",), None
    if name == "AEHigherResolutionHead":
        _check_no_neck(neck)
        return _read_higher_head(head, config), (), None
    if head.get("deconv_out_channels", head.get("num_deconv_layers", True)):
        raise ConfigError(
            "from_config: this head has deconvolutions, which HRNet's do not; accepted are deconv_out_channels=None "
            "(mmpose 1.x) and num_deconv_layers=0 (0.x)."
        )
    head.no_effect(*NO_EFFECT, "deconv_kernel_sizes", "num_deconv_filters", "num_deconv_kernels")
    head.no_effect("keypoint_loss", "tag_loss")
    kernel, mixes = _final_layers(head, config)
    outputs = _output_channels(head, name)
    kind = "face" if mixes else "v1"
    if mixes:
        _check_norm(config)
    _check_inputs(head, neck, config, mixes)
    notes: tuple[str, ...]
    if name in _GROUPING:
        head.no_effect("decoder")
        keypoints, notes = None, (f"{name}'s heatmaps and tags are one tensor of {outputs} channels, heatmaps first",)
    elif key == "keypoint_head" or name != "HeatmapHead":
        keypoints, notes = read_test_cfg(model)
    else:
        keypoints, notes = read_decoder(head)
    head.close()
    return HeadConfig(kind, outputs, kernel), notes, keypoints  # type: ignore[arg-type]


def _output_channels(head: Section, name: str) -> int:
    """Return the output channels: keypoints, and for grouping a tag per keypoint or one tag."""
    if name == "AssociativeEmbeddingHead":
        keypoints, size = check_int(head.get("num_keypoints"), head.name("num_keypoints")), head.get("tag_dim", 1)
        return keypoints + int(size) * (keypoints if _read_flag(head, "tag_per_keypoint", True) else 1)
    if name == "AESimpleHead":
        keypoints = check_int(head.get("num_joints"), head.name("num_joints"))
        tags = keypoints if _read_flag(head, "tag_per_joint", True) else 1
        return keypoints + (tags if _read_flags(head, "with_ae_loss")[0] else 0)
    return check_int(head.get("out_channels"), head.name("out_channels"))


def _read_flag(head: Section, key: str, default: bool) -> bool:
    return check_flag(head.get(key, default), head.name(key))


def _read_flags(head: Section, key: str) -> list[bool]:
    return [check_flag(value, head.name(key)) for value in head.get(key)]


def _final_layers(head: Section, config: HRNetConfig) -> tuple[int, bool]:
    """Return the kernel size of the last convolution, and whether a 1x1 convolution of all resolutions precedes it."""
    extra, final = head.section("extra", {}) if head.get("extra", None) else Section({}), Section({})
    if head.get("final_layer", {}) is None:
        raise ConfigError(f"from_config: {head.name('final_layer')} is None; a final convolution is built always.")
    if head.get("final_layer", None):
        final = head.section("final_layer")
        final.expect("type", "Conv2d", "Conv")
    kernel = extra.get("final_conv_kernel", final.get("kernel_size", 1))
    if final.values:  # arguments of nn.Conv2d; 0.x computes the padding
        final.expect("padding", kernel // 2, default=0)
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
    return kernel, bool(widths)


def _check_norm(config: HRNetConfig) -> None:
    """Check the backbone's normalisation: mmpose's heads always have batch normalisation."""
    if config.norm not in (NormConfig("bn"), NormConfig("syncbn")):
        raise ConfigError(
            f"from_config: the backbone's norm_cfg is {config.norm}, but mmpose's head has plain batch normalisation; "
            "one normalisation serves the whole network here."
        )


def _check_inputs(head: Section, neck: Any, config: HRNetConfig, mixes: bool) -> None:
    """Check the head's inputs: all resolutions concatenated at 1/4 with `mixes`, otherwise the highest one."""
    if neck is not None:
        _check_concatenation(Section(neck, "neck"), mixes)
    many = tuple(range(len(config.out_channels)))
    head.expect("in_index", *((many, -1, 0) if mixes else (0, -1)))
    head.expect("input_transform", *(("resize_concat", None) if mixes else (None,)))
    head.expect("align_corners", False, None)
    check_head_channels(head, "in_channels", config.out_channels if mixes else config.out_channels[0])
    if config.multiscale_output != mixes:
        raise ConfigError(
            f"from_config: stage4.multiscale_output is {config.multiscale_output}, but {head.path} takes "
            + ("all resolutions." if mixes else "the highest resolution alone.")
        )


def _check_concatenation(neck: Section, mixes: bool) -> None:
    registered_name(neck, "FeatureMapProcessor")
    neck.expect("concat", mixes, default=False)
    neck.expect("select_index", None)
    neck.expect("scale_factor", 1.0)
    for key in ("apply_relu", "align_corners"):
        neck.expect(key, False)
    neck.close()


def _check_no_neck(neck: Any) -> None:
    if neck is not None:
        raise ConfigError(f"from_config: neck {neck!r} before an AEHigherResolutionHead; none is accepted.")


def _read_higher_head(head: Section, config: HRNetConfig) -> HeadConfig:
    """Return mmpose 0.x's HigherHRNet head."""
    head.no_effect(*NO_EFFECT)
    _check_norm(config)
    check_head_channels(head, "in_channels", config.out_channels[0])
    keypoints = check_int(head.get("num_joints"), head.name("num_joints"))
    tags = keypoints if _read_flag(head, "tag_per_joint", True) else 1
    number = head.get("num_deconv_layers", 1)
    blocks = head.get("num_basic_blocks", 4)
    filters, kernels = head.get("num_deconv_filters", (32,)), head.get("num_deconv_kernels", (4,))
    concat, grouped = _read_flags(head, "cat_output"), _read_flags(head, "with_ae_loss")
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
        deconvs=tuple(DeconvConfig(c, k, blocks, cat) for c, k, cat in rows),
        tags=tuple(tags if with_tags else 0 for with_tags in grouped[: number + 1]),
    )
