"""What trainers do to a `torch.nn.LSTM`, done to ours beside it: the table is in docs/drop-in.md."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstmvid

BACKENDS = ["auto", "cpu", "torch", "reference"]


def pair(backend="auto", **options):
    """torch.nn.LSTM and ours with the same weights."""
    torch.manual_seed(1)
    theirs = nn.LSTM(5, 7, **options)
    torch.manual_seed(1)
    return theirs, lstmvid.LSTM(5, 7, backend=backend, **options)


def flat(result):
    output, (h_n, c_n) = result
    return [output, h_n, c_n]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4))[1:], ids=str)
def test_who_requires_gradients(backend, wanted):
    """Input, state, some of the weights, all of them: each gets its gradient, the others none."""
    results = []
    for module in pair(backend, num_layers=2, bidirectional=True):
        torch.manual_seed(2)
        x, *hx = torch.randn(4, 3, 5), torch.randn(4, 3, 7), torch.randn(4, 3, 7)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(wanted[2] if name.startswith("weight_hh") else wanted[3])
        x.requires_grad_(wanted[0]), hx[0].requires_grad_(wanted[1]), hx[1].requires_grad_(wanted[1])
        torch.cat([t.flatten() for t in flat(module(x, hx))]).square().sum().backward()
        results.append([t.grad for t in (x, *hx, *module.parameters())])
    for theirs, ours in zip(*results, strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_requires_gradients(backend):
    for module in pair(backend):
        assert not module.requires_grad_(False)(torch.randn(4, 3, 5))[0].requires_grad
        with torch.no_grad():
            assert not module.requires_grad_(True)(torch.randn(4, 3, 5))[0].requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_empty_batches(backend, bidirectional):
    for module in pair(backend, num_layers=2, bidirectional=bidirectional):
        values = flat(module(torch.randn(4, 0, 5)))
        assert [tuple(v.shape) for v in values] == [(4, 0, 7 * (1 + bidirectional))] + [
            (2 * (1 + bidirectional), 0, 7)
        ] * 2
        sum(v.sum() for v in values).backward()
        assert all(not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_as_input(backend):
    """Transposed, expanded, sliced and flipped: what a loader or a convolution hands over."""
    theirs, ours = pair(backend, batch_first=True)
    views = [
        torch.randn(4, 3, 5).transpose(0, 1),
        torch.randn(3, 1, 5).expand(3, 4, 5),
        torch.randn(3, 8, 10)[:, ::2, ::2],
        torch.randn(3, 5, 2, 2).flatten(2).transpose(1, 2),
        torch.randn(3, 4, 5).flip(1),
    ]
    for x in views:
        close(flat(ours(x)), flat(theirs(x)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_changes_in_place(backend):
    """States may be overwritten before backward; the output is needed there, and torch says so, as with nn.LSTM."""
    for module in pair(backend):
        output, (h_n, c_n) = module(torch.randn(4, 3, 5))
        h_n.mul_(2)
        c_n.zero_()
        (output.sum() + h_n.sum()).backward()
        output = module(torch.randn(4, 3, 5))[0]
        output.relu_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_goes_round(backend):
    """Truncated backpropagation: the state of one piece starts the next; pieces equal the whole."""
    theirs, ours = pair(backend, num_layers=2)
    x = torch.randn(12, 3, 5)
    expected, state, pieces = theirs(x), None, []
    for piece in x.split(4):
        output, state = ours(piece, state)
        pieces.append(output)
    close([torch.cat(pieces), *state], flat(expected))
    assert all(s.is_contiguous() for s in state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_in_padded_out(backend, enforce_sorted):
    """The usual way through a PackedSequence, with the gradient of the padded input."""
    lengths = torch.tensor([5, 3, 1] if enforce_sorted else [3, 1, 5])
    results = []
    for module in pair(backend, bidirectional=True, num_layers=2):
        torch.manual_seed(2)
        x = torch.randn(5, 3, 5, requires_grad=True)
        packed, state = module(pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted))
        output, sizes = pad_packed_sequence(packed, padding_value=-1.0)
        assert torch.equal(sizes, lengths)
        output.square().sum().backward()
        results.append([output.detach(), *state, x.grad])
    close(results[1], results[0])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 3}], ids=str)
def test_dropout_is_reproducible(options):
    """The same seed gives the same run, another one another; in evaluation there is none."""
    _, ours = pair(num_layers=3, dropout=0.5, **options)
    x = torch.randn(4, 3, 5)

    def run(seed):
        torch.manual_seed(seed)
        return torch.cat([t.flatten() for t in flat(ours(x))])

    assert torch.equal(run(4), run(4))
    assert not torch.equal(run(4), run(5))
    ours.eval()
    assert torch.equal(run(4), run(5))


def weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old way is deprecated, and in use
        return nn.utils.weight_norm(module, "weight_hh_l0")


def spectral_norm(module):
    """In evaluation: in training each reading of the weight iterates once more, and nn.LSTM reads it often."""
    return parametrizations.spectral_norm(module, "weight_ih_l0").eval()


def weight_drop(module):
    """As AWD-LSTM does it: the raw weight is another parameter, the module's own an ordinary tensor."""
    raw = module.weight_hh_l0
    del module._parameters["weight_hh_l0"]
    module.register_parameter("raw", nn.Parameter(raw.detach()))
    module.register_forward_pre_hook(lambda m, _: setattr(m, "weight_hh_l0", m.raw * 0.5))
    return module


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change",
    [
        weight_norm,
        weight_drop,
        lambda module: parametrizations.weight_norm(module, "weight_hh_l0"),
        spectral_norm,
        lambda module: parametrizations.orthogonal(module, "weight_hh_l0"),
        lambda module: prune.l1_unstructured(module, "weight_hh_l0", amount=0.5),
    ],
    ids=["weight_norm", "weight_drop", "parametrised weight_norm", "spectral_norm", "orthogonal", "prune"],
)
def test_reparametrised_weights(backend, change):
    """Two steps, so that a weight that is kept from the first one shows."""
    results = []
    for module in pair(backend):
        torch.manual_seed(3)
        changed, x = change(module), torch.randn(4, 3, 5)
        optimizer, values = torch.optim.SGD(changed.parameters(), lr=0.1), []
        for _ in range(2):
            optimizer.zero_grad()
            loss = changed(x)[0].square().sum()
            loss.backward()
            optimizer.step()
            values.append(loss.detach())
        results.append([*values, *(p.grad for p in changed.parameters())])
    close(results[1], results[0])
    assert results[1][0] != results[1][1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_is_replaced(backend):
    for assign in (
        lambda m, w: setattr(m, "weight_hh_l0", w),
        lambda m, w: m.load_state_dict(state(m, w), assign=True),
    ):

        def state(module, weight):
            return module.state_dict() | {"weight_hh_l0": weight}

        results = []
        for module in pair(backend):
            assign(module, nn.Parameter(torch.full((28, 7), 0.1)))
            results.append(flat(module(torch.ones(4, 3, 5))))
        close(results[1], results[0])


def test_a_deleted_weight_is_named():
    _, ours = pair()
    del ours.bias_hh_l0
    with pytest.raises(AttributeError, match="bias_hh_l0"):
        ours(torch.randn(4, 3, 5))


def test_state_dict_hooks_and_files():
    theirs, ours = pair(num_layers=2)
    seen = []
    ours.register_state_dict_pre_hook(lambda *_: seen.append("before saving"))
    ours.register_state_dict_post_hook(lambda *_: seen.append("after saving"))
    ours.register_load_state_dict_pre_hook(lambda *_: seen.append("before loading"))
    ours.register_load_state_dict_post_hook(lambda *_: seen.append("after loading"))
    file = io.BytesIO()
    torch.save(ours.state_dict(prefix="encoder."), file)
    file.seek(0)
    state = {name.removeprefix("encoder."): t for name, t in torch.load(file, weights_only=True).items()}
    ours.load_state_dict(theirs.load_state_dict(state) and state)
    assert seen == ["before saving", "after saving", "before loading", "after loading"]
    with pytest.raises(RuntimeError, match="Missing key"):
        lstmvid.LSTM(5, 7, num_layers=3).load_state_dict(state)
    missing = lstmvid.LSTM(5, 7, num_layers=2, peephole=True).load_state_dict(state, strict=False)
    assert missing.missing_keys == ["weight_peephole_l0", "weight_peephole_l1"]


def test_forward_and_backward_hooks():
    results = []
    for module in pair():
        seen = []
        module.register_forward_pre_hook(lambda m, args, kwargs: (args, kwargs | {"hx": None}), with_kwargs=True)
        module.register_forward_hook(lambda m, args, out: (out[0] * 2, out[1]))
        module.register_full_backward_hook(lambda m, inputs, outputs, seen=seen: seen.extend([*inputs, *outputs]))
        module.weight_hh_l0.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad.clone()))
        output = module(torch.ones(4, 3, 5, requires_grad=True))[0]
        output.sum().backward()
        results.append([output, *(t for t in seen if t is not None)])
    close(results[1], results[0])


