"""Decoding: quickly decoded files have Pillow's pixels; the cache of pictures is whole, shared, limited and removed."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import MOUSE, pattern, save_mask, save_picture
from numpy.typing import NDArray
from PIL import Image

import hrnet_fast as hf
from hrnet_fast import datasets
from hrnet_fast.datasets import picture_cache, picture_decoding
from hrnet_fast.datasets.picture_cache import PictureCache, opened_cache
from hrnet_fast.datasets.reading import read_classes, read_pixels

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # turned by 90 degrees
FILES = {
    "4:4:4": (("RGB", "L", "CMYK"), ".jpeg", {"subsampling": 0}),
    "4:2:0": (("RGB", "CMYK"), ".JPG", {"subsampling": 2, "quality": 60}),
    "progressive": (("RGB", "L"), ".jpg", {"progressive": True}),
    "png": (("RGB", "L", "P", "1", "RGBA", "LA"), ".png", {}),
    "transparent": (("RGB", "L", "P"), ".png", {"transparency": 3}),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, file in FILES.items() for mode in file[0]])
def test_quickly_decoded_pixels_are_those_of_pillow(
    kind: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, suffix, options = FILES[kind]
    path = tmp_path / f"one{suffix}"
    if kind == "transparent" and mode == "RGB":
        options = {"transparency": (3, 4, 5)}
    Image.fromarray(pattern(61, 83)).convert(mode).save(path, **options, exif=EXIF)
    png = suffix == ".png"
    if picture_decoding.png_decoder() if png else picture_decoding.jpeg_decoder():
        by_pillow = mode != "RGB" if png else mode == "CMYK"
        assert (picture_decoding.quickly_decoded(str(path)) is None) == by_pillow
    quick = read_pixels(str(path))
    data = path.read_bytes()
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(hf.DatasetError, match=r"broken\..*: cannot be decoded"):
        read_pixels(str(broken))
    monkeypatch.setattr(picture_decoding, "jpeg_decoder", lambda: None)
    monkeypatch.setattr(picture_decoding, "png_decoder", lambda: None)
    assert torch.equal(quick, read_pixels(str(path)))
    assert quick.shape == (61, 83, 3), "the orientation is left as it is"


def test_damaged_chunks_beside_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.fromarray(pattern(61, 83)).save(path, dpi=(72, 72))
    data = path.read_bytes()
    path.write_bytes(data[:-8])  # ends before the last chunk's name: Pillow reads it
    assert np.array_equal(read_pixels(str(path)).numpy(), pattern(61, 83))
    damaged = data.replace(b"pHYs\0", b"pHYs\1")  # a wrong checksum
    assert damaged != data
    path.write_bytes(damaged)
    with pytest.raises(hf.DatasetError, match=r"one.png: cannot be decoded"):
        read_pixels(str(path))


def test_files_that_pillow_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((4, 5), dtype=np.uint16)).save(deep)
    with pytest.raises(hf.DatasetError, match="a picture of mode I;16"):
        read_pixels(str(deep))
    damaged = save_picture(tmp_path / "damaged.png")
    data = bytearray(damaged.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 0xFF  # libpng leaves the decoder by longjmp
    damaged.write_bytes(data)
    with pytest.raises(hf.DatasetError, match=r"damaged\.png: cannot be decoded"):
        read_pixels(str(damaged))
    large = save_picture(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(hf.DatasetError, match="decompression bomb"):
        read_pixels(str(large))


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_quickly_decoded_classes_are_those_of_pillow(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(pattern(61, 83)).convert(mode).save(path)
    if picture_decoding.png_decoder():
        assert (picture_decoding.quickly_decoded_classes(str(path)) is None) == (mode == "1")
    quick = read_classes(str(path))
    monkeypatch.setattr(picture_decoding, "png_decoder", lambda: None)
    assert np.array_equal(quick, read_classes(str(path)))
    with pytest.raises(hf.DatasetError, match="a mask of mode RGB"):
        read_classes(str(save_picture(tmp_path / "colours.png")))


class DecoderOfPNG:
    """A module in place of kornia_rs, which decodes with Pillow and adds a number."""

    def __init__(self, added: int) -> None:
        self.io, self.added, self.calls = self, added, 0

    def decode_image_png_u8(self, data: bytes, size: tuple[int, int], mode: str) -> NDArray[np.uint8]:
        self.calls += 1
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image).reshape(*size, 3 if mode == "rgb" else 1) + np.uint8(self.added)


def test_a_png_decoder_is_used_where_it_gives_the_pixels_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = picture_decoding.png_decoder.__wrapped__
    monkeypatch.setattr(picture_decoding, "png_decoder", find)
    picture, mask = str(save_picture(tmp_path / "a.png")), str(save_mask(tmp_path / "b.png", [3, 1]))
    expected = {}
    for module, used in ((None, False), (DecoderOfPNG(1), False), (object(), False), (DecoderOfPNG(0), True)):
        monkeypatch.setitem(sys.modules, "kornia_rs", module)
        assert (find() is not None) == used
        found = {"pixels": read_pixels(picture).numpy(), "classes": read_classes(mask)}
        for name, values in found.items():
            assert np.array_equal(values, expected.setdefault(name, values))
    decode = find()
    monkeypatch.setattr(picture_decoding, "png_decoder", lambda: decode)
    calls, cut = module.calls, tmp_path / "c.png"
    read_pixels(picture), read_classes(mask)
    assert module.calls == calls + 2
    cut.write_bytes(Path(picture).read_bytes()[:20])
    for path, error in ((cut, "cannot be decoded"), (tmp_path / "none.png", "no such picture")):
        with pytest.raises(hf.DatasetError, match=error):
            read_pixels(str(path))
    assert module.calls == calls + 2, "what has no header of a PNG file is left to Pillow"


def test_a_decoder_of_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    find = picture_decoding.jpeg_decoder.__wrapped__
    trials = list(picture_decoding._trial_files(picture_decoding._trial_jpegs()))
    trials[0][1][0, 0, 0] += 1
    monkeypatch.setattr(picture_decoding, "_trial_files", lambda _: trials)
    assert find() is None
    monkeypatch.setattr(picture_decoding, "_trial_files", lambda _: 1 / 0)
    assert find() is None
    monkeypatch.setattr(picture_decoding.importlib.util, "find_spec", lambda name: None)
    assert find() is None


def test_entries_are_mapped_and_follow_their_source(tmp_path: Path) -> None:
    source, cache = save_picture(tmp_path / "a.png"), PictureCache(tmp_path / "c", 1 << 20)
    decoded: list[int] = []

    def array(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        def decode() -> NDArray[np.uint8]:
            decoded.append(1)
            return values

        return cache.array(str(source), "pixels", decode)

    first, second = np.arange(24, dtype=np.uint8).reshape(2, 4, 3), np.ones((5, 6, 3), dtype=np.uint8)
    assert np.array_equal(array(first), first)
    assert np.array_equal(array(second), first)
    array(second)[:] = 7  # memory of this process alone
    assert np.array_equal(array(second), first)
    assert len(decoded) == 1
    os.utime(source, ns=(1, 1))
    assert np.array_equal(array(second), second)
    assert np.array_equal(array(first), second)
    assert "keeps 1 decoded pictures and masks in 0.00 GiB" in cache.explain()
    masks = np.full((3, 2), 300, dtype=np.uint16)
    for _ in range(2):
        assert np.array_equal(cache.array(str(source), "labels", masks.copy), masks)
    entry = next(p for p in cache.folder.iterdir() if p.stat().st_size > 100)
    whole = entry.read_bytes()
    other_type = whole.replace(b"|u1", b"|?9", 1)
    for broken in (b"", b"short", bytes(200), whole[:-1], whole[:-30], whole + b"0", other_type):  # as after a crash
        entry.write_bytes(broken)
        assert np.array_equal(array(second), second)
        assert np.array_equal(array(first), second)
    source.unlink()
    with pytest.raises(ZeroDivisionError):  # the reader's own error
        cache.array(str(source), "pixels", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    cache.close()
    cache.close()
    assert cache.folder.exists()


def test_the_limit_is_kept_and_said(tmp_path: Path) -> None:
    sources = [save_picture(tmp_path / f"{i}.png") for i in range(4)]
    values = np.zeros((10, 10, 3), dtype=np.uint8)
    cache = PictureCache(tmp_path / "c", 800)  # two entries of 372 bytes
    for source in sources:
        cache.array(str(source), "pixels", values.copy)
    assert cache.explain().startswith("data.cache keeps 2 decoded pictures")
    assert "decoded in every epoch" in cache.explain()
    large = np.zeros((12, 10, 3), dtype=np.uint8)
    os.utime(sources[0], ns=(1, 1))  # another size, which does not fit in its place
    assert cache.array(str(sources[0]), "pixels", large.copy).shape == (12, 10, 3)
    unfinished = cache.folder / f"{picture_cache._UNFINISHED}x"
    unfinished.write_bytes(b"of a process that was killed")
    cache.close()
    again = PictureCache(cache.folder, 1 << 20)
    assert "keeps 2 decoded" in again.explain()
    assert "every epoch" not in again.explain()
    assert not unfinished.exists()
    again.close()
    less = PictureCache(cache.folder, 400)
    assert "keeps 1 decoded" in less.explain()
    assert sum(p.stat().st_size for p in less.folder.iterdir()) < 450
    less.close()


def test_files_of_others_stay(tmp_path: Path) -> None:
    own = tmp_path / "hrnet_fast_pictures"
    names = (".profile", "usage", "notes.txt", "0" * 32)
    others = [folder / name for folder in (tmp_path, own) for name in names if folder != own or name != "usage"]
    own.mkdir()
    for other in others:
        other.write_bytes(bytes(100))
    with opened_cache(80, str(tmp_path), tmp_path) as cache:
        assert cache is not None
        assert cache.folder == own
    assert all(other.read_bytes() == bytes(100) for other in others)


def _write(cache: PictureCache, sources: list[Path], count: int) -> None:
    for source in sources:
        found = cache.array(str(source), "pixels", lambda s=source: np.full((9, 8, 3), int(s.stem), dtype=np.uint8))
        assert (found == int(source.stem)).all()


@pytest.mark.processes
def test_processes_write_the_same_pictures(tmp_path: Path) -> None:
    sources = [save_picture(tmp_path / f"{i}.png") for i in range(60)]
    cache = PictureCache(tmp_path / "c", 1 << 20, temporary=True)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(cache, sources[::step], 1)) for step in (1, -1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert "keeps 60 decoded" in cache.explain()
    entries = [p for p in cache.folder.iterdir() if p.name not in ("users", "lock", "usage")]
    assert picture_cache._read_usage(cache.folder / "usage")[0] == sum(p.stat().st_size for p in entries)
    second = PictureCache(cache.folder, 1 << 20, temporary=True)
    copied = pickle.loads(pickle.dumps(second))  # a worker that is started anew: it is no user
    copied.close()
    second.close()
    assert cache.folder.exists(), "another process reads it"
    cache.close()
    assert not cache.folder.exists()


def test_where_there_can_be_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_picture(tmp_path / "a.png")
    cache = PictureCache(tmp_path / "c", 1 << 20)
    for one in list(cache.folder.iterdir()):
        one.unlink()
    cache.folder.rmdir()  # or a full disk: decoding goes on
    assert cache.array(str(source), "pixels", lambda: np.ones((2, 2))).sum() == 4
    assert "keeps 0" in cache.explain()
    with pytest.raises(hf.InputError, match="cannot be written"):
        PictureCache(source / "c", 1)
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.raises(hf.InputError, match="another user's"):
        PictureCache(tmp_path, 1, temporary=True)
    monkeypatch.setattr(picture_cache, "fcntl", None)
    with pytest.raises(hf.InputError, match=r"leave data\.cache off"):
        PictureCache(tmp_path, 1)
    with opened_cache(0, None, tmp_path) as none:
        assert none is None


def test_samples_are_the_same_from_a_cache(tmp_path: Path) -> None:
    for i in range(2):
        save_mask(tmp_path / "m" / f"{i}.png", range(9))
        save_picture(tmp_path / "i" / f"{i}.png", seed=i)
    pixels = datasets.mask_folders(tmp_path / "i", tmp_path / "m", 9)
    poses = datasets.deeplabcut(MOUSE / "CollectedData.csv", flip_pairs=())
    with opened_cache(1 << 30, None, tmp_path) as cache:
        assert cache is not None
        for dataset, names in ((pixels, ("image", "labels")), (poses, ("image",))):
            plain = [dataset[i] for i in range(2)]
            dataset.cache = cache
            for _ in range(2):
                for i in range(2):
                    assert all(torch.equal(getattr(dataset[i], name), getattr(plain[i], name)) for name in names)
        save_mask(tmp_path / "m" / "0.png", range(9), 20, 30)
        with pytest.raises(hf.DatasetError, match="a mask of 30 x 20 for a picture of 32 x 24"):
            pixels[0]
        Image.fromarray(pattern(20, 30)).save(tmp_path / "i" / "1.png")
        with pytest.raises(hf.DatasetError, match="a mask of 32 x 24 for a picture of 30 x 20"):
            pixels[1]
    assert not cache.folder.exists()
