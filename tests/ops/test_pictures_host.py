"""The kernels that crop pictures on a CPU, run under ASan and UBSan with pictures that end where their memory ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_host import build, numbers, raw, run
from torch import Tensor

from hrnet_fast import datasets, host_operators
from hrnet_fast.datasets import image_warps
from hrnet_fast.datasets.packed_images import separate_images

pytestmark = [pytest.mark.sanitizer, pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")]
WARP, RESIZE, NORMALIZE = range(3)
ANY_TYPE = 1  # the kernels have one
LANES = 32


def picture(size: tuple[int, int], pixel: int, beside: int = 0) -> tuple[Tensor, bytes]:
    """Return a random picture, and its case: bytes of a row beside the picture's own are in between."""
    h, w = size
    memory = torch.randint(0, 256, ((h - 1) * (w * pixel + beside) + w * pixel,), dtype=torch.uint8)
    row = w * pixel + beside
    view = memory.as_strided((h, w, min(pixel, 3)), (row, pixel, 1))
    return view if pixel > 1 else view[..., 0], numbers(h, w, pixel, row) + raw(memory)


def warps() -> tuple[list[bytes], list[Tensor]]:
    cases, expected = [], []
    for k, size in enumerate([(1, 1), (2, 3), (3, 40), (37, 50), (60, 41), (24, 90)] * 4 + [(17, 67)] * 4):
        pixel, (h, w), flip = 3 + k % 2, ((7, 5), (16, 64), (9, 33))[k % 3], k % 4 > 1
        image, case = picture(size, pixel, beside=3 * (k % 5 == 0))
        matrix = torch.eye(2, 3, dtype=torch.float64)[None] + 0.3 * torch.randn(1, 2, 3, dtype=torch.float64)
        matrix[..., 2] = 15 * torch.randn(1, 2)
        if size == (17, 67):  # blocks that end with the last pair of pixels of the last rows
            (h, w), matrix = (16, 64), torch.eye(2, 3, dtype=torch.float64)[None]
            matrix[0, 0, 2] = 0 if flip else -2
        across, down = image_warps._fixed_positions(image_warps._inverted(matrix), h, w)
        wide = torch.cat([across, across[..., -1:].expand(-1, -1, -w % LANES)], 2)
        cases.append(numbers(WARP, ANY_TYPE) + case + numbers(h, w, flip) + raw(wide) + raw(down))
        expected.append(datasets.warp_images(separate_images([image]), matrix, (h, w), torch.tensor([flip])))
    return cases, expected


def resizes() -> tuple[list[bytes], list[Tensor]]:
    cases, expected = [], []
    for k, size in enumerate([(1, 1), (4, 3), (37, 50), (13, 70)] * 3):
        pixel, (h, w) = (1, 3, 4)[k % 3], ((7, 5), (16, 64), (9, 33))[k % 3]
        image, case = picture(size, pixel, beside=k % 2)
        scaled, corner = torch.tensor([[h + 3 * (k % 4), 20 + 5 * k]]), torch.tensor([[k % 2, k]])
        corner = torch.minimum(corner, (scaled - torch.tensor([h, w])).clamp(min=0))
        images = separate_images([image], 7)
        expected.append(datasets.resized_parts(images, scaled, corner, (h, w), nearest=pixel == 1))
        tables = []
        for axis, length in enumerate((h, w)):
            given = (images.sizes[:, axis], scaled[:, axis], corner[:, axis], length, pixel == 1)
            pair, share, inside = image_warps._axis_positions(*given)
            tables.append(raw(torch.stack([part.to(torch.int32) for part in (*pair, share, inside)], 1)))
        cases.append(numbers(RESIZE, ANY_TYPE) + case + numbers(h, w) + b"".join(tables))
    return cases, expected


def test_host_run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(host_operators, "_is_built", lambda name: False)  # what is expected is PyTorch's
    levels = torch.arange(256, dtype=torch.uint8)
    warped, resized = warps(), resizes()
    cases = [*warped[0], *resized[0], numbers(NORMALIZE, ANY_TYPE, 256) + raw(levels)]
    results = run(build("pictures_host", tmp_path_factory), tmp_path, cases)
    for image in (*warped[1], *resized[1]):
        found = np.frombuffer(results.take(image.numel()), dtype=np.uint8)
        assert np.array_equal(found, image.numpy().ravel())
    normalised = datasets.normalize(levels.view(1, 1, 16, 16), [0.25], [0.5])
    assert np.array_equal(np.frombuffer(results.take(1024), dtype=np.float32), normalised.numpy().ravel())
