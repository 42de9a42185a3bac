"""Online hard example mining over pixels: cross entropy of those with a low probability of their own class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hrnet_fast.checks import check_integer, check_number, check_tensor
from hrnet_fast.training.losses.cross_entropy import at_labels, check_pixels, pixel_losses


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    *,
    ignore_label: int = 255,
    threshold: float = 0.9,
    min_kept: int = 131_072,
    align_corners: bool = False,
) -> Tensor:
    """Return the mean weighted cross entropy of the pixels whose class has a probability below a bound.

    The authors' ``OhemCrossEntropy`` (segmentation repository, ``lib/core/criterion.py``): for logits of the labels'
    size, the same pixels. The bound is the larger of `threshold` and the probability at position `min_kept`, from 0, of
    the labelled pixels in ascending order; the largest where there are no more than `min_kept`. The mean is by the
    number of pixels kept, not by their weights. The authors sort the labelled pixels and select by masks, whose sizes
    depend on values. Here that probability is a k-th value over all pixels, with the ignored ones last, and pixels that
    are not kept are zeros of a map of fixed size.

    Args:
        logits: [N, K, h, w], floating; upsampled to the labels' size.
        labels, class_weights, ignore_label, align_corners: as :func:`pixel_cross_entropy` takes them.
        threshold: pixels below this probability are kept. 0.9 in the authors' configurations, 0.7 by default in their
            class.
        min_kept: pixels to keep at least, over the whole batch of a process; ties at the bound are not kept, so that
            they can be fewer. At least 1, and 131072 in the authors' configurations.

    Returns:
        A scalar in float32, in float64 for float64 logits. Where no pixel is kept it is NaN, with gradients of 0: where
        all labelled pixels have one probability above `threshold`, as in the authors' code, and where all pixels are
        ignored, where their code raises IndexError.

    Raises:
        InputError: as :func:`pixel_cross_entropy`, and a `threshold` or `min_kept` that is no such number.
    """
    what = "ohem_cross_entropy"
    check_pixels(what, logits, labels, class_weights, ignore_label, align_corners)
    check_number(what, "threshold", threshold)
    check_integer(what, "min_kept", min_kept)
    wide, labels = at_labels(logits, labels, align_corners)
    losses = pixel_losses(what, wide, labels, class_weights, ignore_label)
    kept = _hard_pixels(wide, labels, ignore_label, threshold, min_kept)
    return torch.where(kept, losses, 0).sum() / kept.sum()


@torch.no_grad()
def _hard_pixels(wide: Tensor, labels: Tensor, ignore_label: int, threshold: float, min_kept: int) -> Tensor:
    """Return which pixels [N, H, W] are kept."""
    labelled = labels != ignore_label
    # By softmax and not from the losses: near 1 the two round differently, and ties would.
    own = torch.where(labelled, labels, 0).unsqueeze(1)
    probabilities = wide.softmax(1).gather(1, own).squeeze(1)
    bound = torch.where(labelled, probabilities, -torch.inf).amax()
    if min_kept < labels.numel() - 1:  # else the last labelled pixel is before position `min_kept`
        # topk and not kthvalue, which torch.use_deterministic_algorithms refuses on CUDA.
        ascending = torch.where(labelled, probabilities, torch.inf).flatten()
        value = ascending.topk(min_kept + 1, largest=False, sorted=False).values.amax()
        bound = torch.where(value == torch.inf, bound, value)
    return labelled & (probabilities < bound.clamp(min=threshold))


class OHEMCrossEntropyLoss(nn.Module):
    """:func:`ohem_cross_entropy` as a module; arguments are that function's.

    The weights are a buffer, which moves with the module and is not in its ``state_dict``.

    Raises:
        InputError: a `threshold` or `min_kept` that is no such number, or weights that are no tensor.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: Tensor | None = None,
        *,
        ignore_label: int = 255,
        threshold: float = 0.9,
        min_kept: int = 131_072,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        check_tensor("OHEMCrossEntropyLoss", "class_weights", class_weights, optional=True)
        check_number("OHEMCrossEntropyLoss", "threshold", threshold)
        check_integer("OHEMCrossEntropyLoss", "min_kept", min_kept)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.ignore_label, self.align_corners = ignore_label, align_corners
        self.threshold, self.min_kept = threshold, min_kept

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return ohem_cross_entropy(
            logits, labels, self.class_weights, ignore_label=self.ignore_label, threshold=self.threshold,
            min_kept=self.min_kept, align_corners=self.align_corners,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"ignore_label={self.ignore_label}, threshold={self.threshold}, min_kept={self.min_kept}, "
            f"align_corners={self.align_corners}"
        )
