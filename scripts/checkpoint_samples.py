"""Small checkpoints with random weights in the file structures of trainers, for ``fuzz_checkpoints.py``."""

from __future__ import annotations

import argparse
import enum
import io
import pickle
import struct
import types
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.checkpoints.rebuilding import Storage
from hrnet_fast.checkpoints.unpickling import Unpickler

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """A checkpoint that loads.

    Attributes:
        name: trainer and format.
        value: what was saved.
        kind: ``"zip"``, ``"legacy"`` or ``"safetensors"``.
        content: the file.
        start: offset of the first byte of tensor content that no checksum covers; None in zip files.
    """

    name: str
    value: Any
    kind: str
    content: bytes
    start: int | None

    @property
    def suffix(self) -> str:
        return ".safetensors" if self.kind == "safetensors" else ".pth"


def foreign(name: str, base: type = object) -> type:
    """Return a class that is pickled as one of another package, which need not be installed."""
    module, _, short = name.rpartition(".")
    return type(short, (base,), {"foreign": f"c{module}\n{short}\n".encode()})


class _Pickler(pickle._Pickler):
    """Writes the names of foreign classes without looking them up."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        written = getattr(obj, "foreign", None)
        if written is None:
            super().save_global(obj, name)
        else:
            self.write(written)
            self.memoize(obj)

    def save_type(self, obj: Any) -> None:
        self.save_global(obj) if hasattr(obj, "foreign") else super().save_type(obj)

    dispatch = pickle._Pickler.dispatch | {type: save_type}


def _dump(value: Any, file: Any, protocol: int) -> None:
    _Pickler(file, protocol).dump(value)


_PICKLING = types.SimpleNamespace(__name__="pickling", Pickler=_Pickler, dump=_dump)


class Layer(enum.Enum):
    """Pickled by value, as enums of training options are."""

    LAST = 2


def network(seed: int = 0) -> hf.HRNet:
    """Two stages of HRNetV1 with three heatmaps, every tensor random."""
    config = hf.HRNetConfig.make(
        4, "v1", 3, num_blocks=1, num_modules=(1, 1, 1), stage1_channels=4, stage1_blocks=1, stem_channels=8
    )
    model = hf.HRNet(config.override(stages=config.stages[:2]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            else:
                value.fill_(7)
    return model.eval()


def prefixed(state: State, prefix: str) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + k, v) for k, v in state.items())


def optimizer(state: State) -> dict[str, Any]:
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": v.clone()} for i, v in enumerate(list(state.values())[:3])}
    return {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1, 2]}]}


def authors(raw: State, ema: State) -> Any:
    return {
        "epoch": 210,
        "model": "pose_hrnet",
        "state_dict": prefixed(raw, "module."),
        "best_state_dict": OrderedDict(raw),
        "perf": np.float64(0.744),
        "optimizer": optimizer(raw),
    }


def timm_saver(raw: State, ema: State) -> Any:
    return {
        "epoch": 3,
        "arch": "hrnet_w18",
        "state_dict": OrderedDict(raw),
        "optimizer": optimizer(raw),
        "version": 2,
        "args": argparse.Namespace(model="hrnet_w18", lr=0.1, output=PurePosixPath("output"), layer=Layer.LAST),
        "state_dict_ema": OrderedDict(ema),
        "metric": np.float32(0.7),
    }


def mmengine_runner(raw: State, ema: State) -> Any:
    buffer = foreign("mmengine.logging.history_buffer.HistoryBuffer")()
    buffer.__dict__ |= {"_max_length": 1000000, "_log_history": np.arange(4.0), "_count_history": np.ones(4)}
    mmpose = hf.FAMILIES["mmpose"].from_canonical
    return {
        "meta": {"epoch": 1, "cfg": "model = dict()", "dataset_meta": {"sigmas": np.ones(3), "classes": ("a", "b")}},
        "state_dict": OrderedDict(mmpose(ema)),
        "message_hub": {"log_scalars": OrderedDict(loss=buffer), "runtime_info": OrderedDict(iter=np.int64(4))},
        "optimizer": optimizer(raw),
        "ema_state_dict": OrderedDict(steps=torch.tensor(4), **prefixed(mmpose(raw), "module.")),
    }


def mmcv_runner(raw: State, ema: State) -> Any:
    theirs, averages = (hf.FAMILIES["mmpose_0x"].from_canonical(s) for s in (raw, ema))
    buffers = {"ema_" + k.replace(".", "_"): v for k, v in theirs.items() if k.endswith((".weight", ".bias"))}
    statistics = {k: v for k, v in theirs.items() if not k.endswith((".weight", ".bias"))}
    config = foreign("mmcv.utils.config.ConfigDict", dict)()
    config.update(model={"type": "TopDown"})
    return {"meta": {"config": config}, "state_dict": OrderedDict({**averages, **statistics, **buffers})}


def lightning(raw: State, ema: State) -> Any:
    return {
        "epoch": 1,
        "global_step": 100,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": prefixed(ema, "model."),
        "current_model_state": prefixed(raw, "model."),
        "averaging_state": {"n_averaged": torch.tensor(4)},
        "callbacks": defaultdict(dict, {"WeightAveraging": {"latest_update_step": 99}}),
        "hparams_name": "kwargs",
        "hyper_parameters": foreign("lightning.fabric.utilities.data.AttributeDict", dict)(
            lr=0.1, path=PurePosixPath("a")
        ),
    }


def averaged_model(raw: State, ema: State) -> Any:
    model = network()
    model.load_state_dict(ema)
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


def whole_module(raw: State, ema: State) -> Any:
    """As the face repository's ``model_best.pth``: of classes that are not to be imported."""
    model: nn.Module = nn.Module()
    for key, value in raw.items():
        *path, name = key.split(".")
        owner = model
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, foreign("lib.models.hrnet.Part", nn.Module)())
            owner = owner._modules[part]  # type: ignore[assignment]
        if value.is_floating_point() and name in ("weight", "bias"):
            owner.register_parameter(name, nn.Parameter(value))
        else:
            owner.register_buffer(name, value)
    return model


