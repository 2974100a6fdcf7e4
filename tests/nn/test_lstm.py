"""`lstmvid.LSTM` beside `torch.nn.LSTM`: same parameters, same results, same errors, on every backend."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import lstmvid

BACKENDS = ["auto", "cpu", "torch", "reference"]
OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "batch_first", "bias"), values, strict=True))
    for values in itertools.product((1, 2), (False, True), (False, True), (False, True))
]


def _pair(backend="auto", **options):
    """torch.nn.LSTM and ours with the same weights."""
    torch.manual_seed(1)
    theirs = torch.nn.LSTM(5, 7, **options)
    torch.manual_seed(1)
    return theirs, lstmvid.LSTM(5, 7, backend=backend, **options)


def _flat(result):
    output, (h_n, c_n) = result
    return [output.data if isinstance(output, PackedSequence) else output, h_n, c_n]


def _assert_same(theirs, ours, *arguments):
    """Outputs and every gradient."""
    expected, actual = _flat(theirs(*arguments)), _flat(ours(*arguments))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    seeds = [torch.randn_like(value) for value in expected]
    gradients = [
        torch.autograd.grad(values, list(module.parameters()), seeds)
        for values, module in ((expected, theirs), (actual, ours))
    ]
    for name, a, b in zip(dict(theirs.named_parameters()), *reversed(gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_and_draws_are_those_of_torch(options):
    theirs, ours = _pair(**options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert theirs._flat_weights_names == ours._flat_weights_names
    torch.manual_seed(3)
    theirs.reset_parameters()
    torch.manual_seed(3)
    ours.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_results(backend, options):
    theirs, ours = _pair(backend, **options)
    x = torch.randn(4, 3, 5)
    batch = 4 if options["batch_first"] else 3
    states = options["num_layers"] * (1 + options["bidirectional"])
    hx = (torch.randn(states, batch, 7), torch.randn(states, batch, 7))
    _assert_same(theirs, ours, x)
    _assert_same(theirs, ours, x, hx)
    _assert_same(theirs, ours, x[0])
    _assert_same(theirs, ours, x[0], (hx[0][:, 0], hx[1][:, 0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_packed_sequences(backend, options):
    theirs, ours = _pair(backend, **options)
    sequences = [torch.randn(length, 5) for length in (2, 5, 1, 3)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    states = options["num_layers"] * (1 + options["bidirectional"])
    hx = (torch.randn(states, 4, 7), torch.randn(states, 4, 7))
    for arguments in ((packed,), (packed, hx)):
        _assert_same(theirs, ours, *arguments)
    sorted_batch = pack_padded_sequence(torch.randn(5, 3, 5), torch.tensor([5, 5, 2]))
    _assert_same(theirs, ours, sorted_batch)
    result, _ = ours(packed)
    assert torch.equal(result.batch_sizes, packed.batch_sizes)
    assert torch.equal(result.unsorted_indices, packed.unsorted_indices)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_projections(backend):
    theirs, ours = _pair(backend, proj_size=3, num_layers=2, bidirectional=True)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    _assert_same(theirs, ours, torch.randn(4, 3, 5))
    with pytest.raises(lstmvid.BackendUnavailable, match="projections"):
        _pair("cpu", proj_size=3)[1](torch.randn(4, 3, 5))
    with pytest.raises(ValueError, match="peephole"):
        lstmvid.LSTM(5, 7, proj_size=3, peephole=True)


@pytest.mark.parametrize("backend", ["auto", "torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(backend, dtype):
    theirs, ours = _pair(backend, num_layers=2)
    x = torch.randn(4, 3, 5, dtype=dtype)
    for a, b in zip(_flat(ours.to(dtype)(x)), _flat(theirs.to(dtype)(x)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **({"rtol": 0.02, "atol": 0.005} if dtype == torch.bfloat16 else {}))


def test_dropout_between_layers():
    """Seeded, only in training, and only between layers."""
    _, ours = _pair("cpu", num_layers=3, dropout=0.5)
    x = torch.randn(4, 3, 5)
    torch.manual_seed(5)
    first = ours(x)[0]
    torch.manual_seed(5)
    assert torch.equal(ours(x)[0], first)
    assert not torch.equal(ours(x)[0], first)
    theirs, _ = _pair(num_layers=3, dropout=0.5)
    torch.testing.assert_close(ours.eval()(x)[0], theirs.eval()(x)[0])
    _, everything = _pair("cpu", num_layers=2, dropout=1.0)
    below_is_lost = everything(x)[0]
    assert torch.equal(below_is_lost, everything(torch.randn_like(x))[0])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_peepholes(bidirectional):
    options = {"num_layers": 2, "bidirectional": bidirectional}
    theirs, plain = _pair(**options)
    torch.manual_seed(1)
    ours = lstmvid.LSTM(5, 7, peephole=True, **options)
    names = [name for name, _ in ours.named_parameters() if "peephole" in name]
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"] if bidirectional else ["l0", "l1"]
    assert names == [f"weight_peephole_{suffix}" for suffix in suffixes]
    assert all(ours.get_parameter(name).shape == (21,) and not ours.get_parameter(name).any() for name in names)
    # They start at zero and disturb no other draw, so a fresh one computes what torch's does.
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    for name in names:
        torch.nn.init.normal_(ours.get_parameter(name))
    results = {}
    for ours.backend in ("cpu", "reference"):
        output = ours(x)[0]
        gradients = torch.autograd.grad(output.square().sum(), [ours.get_parameter(name) for name in names])
        results[ours.backend] = [output, *gradients]
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(results["cpu"][0], plain(x)[0])
    ours.reset_parameters()
    assert not ours.get_parameter(names[0]).any()
    with pytest.raises(lstmvid.BackendUnavailable, match="no peepholes"):
        lstmvid.LSTM(5, 7, peephole=True, backend="torch")(x)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(clone):
    ours = lstmvid.LSTM(5, 7, num_layers=2, peephole=True, backend="cpu")
    twin, x = clone(ours), torch.randn(4, 3, 5)
    assert torch.equal(twin(x)[0], ours(x)[0])
    assert (twin.peephole, twin.backend) == (True, "cpu")
    twin.weight_hh_l0.data.zero_()
    assert not torch.equal(twin(x)[0], ours(x)[0])


def test_an_lstm_given_our_class():
    """What swapping the class of somebody's nn.LSTM relies on: no attribute of ours is needed."""
    theirs = torch.nn.LSTM(5, 7)
    x = torch.randn(4, 3, 5)
    expected = theirs(x)[0]
    theirs.__class__ = lstmvid.LSTM
    torch.testing.assert_close(theirs(x)[0], expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: (torch.randn(4, 3, 6),),
        lambda: (torch.randn(4, 3, 5, 1),),
        lambda: (torch.randn(4, 3, 5, dtype=torch.float64),),
        lambda: (torch.randn(0, 3, 5),),
        lambda: (torch.randn(4, 3, 5), (torch.randn(1, 3), torch.randn(1, 3))),
        lambda: (torch.randn(4, 5), (torch.randn(1, 3, 7), torch.randn(1, 3, 7))),
        lambda: (torch.randn(4, 3, 5), (torch.randn(1, 2, 7), torch.randn(1, 3, 7))),
        lambda: (torch.randn(4, 3, 5), (torch.randn(1, 3, 7), torch.randn(1, 3, 6))),
    ],
)
def test_errors_are_those_of_torch(backend, make):
    theirs, ours = _pair(backend)
    arguments = make()
    with pytest.raises((ValueError, RuntimeError)) as expected:
        theirs(*arguments)
    with pytest.raises(expected.type) as actual:
        ours(*arguments)
    assert str(actual.value) == str(expected.value)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_packed_sequences_are_checked_too(backend):
    """torch reads on, whatever a packed batch and its states hold."""
    _, ours = _pair(backend)
    with pytest.raises(RuntimeError, match="Expected 5, got 6"):
        ours(pack_sequence([torch.randn(3, 6)]))
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        ours(pack_sequence([torch.randn(3, 5)]), (torch.randn(1, 2, 7), torch.randn(1, 2, 7)))


