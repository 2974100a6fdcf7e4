"""What is compared: models as people write them on `torch.nn.LSTM`, and ours with the same weights.

A contestant is a module that computes `Case`'s function. All of a case start from one state_dict and get the same
frames, so their results and gradients must be equal up to rounding, which `worst` judges.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from shapes import CONTEXT, Case
from torch import Tensor, nn

import lstmvid
from lstmvid import backends, testing

BASELINE = "torch.nn.LSTM"
WRONG = sys.float_info.max  # an error beyond any bound, as a number that JSON has


class PlainComposite(nn.Module):
    """`lstmvid.FusedComposite` without peepholes, on `torch.nn.LSTM`, the way people write it.

    The unconditional decoder, which sees nothing, is fed frames of zeros; the conditional one is fed the true frames,
    one step late; and on its own output it runs in a Python loop over the steps.
    """

    def __init__(self, frame_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(frame_size, hidden_size, num_layers)
        self.reconstructor = nn.LSTM(frame_size, hidden_size, num_layers)
        self.predictor = nn.LSTM(frame_size, hidden_size, num_layers)
        self.reconstruction_head = nn.Linear(hidden_size, frame_size)
        self.prediction_head = nn.Linear(hidden_size, frame_size)

    def forward(self, frames: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames `(T, B, D)` to reconstruction, prediction (both `(T, B, D)`) and the loss."""
        _, state = self.encoder(frames)
        hidden, _ = self.reconstructor(torch.zeros_like(frames), state)
        reconstruction = self.reconstruction_head(hidden)
        seen = torch.cat([torch.zeros_like(targets[:1]), targets[:-1]])
        hidden, _ = self.predictor(seen, state)
        prediction = self.prediction_head(hidden)
        loss = cross_entropy(reconstruction, frames.flip(0)) + cross_entropy(prediction, targets)
        return reconstruction.sigmoid().flip(0), prediction.sigmoid(), loss

    @torch.no_grad()
    def predict(self, frames: Tensor, steps: int) -> Tensor:
        """The `steps` frames after `frames`: `(steps, B, D)`."""
        _, state = self.encoder(frames)
        frame = torch.zeros_like(frames[:1])
        predicted = []
        for _ in range(steps):
            hidden, state = self.predictor(frame, state)
            frame = self.prediction_head(hidden).sigmoid()
            predicted.append(frame)
        return torch.cat(predicted)


def cross_entropy(logits: Tensor, frames: Tensor) -> Tensor:
    total = F.binary_cross_entropy_with_logits(logits, frames, reduction="sum")
    return total / (frames.size(0) * frames.size(1))


@dataclass(frozen=True)
class Contestant:
    """A module for a case; `backend` is None for the baseline, and `auto` says that `"auto"` would take it."""

    name: str
    module: nn.Module
    backend: str | None = None
    peephole: bool = False
    auto: bool = False

    def describe(self) -> dict:
        """For the JSON file."""
        return {"name": self.name, "backend": self.backend, "peephole": self.peephole, "auto": self.auto}


def contestants(case: Case, device: str, names: list[str]) -> list[Contestant]:
    """The baseline, ours on each of the named backends that can run the case, and a composite model with peepholes."""
    torch.manual_seed(0)
    factory = {"device": device, "dtype": case.torch_dtype}
    sizes = (case.frame_size, case.hidden_size, case.num_layers)
    if case.model == "lstm":
        baseline = nn.LSTM(*sizes, **factory)
    else:
        baseline = PlainComposite(*sizes).to(**factory)
    automatic = backends.resolve("auto", _request(case, device))
    with_peepholes = backends.resolve("auto", _request(case, device, peephole=True))
    variants = [(name, False) for name in names if why_not(case, device, name) is None]
    if case.model == "composite" and with_peepholes in names:
        variants.append((with_peepholes, True))
    result = [Contestant(BASELINE, baseline)]
    for backend, peephole in variants:
        if case.model == "lstm":
            ours = lstmvid.LSTM(*sizes, backend=backend, **factory)
        else:
            ours = lstmvid.FusedComposite(*sizes, peephole=peephole, backend=backend, **factory)
        _copy_weights(baseline, ours)
        name = f"lstmvid {backend}" + (", peepholes" if peephole else "")
        result.append(Contestant(name, ours, backend, peephole, auto=backend == automatic and not peephole))
    return result


def why_not(case: Case, device: str, backend: str, mode: str = "forward") -> str | None:
    """Why a backend can't run the case in that mode, or None."""
    request = _request(case, device)._replace(needs_grad=mode == "forward+backward")
    return backends.unavailable(backend, request)


