"""What people write in plain torch where `torch.nn.LSTM` has no answer: peepholes, generation with cells.

Parameters have the names of `lstmvid.LSTM` and `lstmvid.FusedComposite`, so that one state_dict serves all.
"""

from __future__ import annotations

import torch
from baselines import PlainComposite, cross_entropy
from torch import Tensor, nn


def peephole_steps(
    projection: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor, peephole: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence step by step, as fast as eager torch has it: one `addmm` a step, peepholes by `addcmul`.

    projection: `(T, B, 4H)`, the inputs' part of all steps by one product; h, c: `(B, H)`.
    """
    transposed = weight_hh.t()
    p_i, p_f, p_o = peephole.chunk(3)
    outputs = []
    for z in projection.unbind(0):
        z_i, z_f, z_g, z_o = torch.addmm(z, h, transposed).chunk(4, 1)
        i = torch.addcmul(z_i, p_i, c).sigmoid()
        f = torch.addcmul(z_f, p_f, c).sigmoid()
        c = f * c + i * z_g.tanh()
        h = torch.addcmul(z_o, p_o, c).sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs), h, c


class PeepholeLoop(nn.Module):
    """One layer with peepholes; `scripted` compiles the loop by `torch.jit.script`."""

    def __init__(self, input_size: int, hidden_size: int, *, scripted: bool) -> None:
        super().__init__()
        shapes = {"weight_ih": (4, input_size), "weight_hh": (4, hidden_size), "bias_ih": (4,), "bias_hh": (4,)}
        for name, (gates, *width) in (shapes | {"weight_peephole": (3,)}).items():
            self.register_parameter(f"{name}_l0", nn.Parameter(torch.empty(gates * hidden_size, *width)))
        self.steps = torch.jit.script(peephole_steps) if scripted else peephole_steps

    def forward(self, frames: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        projection = nn.functional.linear(frames, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
        state = frames.new_zeros(frames.size(1), self.weight_hh_l0.size(1))
        output, h, c = self.steps(projection, state, state, self.weight_hh_l0, self.weight_peephole_l0)
        return output, (h.unsqueeze(0), c.unsqueeze(0))


class ModesComposite(PlainComposite):
    """`PlainComposite` whose decoders are each conditional or not: fed the true frames a step late, or zeros."""

    def __init__(self, frame_size: int, hidden_size: int, num_layers: int, reconstruct: str, predict: str) -> None:
        super().__init__(frame_size, hidden_size, num_layers)
        self.modes = (reconstruct, predict)

    def forward(self, frames: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, state = self.encoder(frames)
        parts = (
            (self.reconstructor, self.reconstruction_head, frames.flip(0)),
            (self.predictor, self.prediction_head, targets),
        )
        logits, losses = [], []
        for mode, (decoder, head, truth) in zip(self.modes, parts, strict=True):
            if mode == "conditional":
                seen = torch.cat([torch.zeros_like(truth[:1]), truth[:-1]])
            else:
                seen = torch.zeros_like(truth)
            logits.append(head(decoder(seen, state)[0]))
            losses.append(cross_entropy(logits[-1], truth))
        return logits[0].sigmoid().flip(0), logits[1].sigmoid(), losses[0] + losses[1]


_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class CellComposite(PlainComposite):
    """Generates on `LSTMCell`s, which for one step are a shorter way than `nn.LSTM`."""

    @torch.no_grad()
    def predict(self, frames: Tensor, steps: int) -> Tensor:
        _, (h_n, c_n) = self.encoder(frames)
        states, cells = list(zip(h_n.unbind(0), c_n.unbind(0), strict=True)), self._cells()
        frame, predicted = torch.zeros_like(frames[0]), []
        for _ in range(steps):
            value = frame
            for layer, cell in enumerate(cells):
                states[layer] = cell(value, states[layer])
                value = states[layer][0]
            frame = self.prediction_head(value).sigmoid()
            predicted.append(frame)
        return torch.stack(predicted)

    def _cells(self) -> list[nn.LSTMCell]:
        """The predictor's layers, of its own parameters."""
        cells = []
        for layer in range(self.predictor.num_layers):
            weights = {name: getattr(self.predictor, f"{name}_l{layer}") for name in _CELL_WEIGHTS}
            cell = nn.LSTMCell(weights["weight_ih"].size(1), self.predictor.hidden_size, device="meta")
            for name, weight in weights.items():
                setattr(cell, name, weight)
            cells.append(cell)
        return cells