@pytest.mark.parametrize("options", [{"backend": "fast"}, {"recompute": "always"}])
def test_unknown_options(options):
    with pytest.raises(ValueError, match="must be one of"):
        lstmvid.LSTM(5, 7, **options)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_named_backends_never_fall_back(backend):
    with pytest.raises(lstmvid.BackendUnavailable, match=backend):
        lstmvid.LSTM(5, 7, backend=backend)(torch.randn(4, 3, 5))


def test_autocast():
    theirs, ours = _pair("cpu", num_layers=2)
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = theirs(x)[0], ours(x)[0]
        assert actual.dtype == torch.bfloat16
        actual.float().sum().backward()
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0.02, atol=0.02)
    assert ours.weight_hh_l0.grad.dtype == torch.float32


def test_inference_mode_and_eval_backward():
    theirs, ours = _pair("cpu")
    x = torch.randn(4, 3, 5)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    ours.eval()(x)[0].sum().backward()
    assert ours.weight_hh_l0.grad is not None


def test_exports():
    _, ours = _pair("cpu", num_layers=2)
    x = torch.randn(4, 3, 5)
    program = torch.export.export(ours, (x,), dynamic_shapes=({1: torch.export.Dim("batch", min=2)},))
    for batch in (3, 8):
        x = torch.randn(4, batch, 5)
        torch.testing.assert_close(program.module()(x)[0], ours(x)[0])


def test_meta_device():
    ours = lstmvid.LSTM(5, 7, device="meta")
    output, (h_n, _) = ours(torch.randn(4, 3, 5, device="meta"))
    assert (output.shape, h_n.shape) == ((4, 3, 7), (1, 3, 7))
    assert output.is_meta
