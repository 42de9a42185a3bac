"""Images of every pixel type: scaled or refused, never clipped; networks of other input channels."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from tiny_networks import tiny

from hrnet_fast import InputError
from hrnet_fast.tasks import TASKS, Options
from hrnet_fast.tasks.images import crop, read_image, to_tensor
from hrnet_fast.tasks.pixels import MEAN, STATISTICS, STD, as_channels

SIXTEEN = np.array([[0, 257, 128 * 257], [1000, 40000, 65535]], dtype=np.uint16)
EIGHT = [[0, 1, 128], [4, 156, 255]]  # by hand: round(v / 257)


def write_png(path: Path, depth: int, colour: int, pixels: np.ndarray[Any, Any]) -> Path:
    """A PNG by its specification, which Pillow cannot write with 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(data)
    return path


def grey_of(path: Path) -> list[list[int]]:
    picture = read_image(path)
    assert picture.mode == "RGB"
    red, green, blue = np.moveaxis(np.array(picture), 2, 0)
    assert (red == green).all()
    assert (red == blue).all()
    return red.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"grey.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 3 2 65535\n" + SIXTEEN.astype(">u2").tobytes())
    else:
        Image.fromarray(SIXTEEN).save(path)
    assert grey_of(path) == EIGHT
    assert np.array(read_image(path, 1)).tolist() == EIGHT


def test_big_endian_twelve_bit_and_inverted_tiff(tmp_path: Path) -> None:
    big = tmp_path / "big.tif"
    _write_tiff(big, SIXTEEN.astype(">u2"), bits=16, order=">")
    assert grey_of(big) == EIGHT
    inverted = tmp_path / "inverted.tif"
    _write_tiff(inverted, SIXTEEN.astype("<u2"), bits=16, photometric=0)
    assert grey_of(inverted) == [[255 - v for v in row] for row in [[0, 1, 128], [4, 156, 255]]]
    twelve = tmp_path / "twelve.tif"
    # Two pixels in three bytes: 4095 and 2048.
    _write_tiff(twelve, np.array([[0xFF, 0xF8, 0x00]], dtype=np.uint8), bits=12, size=(2, 1))
    assert grey_of(twelve) == [[255, 128]]


def _write_tiff(
    path: Path,
    data: np.ndarray[Any, Any],
    *,
    bits: int,
    order: str = "<",
    photometric: int = 1,
    size: tuple[int, int] | None = None,
    kind: int = 1,
) -> None:
    width, height = size or (data.shape[1], data.shape[0])
    raw = data.tobytes()
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(raw)), (339, kind)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    start = 8 + len(raw) + len(raw) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    path.write_bytes(head + raw + b"\0" * (len(raw) % 2) + directory + b"\0\0\0\0")


