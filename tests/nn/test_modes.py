"""Compilers and modes of torch: what a training script switches on around a module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import lstmvid
from lstmvid.functional import lstm as functional_lstm

BACKENDS = ["auto", "cpu", "reference"]


def pair(backend="auto", **options):
    torch.manual_seed(1)
    theirs = nn.LSTM(5, 7, **options)
    torch.manual_seed(1)
    return theirs, lstmvid.LSTM(5, 7, backend=backend, **options)


def composite(**options):
    return lstmvid.FusedComposite((1, 2, 3), 5, num_layers=2, predict="conditional", **options)


def gradients(values, module):
    return torch.autograd.grad(sum(v.float().square().sum() for v in values), list(module.parameters()))


def flat(result):
    output, (h_n, c_n) = result
    return [output, h_n, c_n]


# ---- Compilers ----


def test_compiled_module():
    """The graph breaks at an nn.LSTM, its subclasses included; results, gradients and recompilation are right."""
    _, ours = pair(num_layers=2, bidirectional=True)
    below = nn.Linear(5, 5)
    compiled = torch.compile(lambda x: ours(below(x)), backend="aot_eager")
    for steps, batch in ((4, 3), (6, 2)):
        x = torch.randn(steps, batch, 5)
        expected, actual = flat(ours(below(x))), flat(compiled(x))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, ours), gradients(expected, ours))


def test_compiled_module_in_one_graph_if_the_user_allows_it():
    _, ours = pair()
    assert not torch._dynamo.config.allow_rnn  # importing lstmvid leaves it alone
    x = torch.randn(4, 3, 5)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(flat(compiled(x)), flat(ours(x)))


def test_functional_form_is_one_graph_for_any_steps_and_batch():
    module, _ = pair(num_layers=2)
    weights, graphs = list(module.parameters()), []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(functional_lstm, fullgraph=True, backend=counting, dynamic=True)
    for steps, batch in ((4, 3), (9, 5), (2, 8)):
        x, state = torch.randn(steps, batch, 5), (torch.zeros(2, batch, 7), torch.zeros(2, batch, 7))
        torch.testing.assert_close(compiled(x, state, weights)[0], module(x)[0])
    assert len(graphs) == 1


def test_composite_is_one_graph_for_any_steps_and_batch():
    model, graphs = composite(), []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=counting, dynamic=True)
    for steps, batch in ((6, 8), (5, 9), (9, 4)):  # at first, no size that is another one too: torch ties equal ones
        frames, targets = torch.rand(steps, batch, 1, 2, 3), torch.rand(steps - 1, batch, 1, 2, 3)
        torch.testing.assert_close(compiled(frames, targets).loss, model(frames, targets).loss)
    assert len(graphs) == 1


@pytest.mark.parametrize("bidirectional", [False, True])
def test_export_with_dynamic_steps_and_batch(bidirectional):
    _, ours = pair(num_layers=2, bidirectional=bidirectional)
    shapes = ({0: Dim("steps", min=2), 1: Dim("batch", min=2)},)
    program = torch.export.export(ours.eval(), (torch.randn(4, 3, 5),), dynamic_shapes=shapes)
    for steps, batch in ((4, 3), (9, 2), (3, 8)):
        x = torch.randn(steps, batch, 5)
        torch.testing.assert_close(flat(program.module()(x)), flat(ours(x)))


def test_exported_composite_with_dynamic_batch():
    model = composite().eval()
    batch = Dim("batch", min=2)
    frames, targets = torch.rand(4, 3, 1, 2, 3), torch.rand(2, 3, 1, 2, 3)
    program = torch.export.export(model, (frames, targets), dynamic_shapes=({1: batch}, {1: batch}))
    frames, targets = torch.rand(4, 7, 1, 2, 3), torch.rand(2, 7, 1, 2, 3)
    torch.testing.assert_close(program.module()(frames, targets).loss, model(frames, targets).loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace():
    """As nn.LSTM: any steps and batch. Peepholes are traced through the reference, for the steps that it was shown."""
    _, ours = pair(num_layers=2, bidirectional=True)
    traced = torch.jit.trace(ours.eval(), (torch.randn(4, 3, 5),))
    x = torch.randn(6, 2, 5)
    torch.testing.assert_close(flat(traced(x)), flat(ours(x)))
    peephole, x = lstmvid.LSTM(5, 7, peephole=True).eval(), torch.randn(4, 3, 5)
    torch.testing.assert_close(flat(torch.jit.trace(peephole, (x,))(x + 1)), flat(peephole(x + 1)))


def test_restored_for_what_goes_by_the_exact_type():
    """Dynamic quantisation and torch.fx know torch.nn.LSTM by its class."""
    model = lstmvid.restore(lstmvid.accelerate(nn.Sequential(nn.LSTM(5, 7))))
    assert len(torch.fx.symbolic_trace(model).graph.nodes) == 3
    quantised = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.LSTM}, dtype=torch.qint8)
    assert type(quantised[0]) is torch.ao.nn.quantized.dynamic.LSTM


# ---- Autocast ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend, dtype):
    """Results of autocast's dtype, gradients of the weights' own. On the CPU nn.LSTM itself fails with float16."""
    if (backend, dtype) == ("cpu", torch.float16):
        pytest.skip("the C++ kernels have no float16: tests/backends/test_resolve.py has the reason they give")
    theirs, ours = pair(backend, num_layers=2)
    x, hx = torch.randn(4, 3, 5), (torch.randn(2, 3, 7), torch.randn(2, 3, 7))
    with torch.autocast("cpu", dtype=dtype):
        values = flat(ours(x, hx))
        again = flat(ours(x, (values[1], values[2])))
    assert {v.dtype for v in [*values, *again]} == {dtype}
    expected = flat(theirs(x, hx))
    torch.testing.assert_close([v.float() for v in values], expected, rtol=0.02, atol=0.02)
    actual = gradients(values, ours)
    assert {g.dtype for g in actual} == {torch.float32}
    torch.testing.assert_close(actual, gradients(expected, theirs), rtol=0.1, atol=0.1)


def test_autocast_states_have_the_dtype_of_torch():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = (flat(module(torch.randn(4, 3, 5))) for module in pair())
    assert [v.dtype for v in ours] == [v.dtype for v in theirs]


def test_autocast_composite():
    model, frames = composite(), torch.rand(4, 3, 1, 2, 3)
    expected = model(frames, frames[:2]).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(frames, frames[:2]).loss
    torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=0.02)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# ---- Modes ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode(backend):
    theirs, ours = pair(backend)
    x = torch.randn(4, 3, 5)
    with torch.inference_mode():
        values = flat(ours(x))
    assert all(v.is_inference() for v in values)
    torch.testing.assert_close(values, [v.detach() for v in flat(theirs(x))])
    with torch.inference_mode():
        assert composite()(torch.rand(4, 3, 1, 2, 3)).reconstruction.is_inference()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(backend, reentrant):
    """Forward runs again in backward, dropout with the same draws."""
    _, ours = pair(backend, num_layers=3, dropout=0.5)
    x = torch.randn(4, 3, 5, requires_grad=True)
    torch.manual_seed(7)
    expected = torch.autograd.grad(ours(x)[0].square().sum(), x)[0]
    torch.manual_seed(7)
    output = checkpoint(lambda x: ours(x)[0], x, use_reentrant=reentrant)
    output.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_checkpoint_sequential():
    class Output(nn.Module):
        def forward(self, result):
            return result[0]

    layers = [module for _ in range(3) for module in (lstmvid.LSTM(5, 5), Output())]
    model, x = nn.Sequential(*layers), torch.randn(4, 3, 5, requires_grad=True)
    expected = gradients([model(x)], model)
    checkpoint_sequential(model, 3, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_anomaly_mode(backend):
    _, ours = pair(backend, num_layers=2)
    with torch.autograd.detect_anomaly():
        output = ours(torch.randn(4, 3, 5))[0]
        output.sum().backward(retain_graph=True)
        broken = output.sum() * torch.tensor(float("nan"))
        with pytest.raises(RuntimeError, match="returned nan values"):
            broken.backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_double_backward(backend, options):
    """A gradient penalty: cuDNN refuses this."""
    results = []
    for module in pair(backend, **options):
        module.double()
        torch.manual_seed(2)
        x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)[0]
        results.append(torch.autograd.grad(slope.norm(2, dim=-1).sub(1).square().mean(), list(module.parameters())))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_in_evaluation(backend):
    """cuDNN refuses this too."""
    theirs, ours = pair(backend, num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, 5)
    expected, actual = (gradients(flat(module.eval()(x)), module) for module in (theirs, ours))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice(backend):
    """Gradients add up, and a graph that was freed is refused."""
    _, ours = pair(backend)
    loss = ours(torch.randn(4, 3, 5))[0].sum()
    loss.backward(retain_graph=True)
    once = ours.weight_hh_l0.grad.clone()
    loss.backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, 2 * once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_cell_state(backend):
    """`all_cells`: what nn.LSTM gives for one step at a time, with gradients through every one of them."""
    theirs, _ = pair()
    x, state = torch.randn(4, 3, 5), (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7))
    expected, now = [], state
    for frame in x.split(1):
        _, now = theirs(frame, now)
        expected.append(now[1][0])
    cells = functional_lstm(x, state, list(theirs.parameters()), all_cells=True, backend=backend)[2]
    torch.testing.assert_close(cells, torch.stack(expected))
    torch.testing.assert_close(
        gradients([cells], theirs), gradients([torch.stack(expected)], theirs), rtol=1e-4, atol=1e-5
    )