def best_first(raw: State, ema: State) -> Any:
    """What is loaded refers to storages that were named before."""
    return {"best": OrderedDict(raw), "model_state_dict": OrderedDict(raw), "lr": 0.1}


def plain(raw: State, ema: State) -> Any:
    return dict(raw)


SHAPES: dict[str, Callable[[State, State], Any]] = {
    "state_dict": plain,
    "authors": authors,
    "best first": best_first,
    "timm": timm_saver,
    "mmengine": mmengine_runner,
    "mmcv": mmcv_runner,
    "lightning": lightning,
    "AveragedModel": averaged_model,
    "module": whole_module,
}
LEGACY = ("state_dict", "authors", "best first", "timm", "module")


def written(value: Any, kind: str) -> bytes:
    """Return the file that holds `value`."""
    if kind == "safetensors":
        return safetensors.torch.save(value)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes whose source the older format would hold
        torch.save(value, stream, pickle_module=_PICKLING, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


def legacy_layout(content: bytes) -> tuple[int, list[int]]:
    """Return where the tensors' content begins in a file of before torch 1.6, and each storage's bytes in order."""
    sizes: dict[str, int] = {}

    def storage(identifier: Any) -> Any:
        if identifier[0] == "module":
            return identifier[1]
        _, kind, key, _, numel, _ = identifier
        sizes[key] = numel * kind.dtype.itemsize
        return Storage(torch.UntypedStorage(sizes[key]), kind.dtype, numel)

    stream = io.BytesIO(content)
    keys = [Unpickler(stream, storage).load() for _ in range(5)][-1]
    return stream.tell(), [sizes[key] for key in keys]


def unchecked_start(kind: str, content: bytes) -> int | None:
    """Where the tensors' content begins in the formats that have no checksum."""
    if kind == "zip":
        return None
    return legacy_layout(content)[0] if kind == "legacy" else 8 + struct.unpack("<Q", content[:8])[0]


def samples() -> list[Sample]:
    """Return every shape as a zip file, some in the older format, and the plain one as safetensors."""
    raw, ema = dict(network(0).state_dict()), dict(network(1).state_dict())
    kinds = [("zip", name) for name in SHAPES] + [("legacy", name) for name in LEGACY] + [("safetensors", "state_dict")]
    out = []
    for kind, name in kinds:
        value = SHAPES[name](raw, ema)
        content = written(value, kind)
        out.append(Sample(f"{name} ({kind})", value, kind, content, unchecked_start(kind, content)))
    return out