def test_floating_pixels_are_taken_in_their_range(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(path)
    assert grey_of(path) == [[0, 128, 255]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0.0, 255.0]], dtype=np.float32),
        np.array([[-0.1, 0.5]], dtype=np.float32),
        np.array([[0.1, np.nan]], dtype=np.float32),
        np.array([[0.1, np.inf]], dtype=np.float32),
        np.array([[0, 70000]], dtype=np.int32),
        np.array([[0, 200]], dtype=np.int32),
    ],
)
def test_what_has_no_known_white_is_refused(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    path = tmp_path / "odd.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match=r"odd\.tif: .* accepted are"):
        read_image(path)


def test_signed_integers_are_refused(tmp_path: Path) -> None:
    _write_tiff(tmp_path / "signed.tif", np.array([[5, 9]], dtype="<i2"), bits=16, kind=2)
    with pytest.raises(InputError, match="white is unknown"):
        read_image(tmp_path / "signed.tif")


@pytest.mark.parametrize(("colour", "bands"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bit_colour_keeps_its_upper_byte(tmp_path: Path, colour: int, bands: int) -> None:
    pixels = np.full((1, 2, bands), 100 * 257, dtype=np.uint16)
    pixels[0, 1] = 65535
    path = write_png(tmp_path / "colour.png", 16, colour, pixels)
    assert np.array(read_image(path)).tolist() == [[[100] * 3, [255] * 3]]


def test_other_modes_read_as_rgb(tmp_path: Path) -> None:
    red = (200, 0, 0)
    made = {
        "grey.png": (Image.new("L", (2, 1), 7), (7, 7, 7)),
        "bits.png": (Image.new("1", (2, 1), 1), (255, 255, 255)),
        "alpha.png": (Image.new("LA", (2, 1), (9, 0)), (9, 9, 9)),
        "rgba.png": (Image.new("RGBA", (2, 1), (*red, 0)), red),  # alpha is dropped, colour stays
        "ink.tif": (Image.new("CMYK", (2, 1), (0, 255, 255, 0)), (255, 0, 0)),
    }
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, *red])
    palette.info["transparency"] = b"\x00\x80"
    made["palette.png"] = (palette, red)
    for name, (picture, expected) in made.items():
        picture.save(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / name).getpixel((0, 0)) == expected, name
    assert read_image(tmp_path / "palette.png", 4).getpixel((0, 0)) == (*red, 0x80)
    assert read_image(tmp_path / "grey.png", 4).getpixel((0, 0)) == (7, 7, 7, 255)  # opaque
    assert read_image(tmp_path / "rgba.png", 1).getpixel((0, 0)) == round(200 * 0.299)


def test_orientation_of_sixteen_bits(tmp_path: Path) -> None:
    turned = Image.fromarray(SIXTEEN)
    exif = turned.getexif()
    exif[0x0112] = 3  # by a half turn
    turned.save(tmp_path / "turned.png", exif=exif)
    assert grey_of(tmp_path / "turned.png") == [row[::-1] for row in EIGHT[::-1]]


def test_frames_after_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Image.new("L", (2, 1), 10), Image.new("L", (2, 1), 20)
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    assert grey_of(tmp_path / "pages.tif") == [[10, 10]]
    assert "the first of 2 frames" in caplog.text
    if features.check("jpg"):  # a camera's preview is no second picture
        caplog.clear()
        first.convert("RGB").save(tmp_path / "camera.mpo", save_all=True, append_images=[second.convert("RGB")])
        assert read_image(tmp_path / "camera.mpo").size == (2, 1)
        assert not caplog.text


def test_tensors_of_grey_and_of_rgba() -> None:
    grey = to_tensor(Image.new("L", (3, 2), 51))
    assert grey.shape == (1, 1, 2, 3)
    assert grey.unique().item() == pytest.approx((0.2 - 0.449) / 0.226)
    assert STATISTICS[1] == (
        (pytest.approx(sum(MEAN) / 3, abs=5e-4),),
        (pytest.approx(sum(STD) / 3, abs=5e-4),),
    )
    four = to_tensor(Image.new("RGBA", (3, 2), (255, 0, 0, 51)))[0, :, 0, 0]
    assert torch.allclose(four, torch.tensor([(1 - MEAN[0]) / STD[0], -MEAN[1] / STD[1], -MEAN[2] / STD[2], 0.2]))
    with pytest.raises(InputError, match="5 channels; pictures give 1"):
        as_channels(Image.new("RGB", (1, 1)), 5)


def test_resampling_leaves_colour_alone_where_alpha_is_zero() -> None:
    picture = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    assert crop(picture, (0.0, 0.0, 8.0, 8.0), (4, 4)).getpixel((1, 1)) == (200, 100, 50, 0)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    ("task", "head"), [("pose", "v1"), ("segmentation", "v2"), ("classification", "c"), ("landmarks", "face")]
)
def test_networks_of_one_and_four_channels_answer(task: str, head: str, channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    model = tiny(head, in_channels=channels)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    answer = TASKS[task].predict(model, picture, Options(size=(64, 64)))
    assert seen[0].shape == (1, channels, 64, 64)
    assert answer.picture.mode == "RGB"
    if task == "segmentation":  # at its own size: the picture's very pixels
        assert torch.equal(seen[0], to_tensor(as_channels(picture, channels)))


@pytest.mark.parametrize(("classes", "kind"), [(255, np.uint8), (256, np.uint16), (1000, np.uint16)])
def test_label_maps_hold_every_class(tmp_path: Path, classes: int, kind: type) -> None:
    model = tiny("v2", classes)
    with torch.no_grad():
        model.last_layer[3].bias[classes - 1] = 1e4  # the last class wins everywhere
    answer = TASKS["segmentation"].predict(model, Image.new("RGB", (40, 36)), Options(size=(64, 64)))
    answer.maps["labels"].save(tmp_path / "labels.png")
    stored = np.array(Image.open(tmp_path / "labels.png"))
    assert stored.shape == (36, 40)
    assert (stored == classes - 1).all()
    assert answer.data["label_dtype"] == np.dtype(kind).name
    assert Image.open(tmp_path / "labels.png").mode == ("L" if kind is np.uint8 else "I;16")


def test_more_classes_than_sixteen_bits_hold_are_refused() -> None:
    class Many:
        config = tiny("v2").config
        family = None
        assumptions = ()

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1, 65537, 1, 1)

    with pytest.raises(InputError, match="65537 classes"):
        TASKS["segmentation"].predict(Many(), Image.new("RGB", (4, 4)), Options())
