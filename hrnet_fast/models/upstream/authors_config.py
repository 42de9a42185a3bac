"""Reader of the authors' yaml files: pose, segmentation, classification, facial landmarks, HigherHRNet, DEKR.

``MODEL.NAME`` identifies the repository and thereby the defaults. Only the segmentation repository has two versions of
one name (:func:`is_ocr_branch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hrnet_fast.config import DeconvConfig, HeadConfig, HRNetConfig, NormConfig, StageConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.description import Description, check_flag, check_int, read_stages
from hrnet_fast.models.upstream.section import Section

# Initial weights, shapes of training targets, and entries of the common default.py that no network reads.
_NO_EFFECT = ("NAME", "INIT_WEIGHTS", "PRETRAINED", "TARGET_TYPE", "IMAGE_SIZE", "HEATMAP_SIZE", "SIGMA")
_NO_EFFECT_EXTRA = ("PRETRAINED_LAYERS", "STEM_INPLANES", "WITH_HEAD")  # the stem's width is constant in their code
_BILINEAR: dict[str, Any] = {"upsample": "bilinear", "upsample_to": "target"}
# Keys that exist only in the default.py of the segmentation repository's HRNet-OCR branch.
_OCR_BRANCH = {
    "MODEL": ("ALIGN_CORNERS", "NUM_OUTPUTS", "OCR"),
    "LOSS": ("BALANCE_WEIGHTS",),
    "TRAIN": (
        "FREEZE_LAYERS",
        "FREEZE_EPOCHS",
        "NONBACKBONE_KEYWORDS",
        "NONBACKBONE_MULT",
        "RANDOM_BRIGHTNESS",
        "RANDOM_BRIGHTNESS_SHIFT_VALUE",
    ),
    "TEST": ("OUTPUT_INDEX",),
}


def read_authors_config(cfg: Section, part: str) -> Description:
    """Return the network of an authors' configuration.

    Raises:
        ConfigError: the network is no HRNet, a value cannot be built, or a key is unknown.
    """
    model = cfg.section("MODEL")
    name = str(model.get("NAME", ""))
    reader = _READERS.get(name.lower())
    if reader is None:
        raise ConfigError(
            f"from_config: MODEL.NAME={name!r} names none of the authors' HRNets; accepted are {', '.join(_READERS)}."
        )
    model.no_effect(*_NO_EFFECT)
    found = reader(cfg, model)
    model.close()
    return replace(found, notes=()) if reader is _read_dekr and part == "backbone" else found


def _read_extra(
    model: Section, *, first_stage: bool, heads: tuple[str, ...] = ()
) -> tuple[Section, tuple[StageConfig, ...]]:
    """Return EXTRA and its stages; `heads` are further keys, which the caller reads."""
    extra = model.section("EXTRA")
    extra.no_effect(*_NO_EFFECT_EXTRA)
    stages = read_stages(extra, first=first_stage)
    for key in heads:
        extra.get(key, None)
    extra.close()
    return extra, stages


def _read_pose(cfg: Section, model: Section) -> Description:
    model.no_effect("TAG_PER_JOINT")
    extra, stages = _read_extra(model, first_stage=False, heads=("FINAL_CONV_KERNEL",))
    head = HeadConfig("v1", check_int(model.get("NUM_JOINTS"), "MODEL.NUM_JOINTS"), extra.get("FINAL_CONV_KERNEL", 1))
    return Description(HRNetConfig(stages, head, multiscale_output=False), keypoints="msra")


def _read_face(cfg: Section, model: Section) -> Description:
    extra, stages = _read_extra(model, first_stage=False, heads=("FINAL_CONV_KERNEL",))
    extra.expect("FINAL_CONV_KERNEL", 1)  # with 3, that code pads a 1x1 convolution, and the maps grow
    head = HeadConfig("face", check_int(model.get("NUM_JOINTS"), "MODEL.NUM_JOINTS"))
    return Description(HRNetConfig(stages, head, norm=NormConfig(momentum=0.01), **_BILINEAR), keypoints="face")


def _read_classification(cfg: Section, model: Section) -> Description:
    model.no_effect("NUM_JOINTS", "TAG_PER_JOINT")
    _, stages = _read_extra(model, first_stage=True, heads=("FINAL_CONV_KERNEL",))
    classes = check_int(model.get("NUM_CLASSES", 1000), "MODEL.NUM_CLASSES")
    notes = () if classes == 1000 else (f"MODEL.NUM_CLASSES={classes} is built; the authors' code always builds 1000",)
    return Description(HRNetConfig(stages, HeadConfig("c", classes), init="kaiming"), notes)


def is_ocr_branch(cfg: Section) -> bool:
    """Whether a segmentation file belongs to the HRNet-OCR branch, by keys that exist only there.

    That branch aligns corners by default and has a momentum of 0.1. The other branches (master, pytorch-v1.1) have no
    ALIGN_CORNERS, never align, and have a momentum of 0.01.
    """
    return any(
        key in section for name, keys in _OCR_BRANCH.items() for key in keys if (section := cfg.get(name, {}) or {})
    )


def _num_classes(cfg: Section) -> int:
    return check_int(cfg.section("DATASET", {}).get("NUM_CLASSES", 19), "DATASET.NUM_CLASSES")


def _read_segmentation(cfg: Section, model: Section) -> Description:
    model.no_effect("NUM_OUTPUTS", "OCR")
    extra, stages = _read_extra(model, first_stage=True, heads=("FINAL_CONV_KERNEL",))
    head = HeadConfig("v2", _num_classes(cfg), extra.get("FINAL_CONV_KERNEL", 1))
    if is_ocr_branch(cfg):
        align = check_flag(model.get("ALIGN_CORNERS", True), "MODEL.ALIGN_CORNERS")
        return Description(HRNetConfig(stages, head, align_corners=align, **_BILINEAR))
    note = (
        "read as of the segmentation repository's branches master and pytorch-v1.1, since no key in it is HRNet-OCR's "
        "alone: corners are not aligned, bn_momentum=0.01; HRNet-OCR's are align_corners=True, bn_momentum=0.1"
    )
    return Description(HRNetConfig(stages, head, norm=NormConfig(momentum=0.01), **_BILINEAR), (note,))


def _read_ocr(cfg: Section, model: Section) -> Description:
    model.no_effect("NUM_OUTPUTS")
    _, stages = _read_extra(model, first_stage=True, heads=("FINAL_CONV_KERNEL",))  # its last convolutions are all 1x1
    ocr = model.section("OCR", {})
    ocr.no_effect("SCALE")  # the code passes a constant
    widths = {"channels": ocr.get("MID_CHANNELS", 512), "key_channels": ocr.get("KEY_CHANNELS", 256)}
    dropout = ocr.get("DROPOUT", 0.05)
    ocr.close()
    notes = () if dropout == 0.05 else (f"MODEL.OCR.DROPOUT={dropout} is built; the authors' code always drops 0.05",)
    head = HeadConfig("ocr", _num_classes(cfg), dropout=dropout, **widths)
    align = check_flag(model.get("ALIGN_CORNERS", True), "MODEL.ALIGN_CORNERS")
    return Description(HRNetConfig(stages, head, align_corners=align, **_BILINEAR), notes)


def _read_higher_hrnet(cfg: Section, model: Section) -> Description:
    extra, stages = _read_extra(model, first_stage=False, heads=("FINAL_CONV_KERNEL", "DECONV"))
    deconv = extra.section("DECONV")
    number = check_int(deconv.get("NUM_DECONVS"), deconv.name("NUM_DECONVS"))
    blocks = deconv.get("NUM_BASIC_BLOCKS")
    columns = [deconv.get(key)[:number] for key in ("NUM_CHANNELS", "KERNEL_SIZE", "CAT_OUTPUT")]
    columns[-1] = [check_flag(cat, deconv.name("CAT_OUTPUT")) for cat in columns[-1]]
    steps = tuple(DeconvConfig(c, k, blocks, cat) for c, k, cat in zip(*columns, strict=True))
    deconv.close()
    keypoints = check_int(model.get("NUM_JOINTS"), "MODEL.NUM_JOINTS")
    grouped = [check_flag(value, "LOSS.WITH_AE_LOSS") for value in cfg.section("LOSS", {}).get("WITH_AE_LOSS", (True,))]
    if min(len(grouped) - 1, len(steps)) < number:
        raise ConfigError(
            f"from_config: {number} deconvolutions need as many entries in each list of MODEL.EXTRA.DECONV and one "
            f"more in LOSS.WITH_AE_LOSS; {len(steps)} and {len(grouped)} given."
        )
    tags = keypoints if check_flag(model.get("TAG_PER_JOINT", True), "MODEL.TAG_PER_JOINT") else 1
    head = HeadConfig(
        "higher",
        keypoints,
        extra.get("FINAL_CONV_KERNEL", 1),
        deconvs=steps,
        tags=tuple(tags if with_tags else 0 for with_tags in grouped[: number + 1]),
    )
    norm = NormConfig("syncbn" if check_flag(model.get("SYNC_BN", False), "MODEL.SYNC_BN") else "bn")
    return Description(HRNetConfig(stages, head, multiscale_output=False, norm=norm))


def _read_dekr(cfg: Section, model: Section) -> Description:
    """Return DEKR's trunk. Its heads regress offsets by adaptive convolutions, which this package does not have."""
    model.no_effect("NUM_JOINTS")
    spec = model.section("SPEC")
    spec.no_effect("PRETRAINED_LAYERS", "FINAL_CONV_KERNEL", "HEAD_HEATMAP", "HEAD_OFFSET")
    table = spec.section("STAGES")
    spec.close()
    columns = {key: table.get(key) for key in ("NUM_CHANNELS", "NUM_BLOCKS", "NUM_MODULES", "BLOCK", "NUM_BRANCHES")}
    columns["FUSE_METHOD"] = table.get("FUSE_METHOD", ["SUM"] * len(columns["BLOCK"]))
    number = check_int(table.get("NUM_STAGES"), table.name("NUM_STAGES"))
    table.close()
    rows = {f"STAGE{k + 2}": {key: column[k] for key, column in columns.items()} for k in range(number)}
    stages = read_stages(Section(rows, table.path))
    note = "the trunk alone: the heads of DEKR (MODEL.SPEC.HEAD_*) are left out"
    return Description(HRNetConfig(stages, HeadConfig("features")), (note,))


_READERS: dict[str, Callable[[Section, Section], Description]] = {
    "pose_hrnet": _read_pose,
    "seg_hrnet": _read_segmentation,
    "seg_hrnet_ocr": _read_ocr,
    "cls_hrnet": _read_classification,
    "hrnet": _read_face,
    "pose_higher_hrnet": _read_higher_hrnet,
    "hrnet_dekr": _read_dekr,
}
