from __future__ import annotations

import dataclasses

import pytest
import torch

import lstmvid
from lstmvid.training import OriginalSGD
from lstmvid.training.presets import PRESETS, build_optimizer, initialise, learning_rate_factor


@pytest.fixture
def model():
    torch.manual_seed(0)
    return lstmvid.FusedComposite((1, 4, 4), 6, 2, backend="reference")


def test_original_update_bounds_the_velocity():
    """Two steps by hand; the first hits the bound, the second does not."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = OriginalSGD([weight], lr=0.1, momentum=0.9, clip=0.05, weight_decay=0.01)

    weight.grad = torch.tensor([3.0, 0.2], dtype=torch.float64)
    optimizer.step()
    # -0.1 * (3 + 0.01) is out of bounds; -0.1 * (0.2 - 0.02) is not.
    first = torch.tensor([-0.05, -0.018], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0, -2.0], dtype=torch.float64) + first)

    before = weight.detach().clone()
    weight.grad = torch.tensor([-0.3, 0.1], dtype=torch.float64)
    optimizer.step()
    # The bounded velocity is what is carried on, not the gradient's own step.
    second = 0.9 * first - 0.1 * (weight.grad + 0.01 * before)
    torch.testing.assert_close(weight.detach(), before + second.clamp(-0.05, 0.05))


def test_original_initial_weights(model):
    initialise(model, PRESETS["original"])
    for name, parameter in model.named_parameters():
        bound = 0.1 if "peephole" in name else 0.0 if "bias" in name else 0.01
        assert parameter.abs().max() <= bound
        assert bound == 0 or parameter.abs().max() > 0.7 * bound
        assert parameter.requires_grad == ("bias_hh" not in name)


@pytest.mark.parametrize(("name", "bias"), [("default", 1.0), ("original_rmsprop", 5.0)])
def test_forget_bias_is_counted_once(model, name, bias):
    initialise(model, PRESETS[name])
    total = (model.encoder.bias_ih_l1 + model.encoder.bias_hh_l1).chunk(4)
    assert (total[1] == bias).all()
    assert all((total[gate] == 0).all() for gate in (0, 2, 3))


def test_logit_bias_is_for_logits_only():
    gaussian = lstmvid.FusedComposite(5, 4, 1, likelihood="gaussian")
    initialise(gaussian, PRESETS["default"])
    assert (gaussian.prediction_head.bias == 0).all()


def test_weight_decay_spares_biases(model):
    initialise(model, PRESETS["original"])
    decayed, others = build_optimizer(model, PRESETS["original"]).param_groups
    assert decayed["weight_decay"] == 1e-4
    assert others["weight_decay"] == 0
    biases = {id(p) for name, p in model.named_parameters() if "bias" in name and p.requires_grad}
    assert {id(p) for p in others["params"]} == biases


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_lowers_the_loss(model, name):
    preset = dataclasses.replace(PRESETS[name], clip=1.0 if name == "original" else PRESETS[name].clip)
    initialise(model, preset)
    optimizer = build_optimizer(model, preset)
    frames = torch.rand(6, 3, 1, 4, 4, generator=torch.Generator().manual_seed(1)).round()
    losses = []
    for _ in range(10):
        loss = model(frames[:3], frames[3:]).loss
        optimizer.zero_grad()
        (loss * (9 if preset.sum_gradients else 1)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_schedule():
    preset = dataclasses.replace(PRESETS["default"], warmup_steps=4)
    factors = [learning_rate_factor(preset, step, 104) for step in range(110)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[54] == pytest.approx(0.5)
    assert factors[104:] == [pytest.approx(0, abs=1e-12)] * 6
    assert learning_rate_factor(PRESETS["original"], 10**6, 10) == 1.0
