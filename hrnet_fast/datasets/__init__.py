"""Data sets of the paper's tasks: readers of their layouts, and batches that are cropped and coloured on the device."""

from hrnet_fast.datasets.coco import COCO_UPPER_BODY, coco_keypoints
from hrnet_fast.datasets.keypoint_dataset import KeypointDataset
from hrnet_fast.datasets.mpii import MPII_UPPER_BODY, mpii
from hrnet_fast.datasets.point_tables import deeplabcut, face_landmarks, points_csv
from hrnet_fast.datasets.samples import KeypointSample, SegmentationSample, SkippedSample
from hrnet_fast.datasets.segmentation import SegmentationDataset, mask_folders, segmentation_list
from hrnet_fast.datasets.segmentation_layouts import (
    camvid,
    cityscapes,
    cityscapes_label_map,
    lip,
    pascal_context,
    pascal_context_label_map,
)
from hrnet_fast.datasets.skipping import AnnotatedImages