def _request(case: Case, device: str, *, peephole: bool = False) -> backends.Request:
    return backends.Request(
        device=device,
        dtype=case.torch_dtype,
        steps=case.steps,
        batch=case.batch,
        input_size=case.frame_size,
        hidden_size=case.hidden_size,
        num_layers=case.num_layers,
        peephole=peephole,
    )


# Zero frames make this weight useless, so ours has none.
_USELESS = "reconstructor.weight_ih_l0"


def _copy_weights(baseline: nn.Module, ours: nn.Module) -> None:
    """Ours has no weights for zero frames, and its peepholes are zeros: the function is the baseline's."""
    state = {name: weight for name, weight in baseline.state_dict().items() if name != _USELESS}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    if unexpected or any("peephole" not in name for name in missing):
        raise RuntimeError(f"the weights don't fit: missing {missing}, unexpected {unexpected}")


def draw(case: Case, device: str) -> dict[str, Tensor]:
    """The frames that a case's modes need, and for an LSTM the gradient of its output."""
    generator = torch.Generator().manual_seed(1)

    def values(draw_values, steps: int, width: int) -> Tensor:
        return draw_values(steps, case.batch, width, generator=generator).to(device, case.torch_dtype)

    if case.model == "lstm":
        shapes = {"frames": (case.steps, case.frame_size), "seed": (case.steps, case.hidden_size)}
        return {name: values(torch.randn, *shape) for name, shape in shapes.items()}
    data = {}
    if "generation" in case.modes:
        data["context"] = values(torch.rand, CONTEXT, case.frame_size)
    if case.modes != ("generation",):
        data |= {name: values(torch.rand, case.steps, case.frame_size) for name in ("frames", "targets")}
    return data


def compute(case: Case, mode: str, module: nn.Module, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is timed: one call, and for training its backward pass; gradients are left in the parameters."""
    if mode == "generation":
        return {"prediction": module.predict(data["context"], case.steps)}
    if mode == "forward":
        with torch.no_grad():
            return _forward(case, module, data)
    module.zero_grad(set_to_none=True)
    results = _forward(case, module, data)
    if case.model == "lstm":
        results["output"].backward(data["seed"])
    else:
        results["loss"].backward()
    return results


def _forward(case: Case, module: nn.Module, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if case.model == "lstm":
        output, (h_n, c_n) = module(data["frames"])
        return {"output": output, "h_n": h_n, "c_n": c_n}
    out = module(data["frames"], data["targets"])
    if isinstance(module, PlainComposite):
        reconstruction, prediction, loss = out
    else:
        reconstruction, prediction, loss = out.reconstruction, out.prediction, out.loss
    return {"reconstruction": reconstruction, "prediction": prediction, "loss": loss}


Outcome = dict[str, Tensor]


def outcome(case: Case, mode: str, module: nn.Module, data: Mapping[str, Tensor]) -> Outcome:
    """Everything that a call computes, by name: results, and in training the parameters' gradients."""
    values = {name: value.detach() for name, value in compute(case, mode, module, data).items()}
    if mode == "forward+backward":
        gradients = {name: weight.grad for name, weight in module.named_parameters() if name != _USELESS}
        values |= {f"gradient of {name}": grad for name, grad in gradients.items() if "peephole" not in name}
        module.zero_grad(set_to_none=True)
    return values


def errors(
    case: Case, mode: str, fighters: list[Contestant], data: Mapping[str, Tensor]
) -> dict[str, tuple[float, str]]:
    """Of each contestant the largest error over its bound, and of which result: more than 1 is wrong.

    The bound is that of `lstmvid.testing`: twice the error that the baseline itself, which comes first, makes in this
    dtype beside float64, plus a floor in units of the largest magnitude.
    """
    exact = copy.deepcopy(fighters[0].module).double()
    expected = outcome(case, mode, exact, {name: value.double() for name, value in data.items()})
    plain = outcome(case, mode, fighters[0].module, data)
    floor = testing.FLOORS[case.torch_dtype]
    result = {fighters[0].name: worst(plain, plain, expected, floor)}
    for fighter in fighters[1:]:
        result[fighter.name] = worst(outcome(case, mode, fighter.module, data), plain, expected, floor)
    return result


def worst(actual: Outcome, plain: Outcome, expected: Outcome, floor: float) -> tuple[float, str]:
    """The largest error over its bound, and of which result."""
    if set(actual) != set(expected):
        return WRONG, f"{', '.join(sorted(set(actual) ^ set(expected)))} (on one side only)"
    largest = (0.0, "")
    for name, value in expected.items():
        error = testing.error(actual[name].double(), value)
        bound = 2 * testing.error(plain[name].double(), value) + floor * value.abs().max().item()
        # Where the baseline itself overflows nothing can be right.
        ratio = error / bound if math.isfinite(error) and math.isfinite(bound) and bound > 0 else WRONG
        largest = max(largest, (0.0 if error == 0 else ratio, name))
    return largest
