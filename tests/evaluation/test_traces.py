from __future__ import annotations

import pytest
import torch

import lstmvid
from lstmvid.evaluation.traces import unit_traces

STEPS, BATCH, HIDDEN, LAYERS = 6, 2, 5, 2


def build(mode: str = "unconditional", **options) -> lstmvid.FusedComposite:
    torch.manual_seed(3)
    model = lstmvid.FusedComposite((2, 3, 2), HIDDEN, LAYERS, predict=mode, dtype=torch.float64, **options)
    for name, parameter in model.named_parameters():
        if "peephole" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("copy_state", [(), ("predict",)], ids=["steps", "copies"])
@pytest.mark.parametrize("mode", ["unconditional", "conditional"])
@pytest.mark.parametrize("peephole", [True, False])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_traces_are_those_of_the_model(mode, copy_state, peephole, layer):
    model = build(mode, copy_state=copy_state, peephole=peephole)
    frames = torch.rand(4, BATCH, 2, 3, 2, dtype=torch.float64)
    run = unit_traces(model, frames, STEPS, layer=layer)
    torch.testing.assert_close(run.frames, model.predict(frames, STEPS))
    # The gates are the cell's: h = o * tanh(c) at every step at which one was taken.
    taken = slice(1 if copy_state else 0, None)
    torch.testing.assert_close(run.hidden[taken], (run.output_gate * run.cell.tanh())[taken])
    # And c = f * c_before + i * tanh(z_g), |tanh| < 1, from the state before.
    before = torch.cat([model.encode(frames)[1][layer][None], run.cell[:-1]])
    candidate = (run.cell - run.forget_gate * before) / run.input_gate
    assert (candidate[taken].abs() < 1).all()
    for gate in (run.input_gate, run.forget_gate, run.output_gate):
        assert gate.shape == run.hidden.shape == run.cell.shape == (STEPS, BATCH, HIDDEN)
        assert gate[0].isnan().all() == bool(copy_state)
        assert ((gate[taken] > 0) & (gate[taken] < 1)).all()
    if copy_state:
        assert torch.equal(run.hidden[0], model.encode(frames)[0][layer])


def test_single_input_gates_against_the_reference_equation():
    model = build("conditional", peephole=True)
    frames = torch.rand(4, BATCH, 2, 3, 2, dtype=torch.float64)
    run = unit_traces(model, frames, 3, layer=0)
    h, c = (state[0] for state in model.encode(frames))
    for step in range(3):
        seen = torch.zeros(BATCH, 12, dtype=torch.float64) if step == 0 else run.frames[step - 1].flatten(1)
        weights = model.predictor.layer_weights()[0]
        z = seen @ weights.weight_ih.T + weights.bias_ih + h @ weights.weight_hh.T + weights.bias_hh
        i = torch.sigmoid(z[:, :HIDDEN] + weights.peephole[:HIDDEN] * c)
        f = torch.sigmoid(z[:, HIDDEN : 2 * HIDDEN] + weights.peephole[HIDDEN : 2 * HIDDEN] * c)
        torch.testing.assert_close(run.input_gate[step], i)
        torch.testing.assert_close(run.forget_gate[step], f)
        torch.testing.assert_close(run.cell[step], f * c + i * z[:, 2 * HIDDEN : 3 * HIDDEN].tanh())
        h, c = run.hidden[step], run.cell[step]


def test_refusals():
    frames = torch.rand(2, 1, 2, 3, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="no predictor"):
        unit_traces(build(None), frames, 3)
    with pytest.raises(ValueError, match="layer is 2, expected one of 2 layers"):
        unit_traces(build(), frames, 3, layer=2)
    with pytest.raises(ValueError, match="steps is 0"):
        unit_traces(build(), frames, 0)
