"""The :class:`Engine`: executors of several input shapes, weights, files and exports."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checks import check_device, check_integer, check_path, check_shape
from hrnet_fast.errors import InputError, shown
from hrnet_fast.inference import engine_file
from hrnet_fast.inference.dynamic import DynamicProgram, checked_axes, export_dynamic
from hrnet_fast.inference.engine_input import Normalize, network_shape
from hrnet_fast.inference.engine_module import EngineModule
from hrnet_fast.inference.execution.executors import Executor, ExecutorFactory
from hrnet_fast.inference.folded import FoldedNetwork, write_onnx
from hrnet_fast.inference.plan import Plan, check_input_shape
from hrnet_fast.inference.planning.tracer import InputShape, input_shapes
from hrnet_fast.inference.profile import Profile, profile
from hrnet_fast.inference.rwlock import RWLock
from hrnet_fast.inference.weight_source import FileSource, ModelSource
from hrnet_fast.inference.weight_versions import CHANGED


class Engine:
    """A network prepared for inference, which is called as the model is.

    Made by :func:`~hrnet_fast.optimize_for_inference` or :meth:`load`.
    Several threads may call one engine. Results are new tensors unless ``copy=False`` allows the next call to overwrite
    them. An input that does not fit raises :class:`~hrnet_fast.errors.InputError` and does not change the engine.
    So does a call after the model's weights changed, as `refresh` of :func:`~hrnet_fast.optimize_for_inference` says.

    Attributes:
        dtype: of the computation.
        device: of inputs and outputs.
    """

    def __init__(
        self,
        source: ModelSource | FileSource,
        dtype: torch.dtype,
        outer: torch.dtype,
        device: torch.device,
        images: Normalize | None,
        max_shapes: int,
        refresh: str = "error",
    ) -> None:
        self._on_change = refresh
        self._versions = source.versions() if refresh != "never" else None  # before the weights are read
        self.dtype, self.device = dtype, device
        self._source, self._outer, self._images, self._max_shapes = source, outer, images, max_shapes
        self._executors: OrderedDict[InputShape, Executor] = OrderedDict()
        self._factory = ExecutorFactory(dtype, outer, device, source.tensors())
        self._executors_lock = threading.RLock()
        self._weights_lock = RWLock()
        self._restructured = False  # whether the model has modules whose plans were not found equal

    def __call__(self, x: Tensor | tuple[Tensor, ...], *, copy: bool = True) -> Any:
        """Return what the model returns for `x`.

        Args:
            x: [N, C, H, W] of any floating dtype on the engine's device; with `normalize`, bytes [N, H, W, C]. Heads of
                other people's models take a tuple of maps.
            copy: False may return tensors that the next call overwrites.

        Raises:
            InputError: `x` does not fit, or the model's weights changed since they were read.
        """
        shape = self.check(x)
        self._follow_weights()
        with self._weights_lock.read(), self._without_autocast():
            return self._executor(shape)(x, copy)

    @property
    def keypoints(self) -> str | None:
        """The model's method of reading keypoints from heatmaps; None where it is not known."""
        return self._source.keypoints

    @property
    def result_dtype(self) -> torch.dtype:
        """The dtype of outputs: the model's, as it was when the engine was made."""
        return self._outer

    def prepare(self, *shapes: Sequence[int]) -> None:
        """Prepare inputs of these shapes [N, C, H, W].

        On a CUDA device this measures tactics and captures a graph. Otherwise that happens at a shape's second call,
        and the first one runs launch by launch.
        """
        self._follow_weights()
        with self._weights_lock.read():
            for shape in [check_input_shape("Engine.prepare", shape) for shape in shapes]:
                self._executor(shape).ready()

    def plan(self, shape: Sequence[int] | None = None) -> Plan:
        """Return the plan for inputs [N, C, H, W]; None is the shape used last."""
        with self._executors_lock:
            key = check_input_shape("Engine.plan", shape) if shape is not None else self._last()
            ready = self._executors.get(key)
            return ready.plan if ready else self._planned(key)

    def refresh(self) -> None:
        """Read the model's present weights. Waits for running calls; shapes stay prepared."""
        if isinstance(self._source, FileSource):
            raise InputError("Engine.refresh: this engine was loaded from a file and has no model to read from.")
        with self._weights_lock.write(), self._executors_lock:
            versions = self._source.versions() if self._on_change != "never" else None
            tensors = self._source.tensors()
            self._factory.check_tensors(tensors)
            self._check_structure()
            self._factory.refresh(tensors)
            for executor in self._executors.values():
                executor.refresh(self._factory.tensors)
            self._versions = versions

    def _check_structure(self) -> None:
        """Check that modules in other modules' places give the plans that were made."""
        assert isinstance(self._source, ModelSource)
        if not self._restructured and not self._source.has_other_modules():
            return
        self._restructured = True
        if any(self._planned(shape) != executor.plan for shape, executor in self._executors.items()):
            raise InputError(
                "Engine.refresh: the model has other modules, which compute other steps; a changed network needs an "
                "engine of its own: call optimize_for_inference again."
            )
        self._restructured = False

    def explain(self) -> str:
        """Return a text about how each prepared shape executes, and why."""
        lines = [f"{str(self.dtype).removeprefix('torch.')} on {self.device}"]
        with self._executors_lock:
            for shape, executor in self._executors.items():
                plan, shapes = executor.plan, ", ".join(str(list(one)) for one in input_shapes(shape))
                lines.append(
                    f"{shapes}: {plan.launches()} steps in {len(plan.waves)} waves, "
                    f"{plan.launches(grouped=True)} launches where branches are grouped"
                )
                lines += [f"  {line}" for line in executor.describe()]
        return "\n".join(lines)

    def memory(self, shape: Sequence[int] | None = None) -> int:
        """Return the bytes of maps that a call on inputs [N, C, H, W] keeps at once; None is the shape used last."""
        with self._executors_lock:
            key = check_input_shape("Engine.memory", shape) if shape is not None else self._last()
            return self._executor(key).arena_bytes

    def module(self) -> EngineModule:
        """Return an ``nn.Module`` without parameters that calls this engine, to be put in a network's place."""
        return EngineModule(self)

    def profile(self, x: Tensor, rounds: int = 3) -> Profile:
        """Time every step by itself on `x`, and measure the device's limits."""
        check_integer("Engine.profile", "rounds", rounds)
        shape = self.check(x)
        with self._weights_lock.read(), self._without_autocast():
            return profile(self._executor(shape), x, rounds)

    def save(self, path: Any, shapes: Sequence[Sequence[int]] = ()) -> None:
        """Write plans and weights to a file for :meth:`load`, which needs no model.

        Args:
            path: of the file; written completely or not at all.
            shapes: [N, C, H, W] besides those that are prepared now.
        """
        check_path("Engine.save", path)
        if not isinstance(shapes, (list, tuple)):
            raise InputError(f"Engine.save: shapes={shown(shapes)}; accepted is a list of shapes [N, C, H, W].")
        self._factory.check_unchanged("weights to be saved", self._source.tensors())
        wanted = [*self._executors, *(check_shape("Engine.save", s) for s in shapes)]
        plans = {shape: self.plan(shape) for shape in wanted}
        settings = {
            "dtype": self.dtype,
            "outer": self._outer,
            "images": self._images and (self._images.mean, self._images.std),
            "max_shapes": self._max_shapes,
            "keypoints": self.keypoints,
        }
        engine_file.save(path, plans, self._factory.tensors, settings)

    @classmethod
    def load(cls, path: Any, device: torch.device | str = "cpu") -> Engine:
        """Return the engine of a file that :meth:`save` wrote.

        Raises:
            InputError: the file does not exist or holds no engine, or the device does not exist.
        """
        where = check_device("Engine.load", device)
        check_path("Engine.load", path)
        plans, tensors, settings = engine_file.load(path)
        images, bound = settings["images"], settings["max_shapes"]
        normalize = Normalize(*images) if images else None
        source = FileSource(plans, tensors, settings.get("keypoints"))
        engine = cls(source, settings["dtype"], settings["outer"], where, normalize, bound)
        engine.prepare(*list(plans)[-bound:])
        return engine

    def folded(self, shape: Sequence[int] | None = None) -> FoldedNetwork:
        """Return the network as a module with folded weights, for inputs [N, C, H, W] of this shape.

        Its device, inputs, outputs and dtypes are the engine's. ``torch.export`` and ``torch.onnx.export`` accept it.
        """
        self._factory.check_unchanged("a folded network", self._source.tensors())
        return FoldedNetwork(self.plan(shape), self._factory.tensors, self._outer, device=self.device)

    def export(self, shape: Sequence[int] | None = None, dynamic: Sequence[str] = ()) -> Any:
        """Return the folded network as a ``torch.export.ExportedProgram`` on the CPU.

        Args:
            shape: [N, C, H, W] of inputs; None is the shape used last.
            dynamic: axes that may differ at every call: ``"batch"``, ``"height"``, ``"width"``, or ``"size"`` for both.
                With a dynamic size, networks that upsample by factors (nearest, mmsegmentation's) take multiples of the
                stride of their smallest map, 32 for four branches, and fail at other sizes. Networks that upsample to
                each other's sizes take any size. A program fails where a map would have a side of 1.

        Raises:
            InputError: the network's forward contains this batch or size as a number. Programs are compared with the
                plans of other shapes before they are returned.
        """
        axes = checked_axes(dynamic)
        if axes:
            return self._dynamic(shape, axes)[0]
        module = self.folded(shape).cpu()
        return torch.export.export(module, (module.plan.example_input(),))

    def export_onnx(self, path: Any, shape: Sequence[int] | None = None, dynamic: Sequence[str] = ()) -> None:
        """Write the folded network as an ONNX file with one input, ``image``; needs the packages onnx and onnxscript.

        Args:
            path: of the file; written completely or not at all.
            shape, dynamic: as in :meth:`export`; dynamic dimensions of the input have these names in the file.

        Raises:
            InputError: as :meth:`export`; the packages are not installed; the file cannot be written.
        """
        check_path("Engine.export_onnx", path)
        axes = checked_axes(dynamic)
        if axes:
            program, names = self._dynamic(shape, axes)
            write_onnx(program, path, names)
        else:
            write_onnx(self.folded(shape).cpu(), path)

    def _dynamic(self, shape: Sequence[int] | None, axes: tuple[str, ...]) -> DynamicProgram:
        self._factory.check_unchanged("an export", self._source.tensors())
        plan = self.plan(shape)
        saved = list(self._source.plans) if isinstance(self._source, FileSource) else None
        tensors = {name: tensor.detach().cpu() for name, tensor in self._factory.tensors.items()}
        return export_dynamic(plan, self._planned, saved, tensors, self._outer, axes)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise InputError for ``copy``, ``deepcopy``, ``pickle`` and ``torch.save``."""
        raise InputError(
            "Engine: an engine holds locks, memory and compiled code, which cannot be copied or pickled. Write it by "
            "Engine.save(path) and read it by Engine.load(path), or call optimize_for_inference on the model again."
        )

    def check(self, x: Tensor | tuple[Tensor, ...]) -> InputShape:
        """Return the shape [N, C, H, W] of an input's network input; raise InputError for what it does not take."""
        return network_shape(x, self.device, self._images)

    def _follow_weights(self) -> None:
        """Raise or refresh where the versions of the model's tensors are not those that were read."""
        if self._versions is None or self._versions.unchanged():
            return
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise InputError("Engine: the model's weights changed; call engine.refresh() before a graph is captured.")
        if self._on_change != "auto":
            raise InputError(CHANGED)
        self.refresh()

    def _planned(self, shape: InputShape) -> Plan:
        plan = self._source.plan(shape, self.dtype)
        return plan.with_images(self._images.scale, self._images.shift) if self._images else plan

    def _without_autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the caller's autocast does not change the engine's dtype."""
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()

    def _last(self) -> InputShape:
        return next(reversed(self._executors))

    def _executor(self, shape: InputShape) -> Executor:
        with self._executors_lock:
            if shape in self._executors:
                self._executors.move_to_end(shape)
            else:
                self._factory.check_unchanged("an input of a new shape", self._source.tensors())
                self._executors[shape] = self._factory.make(self.plan(shape))
                while len(self._executors) > self._max_shapes:
                    self._factory.retire(self._executors.popitem(last=False)[1])
            return self._executors[shape]
