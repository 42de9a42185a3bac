"""CSAIL's semantic-segmentation-pytorch: the checkpoint family of its HRNetV2 encoder."""

from hrnet_fast.checkpoints.family import Family

CSAIL = Family(
    "csail",
    "CSAIL's semantic-segmentation-pytorch, the encoder of HRNetV2: a list of branches",
    heads=("features",),
    marks=("stage2.", "bn1._running_iter"),
    # Buffers of its SynchronizedBatchNorm2d, which keeps its own averages.
    ignored_endings=("._tmp_running_mean", "._tmp_running_var", "._running_iter"),
    defaults={"upsample": "bilinear", "upsample_to": "target", "init": "kaiming"},
)
