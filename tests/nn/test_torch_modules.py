"""PyTorch's own module tests with `lstmvid.LSTM` in `torch.nn.LSTM`'s place.

The wheel has no test files, but it has what they are driven by: `module_db`, with the constructor arguments, inputs,
reference functions and expected errors of every module. The tests here are those that PyTorch runs over that entry
(forward, factory arguments, moves, repr, pickle, strided tensors, gradients, modes, errors).
"""

from __future__ import annotations

import copy
import io
import pickle
from unittest import mock

import pytest
import torch
from torch import nn

import lstmvid

# Their import would freeze the settings of torch.backends, which other tests of this process set.
with mock.patch("torch.backends.disable_global_flags"):
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
    from torch.testing._internal.common_utils import freeze_rng_state, noncontiguous_like

INFO = next(info for info in module_db if info.module_cls is nn.LSTM)
DTYPES = [torch.float32, torch.float64]


def _samples(dtype=torch.float32, *, requires_grad=False, training=True):
    return INFO.module_inputs_func(INFO, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training)


def _built(sample, dtype=torch.float32, kind=lstmvid.LSTM, **options):
    """On our own kernels, except for projections, which they have not."""
    arguments = sample.constructor_input
    if kind is lstmvid.LSTM and not arguments.kwargs["proj_size"]:
        options = {"backend": "cpu"} | options
    with freeze_rng_state():
        torch.manual_seed(2)
        return kind(*arguments.args, **arguments.kwargs, dtype=dtype, **options)


def _flat(result):
    output, (h_n, c_n) = result
    return [output, h_n, c_n]


def _tensors(arguments):
    return [t for a in arguments for t in (a if isinstance(a, tuple) else (a,))]


SAMPLES = pytest.mark.parametrize("index", range(len(_samples())))


def test_there_are_samples():
    assert len(_samples()) >= 32


@SAMPLES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_forward(index, dtype, training):
    """What the reference function of the entry says, and what torch.nn.LSTM computes."""
    sample = _samples(dtype, training=training)[index]
    module, theirs = _built(sample, dtype).train(training), _built(sample, dtype, nn.LSTM).train(training)
    arguments = sample.forward_input
    actual = _flat(module(*arguments.args, **arguments.kwargs))
    if sample.reference_fn is not None:
        expected = sample.reference_fn(module, *arguments.args, **arguments.kwargs)
        torch.testing.assert_close(actual, _flat(expected))
    torch.testing.assert_close(actual, _flat(theirs(*arguments.args, **arguments.kwargs)))


@SAMPLES
def test_factory_arguments(index):
    """device and dtype reach every parameter, and nothing is drawn on the meta device."""
    sample = _samples()[index]
    arguments = sample.constructor_input
    for device, dtype in (("cpu", torch.float64), ("meta", torch.float16)):
        module = lstmvid.LSTM(*arguments.args, **arguments.kwargs, device=device, dtype=dtype)
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {(device, dtype)}


@SAMPLES
def test_moves(index):
    """To other dtypes and devices, through meta and back; gradients move along."""
    sample = _samples(requires_grad=True)[index]
    module, arguments = _built(sample), sample.forward_input
    torch.cat([t.flatten() for t in _flat(module(*arguments.args))]).sum().backward()
    before = [p.grad for p in module.parameters()]
    assert all(p.dtype == p.grad.dtype == torch.float64 for p in module.to(torch.float64).parameters())
    module.to(torch.float32)
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), before, strict=True))
    state = module.state_dict()
    meta = copy.deepcopy(module).to("meta")
    assert all(p.is_meta for p in meta.parameters())
    meta.to_empty(device="cpu").load_state_dict(state)
    torch.testing.assert_close(_flat(meta(*arguments.args)), _flat(module(*arguments.args)))


@SAMPLES
def test_repr(index):
    sample = _samples()[index]
    assert repr(_built(sample, backend="auto")) == repr(_built(sample, kind=nn.LSTM))


@SAMPLES
def test_pickle(index):
    sample = _samples()[index]
    module, arguments = _built(sample), sample.forward_input
    expected, file = _flat(module(*arguments.args)), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False), copy.deepcopy(module)):
        assert all(torch.equal(a, b) for a, b in zip(_flat(twin(*arguments.args)), expected, strict=True))


@SAMPLES
def test_strided_tensors(index):
    """Inputs, states and incoming gradients that are not contiguous, one at a time and together."""
    sample = _samples(requires_grad=True)[index]
    module, args = _built(sample), sample.forward_input.args
    expected = _flat(module(*args))
    seeds = [torch.randn_like(t) for t in expected]
    leaves = [*_tensors(args), *module.parameters()]
    gradients = torch.autograd.grad(expected, leaves, seeds)
    for choice in range(2 ** len(_tensors(args))):
        flat = iter(
            noncontiguous_like(t.detach()).requires_grad_() if choice >> i & 1 else t.detach().requires_grad_()
            for i, t in enumerate(_tensors(args))
        )
        strided = [tuple(next(flat) for _ in a) if isinstance(a, tuple) else next(flat) for a in args]
        actual = _flat(module(*strided))
        torch.testing.assert_close(actual, expected)
        again = torch.autograd.grad(
            actual, [*_tensors(strided), *module.parameters()], [noncontiguous_like(seed) for seed in seeds]
        )
        torch.testing.assert_close(again, gradients)


def _function(sample, module):
    """The call as a function of tensors alone, and where to take its derivatives."""
    args = sample.forward_input.args
    names = [name for name, _ in module.named_parameters()]

    def call(*tensors):
        flat = iter(tensors)
        inputs = [tuple(next(flat) for _ in a) if isinstance(a, tuple) else next(flat) for a in args]
        return tuple(_flat(torch.func.functional_call(module, dict(zip(names, flat, strict=True)), tuple(inputs))))

    return call, (*_tensors(args), *(p.detach().clone().requires_grad_() for p in module.parameters()))


@SAMPLES
def test_gradients(index):
    sample = _samples(torch.float64, requires_grad=True)[index]
    call, tensors = _function(sample, _built(sample, torch.float64))
    assert torch.autograd.gradcheck(call, tensors)


@SAMPLES
def test_second_derivatives(index):
    sample = _samples(torch.float64, requires_grad=True)[index]
    call, tensors = _function(sample, _built(sample, torch.float64))
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@SAMPLES
def test_modes_agree(index):
    """Without dropout, training and evaluation are the same, gradients too."""
    sample = _samples(requires_grad=True)[index]
    module, args = _built(sample), sample.forward_input.args
    results = []
    for training in (True, False):
        values = _flat(module.train(training)(*args))
        results.append([*values, *torch.autograd.grad([v.sum() for v in values], list(module.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors(dtype):
    errors = INFO.module_error_inputs_func(INFO, device="cpu", dtype=dtype, requires_grad=False, training=True)
    assert len(errors) > 10
    for error in errors:
        arguments, inputs = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                lstmvid.LSTM(*arguments.args, **arguments.kwargs)
        else:
            module = lstmvid.LSTM(*arguments.args, **arguments.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*inputs.args, **inputs.kwargs)