@pytest.mark.parametrize("peephole", [False, True])
def test_skip_init(peephole):
    """torch.nn.LSTM itself is refused there: its constructor doesn't name its device."""
    module = nn.utils.skip_init(lstmvid.LSTM, 5, hidden_size=7, num_layers=2, peephole=peephole)
    module.reset_parameters()
    assert not module.weight_hh_l0.is_meta
    assert flat(module(torch.randn(4, 3, 5)))[0].isfinite().all()


def test_shared_memory():
    _, ours = pair()
    ours.share_memory()
    assert all(p.is_shared() for p in ours.parameters())
    assert ours(torch.randn(4, 3, 5))[0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversions(backend, dtype):
    if backend == "cpu" and dtype == torch.float16:
        _, ours = pair(backend)
        with pytest.raises(lstmvid.BackendUnavailable, match="float16"):
            ours.half()(torch.randn(4, 3, 5).half())
        return
    results = []
    for module in pair(backend, num_layers=2):
        module.to(dtype)
        torch.manual_seed(2)
        x = torch.randn(4, 3, 5).to(dtype).requires_grad_()
        values = flat(module(x))
        values[0].float().square().sum().backward()
        results.append([*values, x.grad, *(p.grad for p in module.parameters())])
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype != torch.float64 else {}
    torch.testing.assert_close(results[1], results[0], **tolerance)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (torch.randn(4, 3, 5), torch.zeros(1, 3, 7).double(), torch.zeros(1, 3, 7)), "not the same dtype"),
        (lambda: (torch.randn(4, 3, 5), torch.zeros(1, 3, 7), torch.zeros(1, 3, 7).half()), "not the same dtype"),
        (lambda: (torch.randn(4, 3, 5), torch.zeros(1, 3, 7, device="meta"), torch.zeros(1, 3, 7)), "same device"),
        (lambda: (torch.randn(4, 3, 5, device="meta"), *[torch.zeros(1, 3, 7)] * 2), "at meta and parameter.* at cpu"),
    ],
)
def test_operands_that_do_not_lie_together(backend, make, message):
    """torch.lstm raises these, in words that depend on who runs it; nothing is converted in silence."""
    _, ours = pair(backend)
    x, *hx = make()
    if backend == "cpu" and x.is_meta:
        backend_error = pytest.raises(lstmvid.BackendUnavailable, match="on meta")
    else:
        backend_error = pytest.raises(RuntimeError, match=message)
    with backend_error:
        ours(x, tuple(hx))


def test_properties_of_the_base_class():
    theirs, ours = pair(num_layers=2, bidirectional=True, proj_size=3)
    assert [[tuple(w.shape) for w in layer] for layer in ours.all_weights] == [
        [tuple(w.shape) for w in layer] for layer in theirs.all_weights
    ]
    assert ours.flatten_parameters() is None
    assert ours.extra_repr() == theirs.extra_repr()
    assert copy.deepcopy(ours)._flat_weights_names == theirs._flat_weights_names
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        lstmvid.LSTM(5, 7, dropout=0.5)
