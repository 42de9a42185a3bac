"""The network of a recipe: its weights from a checkpoint, and the optimizer's parameter groups."""

from __future__ import annotations

import logging
import os
from typing import Any, TypeVar

from torch import nn

from hrnet_fast.checkpoints.family import is_trunk
from hrnet_fast.checkpoints.infer_detector import TRUNK
from hrnet_fast.checkpoints.load import load_backbone
from hrnet_fast.checkpoints.parsing import parse_checkpoint
from hrnet_fast.detection import Detector
from hrnet_fast.errors import CheckpointError, ConfigError
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.recipes.optimizer_sections import OptimizerRecipe

Network = TypeVar("Network", HRNet, Detector)
logger = logging.getLogger("hrnet_fast.trainer")
_WRAPPERS = ("module.", "_orig_mod.")


def initialised(model: Network, init: str | os.PathLike[str] | None) -> Network:
    """Return the network in training mode, with the weights of a checkpoint if one is given.

    Args:
        model: the network, with random weights.
        init: a checkpoint of any family. All layers that fit are loaded where it is the same network, up to the number
            of its outputs; otherwise its trunk (ImageNet weights, as the authors' ``MODEL.PRETRAINED``).

    Raises:
        CheckpointError: the checkpoint has no trunk that fits.
    """
    if init is not None:
        _initialise(model, init)
    model.train()
    return model


def _initialise(model: HRNet | Detector, init: str | os.PathLike[str]) -> None:
    own = model.state_dict()
    detector = isinstance(model, Detector)
    try:
        outputs = model.config.num_classes if isinstance(model, Detector) else model.config.head.num_outputs
        given: dict[str, Any] = {"num_classes" if detector else "num_outputs": outputs}
        found = parse_checkpoint(init, head="keep", **given)
        state = {key: value for key, value in found.state.items() if key not in found.drawn}
        if detector and found.detector is not None:
            state = dict(found.family.from_canonical(state))
    except (CheckpointError, ConfigError) as error:
        logger.debug("%s is no whole network: %s", init, error)
        state = {}
    if state and all(key in own and own[key].shape == value.shape for key, value in state.items()):
        model.load_state_dict(state, strict=False)
        drawn = sorted({key.rpartition(".")[0] for key in own if key not in state and not key.endswith("_tracked")})
        text = f"; {', '.join(drawn)} have random weights" if drawn else ""
        note = f"initialised with all layers of {os.fspath(init)}{text}"
    else:
        load_backbone(model.backbone if isinstance(model, Detector) else model, init)
        note = f"initialised with the trunk of {os.fspath(init)}; the head has random weights"
    model.notes = (*model.notes, note)
    logger.warning("%s", note)


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict[str, Any]]:
    """Return the optimizer's groups of trainable parameters: ``params``, ``lr`` and ``weight_decay`` of each.

    The trunk (stem, stages, transitions) and the head are groups of their own where `head_lr_factor` is not 1,
    normalisations and biases where they do not decay, and biases where their rate has a factor. Otherwise there is one
    group, in the model's order.

    Args:
        model: the network, accelerated or not, also wrapped by ``DistributedDataParallel`` or ``torch.compile``.
        recipe: the optimizer.

    Raises:
        ConfigError: nothing is trainable.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        head = recipe.head_lr_factor != 1 and not is_trunk(_unwrapped(name).removeprefix(TRUNK))
        weight = named.get(f"{name.removesuffix('bias')}weight") if name.endswith(".bias") else None
        bias = weight is not None and weight.dim() > 1  # a normalisation's has a weight of one dimension beside it
        rate = recipe.lr * (recipe.head_lr_factor if head else 1.0) * (recipe.bias_lr_factor if bias else 1.0)
        decays = parameter.dim() > 1 or (recipe.decay_norms and (recipe.decay_biases or not name.endswith("bias")))
        decay = recipe.weight_decay if decays else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ConfigError("parameter_groups: no parameter of the network is trainable.")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name
