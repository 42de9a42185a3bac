"""``Recipe``: all sections together, as mappings and YAML, with overrides of single fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrnet_fast.errors import ConfigError, HRNetFastError, shown
from hrnet_fast.recipes.layouts import check_layout
from hrnet_fast.recipes.model_options import check_model
from hrnet_fast.recipes.optimizer_sections import (
    FIELDS_OF_KIND,
    OptimizerRecipe,
    ScheduleRecipe,
    defaults_of_other_kinds,
)
from hrnet_fast.recipes.sections import DataRecipe, EvaluationRecipe, LoopRecipe, ModelRecipe
from hrnet_fast.recipes.task_fields import (
    METRICS_OF_TASK,
    NEEDED_FIELDS,
    check_metric_options,
    check_unused,
    filled_inputs,
    filled_loss,
)
from hrnet_fast.recipes.values import as_plain, build, check_choice, convert_section, field_names, unknown_name

__all__ = [
    "DataRecipe",
    "EvaluationRecipe",
    "LoopRecipe",
    "ModelRecipe",
    "OptimizerRecipe",
    "Recipe",
    "ScheduleRecipe",
]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained and evaluated. Immutable; :meth:`override` returns a changed copy.

    Attributes:
        task: ``"pose"``, ``"landmarks"``, ``"segmentation"``, ``"classification"`` or ``"detection"``.
        description: one line, with the source.
        inputs: arguments of the task's input pipeline: fields of :class:`hrnet_fast.datasets.KeypointCrops`
            (``augmentation`` and ``colors`` as mappings of their fields), of
            :class:`hrnet_fast.datasets.SegmentationCrops`, of :class:`hrnet_fast.datasets.ClassificationCrops`, or of
            :class:`hrnet_fast.detection.training_inputs.DetectionScaling`.
            Fields that are not given are filled in with their defaults.
        loss: ``kind`` and the arguments of a loss in :mod:`hrnet_fast.training.losses`
            (:data:`hrnet_fast.recipes.task_fields.LOSSES`), filled in likewise.
        notes: what the conversion of another code base's configuration assumed or left out.

    Raises:
        ConfigError: a field is unknown, has another type, or is out of range; the message names it, its value and what
            is accepted.
    """

    task: str
    description: str
    model: ModelRecipe
    data: DataRecipe
    inputs: Mapping[str, Any]
    loss: Mapping[str, Any]
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    loop: LoopRecipe
    evaluation: EvaluationRecipe
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        convert_section(self, "")
        check_choice("task", self.task, METRICS_OF_TASK)
        check_choice(f"evaluation.metric of task {self.task}", self.evaluation.metric, METRICS_OF_TASK[self.task])
        check_unused(self.task, self.evaluation)
        check_metric_options(self.evaluation)
        check_model(self.task, self.model)
        check_layout(self.task, self.data)
        object.__setattr__(self, "inputs", filled_inputs(self.task, self.inputs))
        object.__setattr__(self, "loss", filled_loss(self.task, self.loss))

    def to_dict(self) -> dict[str, Any]:
        """Return dictionaries, lists and scalars for YAML, JSON and :meth:`from_dict`."""
        plain = as_plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe of a mapping, as :meth:`to_dict` gives it.

        Raises:
            ConfigError: as the class.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"Recipe.from_dict: {shown(data)} given; accepted is a mapping.")
        return build(cls, data, "")

    def to_yaml(self) -> str:
        """Return the recipe as YAML, with every field; :func:`get_recipe` reads a file of it."""
        import yaml

        class Dumper(yaml.SafeDumper):
            """Writes lists of values on one line."""

        def represent(dumper: Dumper, items: list[Any]) -> yaml.Node:
            flow = not any(isinstance(item, dict) for item in items)
            return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)

        Dumper.add_representer(list, represent)
        text = yaml.dump(self.to_dict(), Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)
        assert isinstance(text, str)
        return text

    def override(self, *settings: str) -> Recipe:
        """Return a copy with fields changed: ``recipe.override("optimizer.lr=5e-4", "loop.epochs=3")``.

        The value is YAML: a number, ``true``, ``null``, a list or a mapping. It replaces the field; fields of mappings
        can be named (``inputs.augmentation.rotation=30``). Fields that the new value leaves unused, such as
        ``schedule.milestones`` with ``schedule.kind=cosine``, get their default unless a setting names them.

        Raises:
            ConfigError: a setting is no ``field=value``, a field does not exist (the message lists those that do), or
                the value is not accepted.
        """
        data = self.to_dict()
        parsed = [_parse_setting(setting) for setting in settings]
        for name, value in parsed:
            _set_field(data, name, value)
            _reset_unused(data, name, value, {given for given, _ in parsed})
        try:
            return Recipe.from_dict(data)
        except ConfigError:
            raise
        except HRNetFastError as error:
            raise ConfigError(str(error)) from error


def _parse_setting(setting: str) -> tuple[str, Any]:
    import yaml

    name, equals, text = setting.partition("=") if isinstance(setting, str) else ("", "", "")
    if not equals or not name.strip():
        raise ConfigError(f"override: {shown(setting)} given; accepted is field=value, such as optimizer.lr=5e-4.")
    try:
        return name.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override: {name.strip()}={text!r} is no YAML value ({str(error).splitlines()[0]})."
        ) from error


# Mappings whose keys are a reader's, a metric's or a network's arguments: absent ones can be added, in those of a
# network at every depth, as they hold what differs from the network's own configuration, which checks the names.
_OPEN = ("model.options", "data.train", "data.val", "evaluation.metric_options")


def _set_field(data: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    place, path = data, ""
    for part in parents:
        _check_key(place, path, part)
        path = f"{path}.{part}" if path else part
        if not isinstance(place.get(part), dict):
            if place.get(part) is not None:
                raise ConfigError(f"{name}: {path} is {shown(place[part])} and has no fields; give {path}=value.")
            place[part] = {}
        place = place[part]
    _check_key(place, path, last)
    if path in ("loss", "") and last in ("kind", "loss") and isinstance(value, str):
        # The arguments of another loss are other ones.
        data["loss"] = {"kind": value}
        return
    if (path, last) == ("evaluation", "metric") and value != place[last]:
        place["metric_options"] = {}  # of the other metric
    place[last] = value


def _reset_unused(data: dict[str, Any], name: str, value: Any, given: set[str]) -> None:
    """Give fields that a new value leaves unused their default, except those that a setting names."""
    section, _, field = name.partition(".")
    unused: dict[str, Any] = {}
    if field == "kind" and isinstance(value, str) and value in FIELDS_OF_KIND.get(section, ()):
        unused = defaults_of_other_kinds(section, value)
    elif section == "evaluation" and not value:
        unused = {n: getattr(EvaluationRecipe, n) for n, needed in NEEDED_FIELDS.items() if needed == field}
    for unused_name, default in unused.items():
        if f"{section}.{unused_name}" not in given:
            data[section][unused_name] = default


def _check_key(place: dict[str, Any], path: str, key: str) -> None:
    empty_optional = not place and path not in ("",)
    is_open = path in _OPEN or path.startswith("model.options.")
    if key not in place and not is_open and not empty_optional:
        names = field_names(Recipe) if not path else tuple(map(str, place))
        raise unknown_name(path, key, names)
