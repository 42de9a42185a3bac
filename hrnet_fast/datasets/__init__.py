"""Data sets of the paper's tasks: readers of their layouts, and batches that are cropped, coloured, given targets."""

from hrnet_fast.datasets.box_augmentation import BoxAugmentation, BoxDraw
from hrnet_fast.datasets.classification import (
    ClassificationBatch,
    ClassificationCrops,
    ClassificationDataset,
    ClassSample,
    collate_classification,
    image_folder,
)
from hrnet_fast.datasets.coco import COCO_UPPER_BODY, coco_keypoints
from hrnet_fast.datasets.cofw import cofw
from hrnet_fast.datasets.colors import MEAN, STD, ColorAugmentation, normalize
from hrnet_fast.datasets.detection_batches import DetectionBatch, collate_detection
from hrnet_fast.datasets.detection_dataset import DetectionDataset
from hrnet_fast.datasets.detection_layouts import VOC_NAMES, coco_instances, voc_boxes
from hrnet_fast.datasets.image_warps import resized_parts, warp_images
from hrnet_fast.datasets.keypoint_batches import KeypointBatch, KeypointCrops, KeypointInputs, collate_keypoints
from hrnet_fast.datasets.keypoint_dataset import KeypointDataset
from hrnet_fast.datasets.mpii import MPII_UPPER_BODY, mpii
from hrnet_fast.datasets.packed_images import PackedImages, pack_images
from hrnet_fast.datasets.point_tables import deeplabcut, face_landmarks, points_csv
from hrnet_fast.datasets.samples import DetectionSample, KeypointSample, SegmentationSample, SkippedSample
from hrnet_fast.datasets.segmentation import SegmentationDataset, mask_folders, segmentation_list
from hrnet_fast.datasets.segmentation_batches import (
    CollateSegmentation,
    SegmentationBatch,
    SegmentationCrops,
    SegmentationInputs,
)
from hrnet_fast.datasets.segmentation_layouts import (
    camvid,
    cityscapes,
    cityscapes_label_map,
    lip,
    pascal_context,
    pascal_context_label_map,
)
from hrnet_fast.datasets.skipping import AnnotatedImages

__all__ = [
    "COCO_UPPER_BODY",
    "MEAN",
    "MPII_UPPER_BODY",
    "STD",
    "VOC_NAMES",
    "AnnotatedImages",
    "BoxAugmentation",
    "BoxDraw",
    "ClassSample",
    "ClassificationBatch",
    "ClassificationCrops",
    "ClassificationDataset",
    "CollateSegmentation",
    "ColorAugmentation",
    "DetectionBatch",
    "DetectionDataset",
    "DetectionSample",
    "KeypointBatch",
    "KeypointCrops",
    "KeypointDataset",
    "KeypointInputs",
    "KeypointSample",
    "PackedImages",
    "SegmentationBatch",
    "SegmentationCrops",
    "SegmentationDataset",
    "SegmentationInputs",
    "SegmentationSample",
    "SkippedSample",
    "camvid",
    "cityscapes",
    "cityscapes_label_map",
    "coco_instances",
    "coco_keypoints",
    "cofw",
    "collate_classification",
    "collate_detection",
    "collate_keypoints",
    "deeplabcut",
    "face_landmarks",
    "image_folder",
    "lip",
    "mask_folders",
    "mpii",
    "normalize",
    "pack_images",
    "pascal_context",
    "pascal_context_label_map",
    "points_csv",
    "resized_parts",
    "segmentation_list",
    "voc_boxes",
    "warp_images",
]
