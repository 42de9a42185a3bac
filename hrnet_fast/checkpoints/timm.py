"""Checkpoint families of timm: classification and ``features_only`` models, with the authors' names."""

from hrnet_fast.checkpoints.family import Family

TIMM = Family(
    "timm",
    "timm hrnet_*: ImageNet logits (the same names as cls)",
    heads=("c",),
    marks=("stage2.", "downsamp_modules."),
    defaults={"init": "kaiming"},
)
TIMM_FEATURES = Family(
    "timm_features",
    "timm hrnet_* with features_only=True: a list of maps from 1/2 to 1/32",
    heads=("features",),
    marks=("stage2.", "incre_modules."),
    defaults={"init": "kaiming"},
)
