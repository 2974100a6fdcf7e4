"""The operators by themselves, under pytest-benchmark:

    pytest benchmarks/test_ops_speed.py --benchmark-columns=min,median,iqr,rounds

`lstm_sequence` on each backend that can run a shape, and `torch.nn.LSTM` beside it, forward and forward+backward; each
is checked before it is timed. For ratios use unroll_speed.py: its rounds are interleaved, these run one after another.
"""

from __future__ import annotations

import baselines
import measure
import pytest
import torch
from shapes import MODES, Case
from torch import Tensor, nn

from lstmvid import backends
from lstmvid.ops import LayerWeights, lstm_sequence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    Case(steps=20, hidden_size=512),
    Case(steps=20, hidden_size=512, dtype="bf16"),
    Case(steps=100, hidden_size=256, num_layers=2),
]


class Operator(nn.LSTM):
    """`lstm_sequence` with `torch.nn.LSTM`'s parameters and nothing of `lstmvid.LSTM` around it."""

    backend = "auto"

    def forward(self, frames: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = frames.new_zeros(1, self.num_layers, frames.size(1), self.hidden_size)
        weights = [[LayerWeights(*layer) for layer in self.all_weights]]
        result = lstm_sequence([frames], state, state, weights, steps=frames.size(0), backend=self.backend)
        return result.output[0], (result.h_n[0], result.c_n[0])


@pytest.mark.parametrize("name", [baselines.BASELINE, *backends.NAMES[1:]])
@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lstm_sequence(benchmark, case: Case, mode: str, name: str) -> None:
    fighters = baselines.contestants(case, DEVICE, [])
    if name != baselines.BASELINE:
        reason = baselines.why_not(case, DEVICE, name, mode)
        if reason is not None:
            pytest.skip(reason)
        operator = Operator(case.frame_size, case.hidden_size, case.num_layers, device=DEVICE, dtype=case.torch_dtype)
        operator.load_state_dict(fighters[0].module.state_dict())
        operator.backend = name
        fighters.append(baselines.Contestant(name, operator, name))
    data = baselines.draw(case, DEVICE)
    error, where = baselines.errors(case, mode, fighters, data)[name]
    assert error <= 1, where

    def call() -> None:
        baselines.compute(case, mode, fighters[-1].module, data)
        measure.synchronize(DEVICE)

    benchmark.group = f"{case}, {mode}"
    benchmark.extra_info["flops"] = case.flops(mode)
    benchmark(call)
