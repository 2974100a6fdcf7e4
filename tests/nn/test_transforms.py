"""`torch.func`: inside a transform plain torch code runs, so that all of them work, those that nn.LSTM refuses too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import lstmvid
from lstmvid.functional import lstm as functional_lstm

OPTIONS = [{}, {"num_layers": 2, "batch_first": True}, {"bidirectional": True, "bias": False}]


def pair(**options):
    torch.manual_seed(1)
    theirs = nn.LSTM(5, 7, **options)
    torch.manual_seed(1)
    return theirs, lstmvid.LSTM(5, 7, **options)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_functional_call(options):
    """Outside of a transform: other weights than the module's own, by every backend, and the module unchanged."""
    theirs, ours = pair(**options)
    x = torch.randn(4, 3, 5)
    other = {name: torch.randn_like(p, requires_grad=True) for name, p in theirs.named_parameters()}
    expected = functional_call(theirs, other, (x,))[0]
    gradients = torch.autograd.grad(expected.sum(), list(other.values()))
    for ours.backend in ("cpu", "reference", "torch"):
        actual = functional_call(ours, other, (x,))[0]
        close(actual, expected)
        close(torch.autograd.grad(actual.sum(), list(other.values())), gradients)
    close(ours(x)[0], theirs(x)[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients(options):
    results = []
    x = torch.randn(4, 3, 5)
    for module in pair(**options):
        parameters = dict(module.named_parameters())
        results.append(grad(lambda p, m=module: functional_call(m, p, (x,))[0].square().sum())(parameters))
    close(results[1], results[0])


def test_gradients_of_single_samples():
    results = []
    x = torch.randn(6, 4, 5)
    for module in pair():
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(parameters, sample, module=module):
            return functional_call(module, parameters, (sample,))[0].square().sum()

        results.append(vmap(grad(loss), in_dims=(None, 0))(parameters, x))
    close(results[1], results[0])


def test_vmap_over_inputs():
    """nn.LSTM has no batching rule and raises."""
    theirs, ours = pair(num_layers=2)
    x = torch.randn(6, 4, 3, 5)
    expected = torch.stack([theirs(sample)[0] for sample in x])
    close(vmap(lambda sample: ours(sample)[0])(x), expected)
    close(vmap(lambda sample: ours(sample)[0], in_dims=2, out_dims=2)(x.movedim(0, 2)), expected.movedim(0, 2))
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        vmap(lambda sample: theirs(sample)[0])(x)


def test_ensembles():
    """One call for several modules' weights."""
    modules = [lstmvid.LSTM(5, 7, peephole=True) for _ in range(3)]
    for module in modules:
        nn.init.normal_(module.weight_peephole_l0)
    parameters, buffers = stack_module_state(modules)
    skeleton, x = copy.deepcopy(modules[0]).to("meta"), torch.randn(4, 2, 5)
    output = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,))[0])(parameters, buffers)
    close(output, torch.stack([module(x)[0] for module in modules]))


def test_jacobians():
    theirs, ours = pair()
    x = torch.randn(3, 2, 5)
    expected = jacrev(lambda x: theirs(x)[0])(x)
    close(jacrev(lambda x: ours(x)[0])(x), expected)
    close(jacfwd(lambda x: ours(x)[0])(x), expected)
    tangent = torch.randn_like(x)
    directional = jvp(lambda x: ours(x)[0], (x,), (tangent,))[1]
    close(directional, torch.einsum("abcijk,ijk->abc", expected, tangent))
    assert hessian(lambda x: ours(x)[0].square().sum())(x).shape == (*x.shape, *x.shape)


@pytest.mark.parametrize(("backend", "words"), [("auto", "forward AD with mkldnn_rnn_layer"), ("cpu", "jvp")])
def test_forward_mode_without_a_transform_is_refused(backend, words):
    """As by nn.LSTM: an error, not a tangent that is lost."""
    from torch.autograd import forward_ad

    _, ours = pair()
    ours.backend = backend
    x = torch.randn(3, 2, 5)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=words):
        ours(forward_ad.make_dual(x, x))


def test_composite_and_functional_form():
    model = lstmvid.FusedComposite(6, 5, num_layers=2, predict="conditional")
    frames, parameters = torch.rand(4, 2, 6), dict(model.named_parameters())
    gradients = grad(lambda p: functional_call(model, p, (frames, frames)).loss)(parameters)
    model(frames, frames).loss.backward()
    close(gradients, {name: p.grad for name, p in parameters.items()})
    theirs, _ = pair()
    x, state = torch.randn(6, 4, 3, 5), (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7))
    output = vmap(lambda x: functional_lstm(x, state, list(theirs.parameters()))[0])(x)
    close(output, torch.stack([theirs(sample)[0] for sample in x]))


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_named_kernel_is_refused(backend):
    _, ours = pair()
    ours.backend = backend
    with pytest.raises(lstmvid.BackendUnavailable, match=r"torch\.func transforms"):
        vmap(lambda x: ours(x)[0])(torch.randn(2, 4, 3, 5))


def test_projections_have_no_batching_rule():
    _, ours = pair(proj_size=3)
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        vmap(lambda x: ours(x)[0])(torch.randn(2, 4, 3, 5))


def test_transforms_compile():
    _, ours = pair()
    weights, state = list(ours.parameters()), (torch.zeros(1, 3, 7), torch.zeros(1, 3, 7))
    x = torch.randn(2, 4, 3, 5)

    def call(x):
        return vmap(lambda x: functional_lstm(x, state, weights)[0])(x)

    close(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))
