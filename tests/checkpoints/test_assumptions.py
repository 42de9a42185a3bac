"""Assumptions: what a file leaves open is named once, gone when it is given, and changed by options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call, refused
from family_states import state_of
from PIL import Image
from tiny_networks import image, tiny

import hrnet_fast as hf
from hrnet_fast.tasks.images import read_image, to_tensor


@pytest.mark.parametrize(
    ("family", "default"),
    [
        ("seg", False),
        ("seg_ocr", True),
        ("mmseg", False),
        ("mmseg_ocr", False),
        ("face", False),
        ("mmpose_face", False),
    ],
)
def test_align_corners_is_named_where_both_occur(family: str, default: bool) -> None:
    model = hf.load_checkpoint(state_of(family))
    (line,) = (told for told in model.assumptions if "align_corners" in told)
    assert f"family {family!r}" in line
    assert f"align_corners={default};" in line
    assert f"give align_corners={not default}" in line
    assert model.notes == ()
    for value in (default, not default):
        told = hf.load_checkpoint(state_of(family), align_corners=value).assumptions
        assert not any("align_corners" in line for line in told)


@pytest.mark.parametrize("family", ["pose", "mmpose", "mmpose_0x_face"])
def test_how_heatmaps_decode_is_named(family: str) -> None:
    (line,) = (told for told in hf.load_checkpoint(state_of(family)).assumptions if "decode" in told)
    assert f"family {family!r}" in line
    told = hf.load_checkpoint(state_of(family), decode="udp")
    assert told.keypoints == "udp"
    assert not any("decode" in line for line in told.assumptions)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cls", "timm", "timm_features", "pose_imagenet"])
def test_nothing_is_named_where_all_files_agree(family: str) -> None:
    assert hf.load_checkpoint(state_of(family)).assumptions == ()


def test_a_trunk_beside_its_head_is_of_a_known_kind() -> None:
    assert hf.load_checkpoint(state_of("pose"), part="backbone").assumptions == ()
    for family in ("seg", "mmseg"):
        (line,) = hf.load_checkpoint(state_of(family), part="backbone").assumptions
        assert "align_corners=False" in line


@pytest.mark.parametrize("family", ["backbone", "mm_backbone"])
def test_trunks_may_be_of_either_kind(family: str) -> None:
    (line,) = hf.load_checkpoint(state_of(family)).assumptions
    assert "nearest upsampling" in line
    told = {"upsample": "bilinear", "upsample_to": "target", "align_corners": False}
    assert hf.load_checkpoint(state_of(family), **told).assumptions == ()


@pytest.mark.parametrize("family", ["det", "mmdet"])
def test_the_first_level_of_a_pyramid(family: str) -> None:
    (line,) = (told for told in hf.load_checkpoint(state_of(family)).assumptions if "pyramid_stride" in told)
    assert "begin at 1/4" in line
    detector = {"rpn_head.rpn_conv.weight": torch.ones(2, 2, 3, 3)}  # not FCOS
    for state, options in ((state_of(family) | detector, {}), (state_of(family), {"pyramid_stride": 1})):
        loaded = hf.load_checkpoint(state, **options)
        assert not any("pyramid_stride" in told for told in loaded.assumptions)


@pytest.mark.parametrize("options", [{}, {"upsample": "bilinear", "upsample_to": "target"}, {"downsample": "bilinear"}])
@pytest.mark.parametrize("head", ["v1", "v2", "v2p", "c", "features", "face"])
def test_bilinear_says_whether_align_corners_counts(head: str, options: dict[str, Any]) -> None:
    one, other = (tiny(head, align_corners=value, **options) for value in (False, True))
    with torch.no_grad():
        a, b = (net(image(64, 96)) for net in (one, other))
    a, b = ([m] if isinstance(m, torch.Tensor) else list(m) for m in (a, b))
    assert one.config.bilinear == any(not torch.equal(m, n) for m, n in zip(a, b, strict=True))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def save(tmp_path: Path, family: str, head: str | None = None, **options: Any) -> Path:
    torch.save(state_of(family, head, **options), tmp_path / f"{family}.pth")
    return tmp_path / f"{family}.pth"


def balanced(state: dict[str, torch.Tensor], photo: Path) -> dict[str, torch.Tensor]:
    """Classes that are equally strong on the picture, so that labels change from pixel to pixel."""
    with torch.no_grad():
        logits = hf.load_checkpoint(state)(to_tensor(read_image(photo)))
    return state | {"last_layer.3.bias": state["last_layer.3.bias"] - logits.mean(dim=(0, 2, 3))}


@pytest.mark.no_cover
@pytest.mark.slow
def test_run_prints_an_assumption_once_and_takes_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path
) -> None:
    path = tmp_path / "seg.pth"
    torch.save(balanced(state_of("seg"), photo), path)
    argv = ("run", photo, "-c", path, "-t", "segmentation", "--json")
    labels = {}
    for name, flags in (("own", ()), ("off", ("--no-align-corners",)), ("on", ("--align-corners",))):
        code, _, err = call(capsys, *argv, "-o", tmp_path / name, *flags)
        assert code == 0
        assert err.count("align_corners=False") == (name == "own")
        labels[name] = np.array(Image.open(tmp_path / name / "photo.png.labels.png"))
    assert (labels["own"] == labels["off"]).all()
    assert (labels["own"] != labels["on"]).any()
    many = tmp_path / "many"
    many.mkdir()
    for k in range(3):
        (many / f"{k}.png").write_bytes(photo.read_bytes())
    _, _, err = call(capsys, "run", many, *argv[2:], "-o", tmp_path / "three")
    assert err.count("align_corners=False") == 1
    _, out, _ = call(capsys, "info", path, "--json")
    assert len(json.loads(out)["assumptions"]) == 1


def test_run_refuses_align_corners_where_it_means_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path
) -> None:
    path = save(tmp_path, "pose")
    err = refused(capsys, "run", photo, "-c", path, "-t", "pose", "-o", tmp_path / "out", "--align-corners")
    assert "align_corners: given, but without effect" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_run_adapts_rgb_weights_on_request(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path, channels: int
) -> None:
    path = save(tmp_path, "timm")
    argv = ("run", photo, "-t", "classification", "-o", tmp_path / "out", "--size", "64x64", "--json")
    code, out, err = call(capsys, *argv, "-c", path, "--in-channels", channels)
    assert code == 0
    assert f"adapted from 3 to {channels}" in err
    assert err.count("normalised by (mean, std)") == 1
    assert json.loads(out)[0]["classes"]
    own = tiny("c", 3, in_channels=channels)
    torch.save(own.state_dict(), path)
    code, out, err = call(capsys, *argv, "-c", path, "--force")
    assert code == 0
    assert "adapted" not in err
    assert "and only RGB weights" in refused(capsys, *argv, "-c", path, "--force", "--in-channels", "3")


@pytest.mark.slow
def test_run_refuses_channels_that_pictures_do_not_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path
) -> None:
    path = save(tmp_path, "timm", in_channels=6)
    err = refused(capsys, "run", photo, "-c", path, "-t", "classification", "-o", tmp_path / "out")
    assert "takes 6 channels; pictures give 1 (grey), 3 (RGB) or 4 (RGBA)" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_run_reads_sixteen_bits_and_refuses_odd_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path
) -> None:
    path = save(tmp_path, "timm")
    argv = ("-c", path, "-t", "classification", "-o", tmp_path / "out", "--size", "64x64", "--json")
    grey = np.array(Image.open(photo).convert("L"))
    Image.fromarray(grey).save(tmp_path / "eight.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    found = [json.loads(call(capsys, "run", tmp_path / f"{n}.png", *argv)[1])[0] for n in ("eight", "sixteen")]
    assert found[0]["classes"] == found[1]["classes"]
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    assert "accepted are finite values in [0, 1]" in refused(capsys, "run", tmp_path / "float.tif", *argv)


def test_run_writes_sixteen_bit_labels(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path) -> None:
    path = tmp_path / "seg.pth"
    torch.save(balanced(state_of("seg", num_outputs=300), photo), path)
    code, out, _ = call(capsys, "run", photo, "-c", path, "-t", "segmentation", "-o", tmp_path / "out", "--json")
    assert code == 0
    (result,) = json.loads(out)
    assert result["label_dtype"] == "uint16"
    stored = np.array(Image.open(tmp_path / "out" / "photo.png.labels.png"))
    assert set(np.unique(stored)) == {share["class"] for share in result["shares"]}
    assert stored.max() > 255
