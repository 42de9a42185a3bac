"""The sections of a recipe that say how weights change: optimizer and schedule. Each checks its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrnet_fast.errors import ConfigError, shown
from hrnet_fast.recipes.values import check_above_zero, check_choice, check_range, convert_section

# The fields that belong to some kinds alone, by kind.
FIELDS_OF_KIND: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "optimizer": {"adam": ("betas",), "adamw": ("betas",), "sgd": ("momentum", "nesterov")},
    "schedule": {
        "step": ("milestones", "factor", "before_epoch"),
        "poly": ("power", "delay", "least"),
        "cosine": ("delay", "least"),
        "constant": (),
    },
}


def defaults_of_other_kinds(section: str, kind: str) -> dict[str, Any]:
    """Return the fields of an optimizer or a schedule that `kind` does not use, with their defaults."""
    fields = FIELDS_OF_KIND[section]
    cls = {"optimizer": OptimizerRecipe, "schedule": ScheduleRecipe}[section]
    return {n: getattr(cls, n) for names in fields.values() for n in names if n not in fields[kind]}


def check_kind(section: OptimizerRecipe | ScheduleRecipe, path: str) -> None:
    """Raise ConfigError unless the fields that the kind does not use have their defaults."""
    for name, default in defaults_of_other_kinds(path, section.kind).items():
        value = getattr(section, name)
        if value != default:
            users = [kind for kind, names in FIELDS_OF_KIND[path].items() if name in names]
            raise ConfigError(
                f"{path}.{name}={shown(value)}: kind: {section.kind} does not use it; remove it, give its default "
                f"{shown(default)}, or take kind: {' or '.join(users)}."
            )


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimizer; fields that its kind does not use must keep their default.

    Attributes:
        kind: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        lr: the learning rate for a whole global batch.
        weight_decay: the authors' pose configurations name one that their code never gives to Adam: 0 here.
        momentum, nesterov: of SGD.
        betas: of Adam.
        head_lr_factor: factor on the head's learning rate (segmentation's ``NONBACKBONE_MULT``).
        decay_norms: whether normalisations and biases decay too, as in the authors' code.
        bias_lr_factor: factor on the learning rate of biases other than normalisations' (FCOS: 2).
        decay_biases: whether biases decay, normalisations' too, where `decay_norms` is true (FCOS: false).
    """

    kind: str
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    head_lr_factor: float = 1.0
    decay_norms: bool = True
    bias_lr_factor: float = 1.0
    decay_biases: bool = True

    def __post_init__(self) -> None:
        convert_section(self, "optimizer")
        check_choice("optimizer.kind", self.kind, FIELDS_OF_KIND["optimizer"])
        check_above_zero("optimizer.lr", self.lr)
        check_range("optimizer.weight_decay", self.weight_decay, 0)
        check_range("optimizer.momentum", self.momentum, 0, 1, open_end=True)
        for beta in self.betas:
            check_range("optimizer.betas", beta, 0, 1, open_end=True)
        check_above_zero("optimizer.head_lr_factor", self.head_lr_factor)
        check_above_zero("optimizer.bias_lr_factor", self.bias_lr_factor)
        check_kind(self, "optimizer")
        if self.nesterov and not self.momentum:
            raise ConfigError("optimizer.nesterov=true; accepted is true with an optimizer.momentum above 0 alone.")


@dataclass(frozen=True)
class ScheduleRecipe:
    """The learning rate over time: a factor on the optimizer's, after a linear warm-up.

    Fields that the kind does not use must keep their default.

    Attributes:
        kind: ``"step"`` (times `factor` at each of `milestones`, in epochs), ``"poly"`` ((1 - t / T)^power by
            iteration), ``"cosine"`` (by iteration) or ``"constant"``.
        milestones, factor: of ``"step"``.
        before_epoch: of ``"step"``: milestones take effect one epoch earlier. The authors' pose, face and
            classification code steps its scheduler before each epoch. With PyTorch 1.0, which they had, the milestones
            are at their epochs (False); from 1.1 on the same code has them one epoch earlier (True).
        power: of ``"poly"``.
        delay: iterations by which ``"poly"`` and ``"cosine"`` are late. The authors' segmentation code sets the rate
            after the step, so that it takes effect one iteration later (1).
        least: the factor at the end of ``"poly"`` and ``"cosine"``.
        warmup_iterations, warmup_factor, warmup_kind: the factor grows from `warmup_factor` to 1 (``"linear"``), or is
            `warmup_factor` until then (``"constant"``, mmdetection's FCOS).
    """

    kind: str = "step"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    before_epoch: bool = False
    power: float = 0.9
    delay: int = 0
    least: float = 0.0
    warmup_iterations: int = 0
    warmup_factor: float = 0.001
    warmup_kind: str = "linear"

    def __post_init__(self) -> None:
        convert_section(self, "schedule")
        check_choice("schedule.kind", self.kind, FIELDS_OF_KIND["schedule"])
        if any(m < 0 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ConfigError(f"schedule.milestones={list(self.milestones)}; accepted are ascending epochs from 0.")
        check_above_zero("schedule.factor", self.factor)
        check_above_zero("schedule.power", self.power)
        check_range("schedule.delay", self.delay, 0)
        check_range("schedule.least", self.least, 0, 1)
        check_range("schedule.warmup_iterations", self.warmup_iterations, 0)
        check_range("schedule.warmup_factor", self.warmup_factor, 0, 1)
        check_choice("schedule.warmup_kind", self.warmup_kind, ("linear", "constant"))
        check_kind(self, "schedule")
