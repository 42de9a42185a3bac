"""Readers of mmsegmentation's decode heads and of mmdetection's HRFPN neck."""

from __future__ import annotations

from collections.abc import Mapping

from hrnet_fast.config import HeadConfig, HRNetConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.description import check_int
from hrnet_fast.models.upstream.openmmlab_parts import NO_EFFECT, Found, check_head_channels, read_norm, registered_name
from hrnet_fast.models.upstream.section import Section

_RELU = {"type": "ReLU"}


def read_decode_head(model: Section, config: HRNetConfig) -> Found:
    """Return the head of mmsegmentation's ``decode_head``, one FCN head or an FCN and an OCR head, and notes."""
    given = model.get("decode_head")
    rows = [given] if isinstance(given, Mapping) else list(given)
    sections = [Section(row, f"decode_head[{i}]" if len(rows) > 1 else "decode_head") for i, row in enumerate(rows)]
    if len(rows) > 2:
        raise ConfigError(
            f"from_config: decode_head has {len(rows)} heads; accepted are an FCNHead, or that and an OCRHead."
        )
    notes: list[str] = []
    fcn = sections[0]
    registered_name(fcn, "FCNHead")
    for key, built, default in (("num_convs", 1, 2), ("concat_input", False, True), ("kernel_size", 1, 3)):
        fcn.expect(key, built, default=default)
    fcn.no_effect("dilation")  # no effect on 1x1 convolutions
    check_head_channels(fcn, "channels", sum(fcn.get("in_channels", config.out_channels)))
    dropout = [_check_dense_head(section, config, notes) for section in sections]
    classes = [_logit_channels(section) for section in sections]
    if len(sections) == 1:
        fcn.close()
        return HeadConfig("v2", classes[0], conv_bias=False, dropout=dropout[0]), tuple(notes)
    if dropout[0]:
        raise ConfigError(
            f"from_config: {fcn.name('dropout_ratio')} is {dropout[0]}; the FCNHead before an OCRHead is built without "
            "dropout (-1; mmsegmentation's default is 0.1)."
        )
    ocr = sections[1]
    registered_name(ocr, "OCRHead")
    ocr.expect("scale", 1)
    for key in ("num_convs", "concat_input", "kernel_size"):  # some configurations copy these keys from the FCN head
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


def _logit_channels(head: Section) -> int:
    """Return the channels of the logits: ``out_channels`` (1 for two classes) or ``num_classes``."""
    classes = check_int(head.get("num_classes"), head.name("num_classes"))
    given = head.get("out_channels", None)
    return classes if given is None else check_int(given, head.name("out_channels"))


def _check_dense_head(head: Section, config: HRNetConfig, notes: list[str]) -> float:
    """Check the settings that all decode heads share; return the dropout probability."""
    head.no_effect(*NO_EFFECT, "loss_decode", "ignore_index", "sampler", "threshold")
    given = tuple(head.get("in_channels", config.out_channels))
    if given != config.out_channels:  # mmsegmentation raises an error in forward
        notes.append(f"{head.name('in_channels')} is {given}; built is what the backbone gives, {config.out_channels}")
    head.expect("in_index", tuple(range(len(config.out_channels))), default=-1)
    head.expect("input_transform", "resize_concat", default=None)
    head.expect("align_corners", False)  # the backbone always interpolates with False
    head.expect("conv_cfg", None, {"type": "Conv2d"})
    head.expect("act_cfg", _RELU)
    norm = read_norm(head)
    if norm is None:
        raise ConfigError(
            f"from_config: {head.name('norm_cfg')} is not given: mmsegmentation then builds convolutions with biases "
            "and no normalisation, which this package does not; give the backbone's."
        )
    if norm != config.norm:
        raise ConfigError(
            f"from_config: {head.name('norm_cfg')} is {norm}, the backbone's is {config.norm}; both need one."
        )
    ratio = head.get("dropout_ratio", 0.1)
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise ConfigError(
            f"from_config: the configuration mistypes {head.name('dropout_ratio')}: {ratio!r} given; a number belongs "
            "there."
        )
    return max(0.0, ratio)


def read_pyramid(model: Section, config: HRNetConfig) -> Found:
    """Return the head of mmdetection's HRFPN or of the authors' older one, and notes."""
    given = model.get("neck")
    if isinstance(given, (list, tuple)):
        if len(given) != 1:
            raise ConfigError(f"from_config: neck has {len(given)} parts; accepted is an HRFPN alone.")
        given = given[0]
    neck = Section(given, "neck")
    registered_name(neck, "HRFPN")
    neck.no_effect("init_cfg", "with_cp", "with_checkpoint", "_scope_")  # these change memory use, not numbers
    neck.expect("conv_cfg", None, {"type": "Conv2d"})
    neck.expect("share_conv", False)
    neck.expect("normalize", None)
    check_head_channels(neck, "in_channels", config.out_channels)
    pooling = str(neck.expect("pooling_type", "AVG", "MAX", default=neck.expect("pooling", "AVG", "MAX")))
    norm = read_norm(neck)
    notes: tuple[str, ...] = ()
    if norm is not None:
        notes = (
            "neck.norm_cfg is built after each of the neck's convolutions; mmdetection 3.3's HRFPN ignores it "
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
