"""Data sets whose workers do everything with NumPy and OpenCV, as the authors' do: contenders of the input benchmark.

Each sample becomes float tensors in its worker, with heatmaps or labels; the main process stacks and copies them.
Steps and random numbers are those of the authors' pose ``lib/dataset/JointsDataset.py``, without its half bodies, and
segmentation ``lib/datasets/base_dataset.py``. ``chance=False`` leaves out what is random, so that a sample can be
compared with this package's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hrnet_fast.datasets import KeypointCrops, KeypointDataset, SegmentationCrops, SegmentationDataset

try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]

UNAVAILABLE = None if cv2 is not None else "OpenCV is not installed"
Array = NDArray[Any]


class NumpyKeypoints(Dataset[Any]):
    """Persons of a data set: a crop, heatmaps and weights, as float tensors.

    Args:
        dataset: gives files and annotations.
        crops: gives sizes, sigma, padding, mirrored pairs and, where `chance` is true, the authors' random boxes.
        chance: draw boxes from NumPy's generator.
    """

    def __init__(self, dataset: KeypointDataset, crops: KeypointCrops, chance: bool = True) -> None:
        self.dataset, self.crops, self.chance = dataset, crops, chance

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        found = self.dataset.annotation(index)
        pixels = cv2.imread(found.path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        points, visible = found.points.numpy().astype(np.float64), found.visible.numpy()
        left, top, width, height = found.box.tolist()
        centre, angle = np.array([left + width / 2, top + height / 2]), 0.0
        height_in, width_in = self.crops.input_size
        side = max(width, height * width_in / height_in) * self.crops.padding
        if self.chance:
            side *= float(np.clip(np.random.randn() * 0.35 + 1, 0.65, 1.35))
            angle = float(np.clip(np.random.randn() * 45, -90, 90)) if np.random.rand() <= 0.6 else 0.0
            if np.random.rand() <= 0.5:
                pixels = pixels[:, ::-1, :]
                points, visible = self._mirrored(points, visible, pixels.shape[1])
                centre[0] = pixels.shape[1] - centre[0] - 1
        matrix = affine(centre, side, angle, (height_in, width_in))
        crop = cv2.warpAffine(pixels, matrix, (width_in, height_in), flags=cv2.INTER_LINEAR)
        for k in range(len(points)):
            if visible[k] > 0:
                points[k] = matrix @ np.array([points[k, 0], points[k, 1], 1.0])
        targets, weights = self._heatmaps(points, visible)
        image = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float().div(255)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.crops.mean, self.crops.std))
        return image.sub(mean).div(std), torch.from_numpy(targets), torch.from_numpy(weights)

    def _mirrored(self, points: Array, visible: Array, width: int) -> tuple[Array, Array]:
        points[:, 0] = width - points[:, 0] - 1
        for a, b in self.crops.flip_pairs or ():
            points[[a, b]], visible[[a, b]] = points[[b, a]], visible[[b, a]]
        return points, visible

    def _heatmaps(self, points: Array, visible: Array) -> tuple[Array, Array]:
        """Return a Gaussian of 6 sigma + 1 pixels around each visible point, and the weights."""
        h, w = self.crops.heatmap_size
        stride = np.array([self.crops.input_size[1] / w, self.crops.input_size[0] / h])
        targets, weights = np.zeros((len(points), h, w), dtype=np.float32), visible.astype(np.float32)
        reach = int(self.crops.sigma * 3)
        offsets = np.arange(-reach, reach + 1, dtype=np.float32)
        gaussian = np.exp(-(offsets[None, :] ** 2 + offsets[:, None] ** 2) / (2 * self.crops.sigma**2))
        for k in range(len(points)):
            x, y = (int(v) for v in points[k] / stride + 0.5)
            if x - reach >= w or y - reach >= h or x + reach < 0 or y + reach < 0:
                weights[k] = 0
            elif weights[k] > 0.5:
                (top, bottom), (left, right) = ((max(0, v - reach), min(n, v + reach + 1)) for v, n in ((y, h), (x, w)))
                part = gaussian[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
                targets[k, top:bottom, left:right] = part
        return targets, weights


def affine(centre: Array, side: float, angle: float, size: tuple[int, int]) -> Array:
    """Return the map [2, 3] of the box with this centre and width to an input (H, W), rotated by degrees."""
    height, width = size
    turn = math.radians(angle)
    up = np.array([math.sin(turn), -math.cos(turn)]) * side / 2
    source = np.stack([centre, centre + up, centre + up + np.array([up[1], -up[0]])]).astype(np.float32)
    middle = np.array([width / 2, height / 2])
    above = middle + np.array([0, -width / 2])
    target = np.stack([middle, above, above + np.array([-width / 2, 0])]).astype(np.float32)
    matrix: Array = cv2.getAffineTransform(source, target)
    return matrix


class NumpySegmentation(Dataset[Any]):
    """Pictures with masks: a random crop and its labels, as float and integer tensors.

    Args:
        dataset: gives files; its masks hold training classes.
        crops: gives sizes and scales.
        chance: draw scale, place and mirroring from NumPy's generator.
    """

    def __init__(self, dataset: SegmentationDataset, crops: SegmentationCrops, chance: bool = True) -> None:
        self.dataset, self.crops, self.chance = dataset, crops, chance

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, mask, _ = self.dataset._files[index]
        pixels, labels = cv2.imread(path, cv2.IMREAD_COLOR), cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        first, last = self.crops.scales
        scale = first + np.random.randint(0, round((last - first) * 10) + 1) / 10 if self.chance else 1.0
        height, width = pixels.shape[:2]
        longer = int(self.crops.base_size * scale + 0.5)
        shorter = int(min(height, width) * longer / max(height, width) + 0.5)
        size = (longer, shorter) if width >= height else (shorter, longer)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        h, w = self.crops.crop_size
        edges = (0, max(h - pixels.shape[0], 0), 0, max(w - pixels.shape[1], 0))
        if any(edges):
            pixels = cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=(0, 0, 0))
            labels = cv2.copyMakeBorder(labels, *edges, cv2.BORDER_CONSTANT, value=self.dataset.ignore_label)
        room = (pixels.shape[0] - h, pixels.shape[1] - w)
        y, x = (np.random.randint(0, n + 1) if self.chance else 0 for n in room)
        pixels, labels = pixels[y : y + h, x : x + w], labels[y : y + h, x : x + w]
        image = pixels.astype(np.float32)[:, :, ::-1] / 255.0
        image -= np.array(self.crops.mean, dtype=np.float32)
        image /= np.array(self.crops.std, dtype=np.float32)
        image, classes = image.transpose(2, 0, 1), labels.astype(np.int64)
        if self.chance and np.random.rand() < 0.5:
            image, classes = image[:, :, ::-1], classes[:, ::-1]
        return torch.from_numpy(image.copy()), torch.from_numpy(classes.copy())
