"""CSAIL's semantic-segmentation-pytorch: the encoder file of HRNetV2, a trunk that interpolates bilinearly."""

from hrnet_fast.checkpoints.family import Family

CSAIL = Family(
    "csail",
    "CSAIL's semantic-segmentation-pytorch, the encoder of HRNetV2: a list of branches",
    heads=("features",),
    marks=("stage2.", "bn1._running_iter"),
    # Of its SynchronizedBatchNorm2d, which averages by itself.
    ignored_endings=("._tmp_running_mean", "._tmp_running_var", "._running_iter"),
    defaults={"upsample": "bilinear", "upsample_to": "target", "init": "kaiming"},
)
