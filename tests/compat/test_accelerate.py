"""`accelerate`, `restore` and `patched`: another class, and nothing else that anybody could notice."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import LSTM as IMPORTED_EARLY
from torch.nn.utils import parametrizations

import lstmvid


class Tagger(nn.Module):
    """An LSTM by itself, one in a container, and one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.lstm = nn.LSTM(5, 7, num_layers=2)
        self.more = nn.ModuleList([nn.LSTM(7, 7, batch_first=True)])
        self.alias = self.more[0]
        self.head = nn.Linear(7, 11)

    def forward(self, tokens):
        hidden = self.lstm(self.embedding(tokens))[0]
        return self.head(self.alias(self.more[0](hidden)[0])[0])


@pytest.fixture
def model():
    return Tagger()


@pytest.fixture
def tokens():
    return torch.randint(11, (4, 3))


def gradients(model, tokens):
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference", "torch"])
def test_only_the_class_changes(model, tokens, backend):
    expected, parameters, buffers = gradients(model, tokens), list(model.parameters()), model.state_dict()
    assert lstmvid.accelerate(model, backend=backend) is model
    assert type(model.lstm) is type(model.alias) is lstmvid.LSTM
    assert model.alias is model.more[0]
    assert model.lstm.backend == model.alias.backend == backend
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(buffers)
    torch.testing.assert_close(gradients(model, tokens), expected, rtol=1e-4, atol=1e-6)


def test_restore(model, tokens):
    attributes, expected = set(vars(model.lstm)), model(tokens)
    parameters = list(model.parameters())
    model.own = lstmvid.LSTM(5, 7, backend="cpu")
    assert lstmvid.restore(lstmvid.accelerate(model)) is model
    assert type(model.lstm) is type(model.alias) is nn.LSTM
    assert set(vars(model.lstm)) == attributes
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=False))
    assert torch.equal(model(tokens), expected)
    # What was one of ours all along stays as it was built.
    assert (type(model.own), model.own.backend) == (lstmvid.LSTM, "cpu")
    assert type(lstmvid.restore(model).lstm) is nn.LSTM


def test_the_root_itself():
    lstm = nn.LSTM(5, 7)
    assert lstmvid.accelerate(lstm) is lstm
    assert type(lstm) is lstmvid.LSTM
    assert type(lstmvid.restore(lstm)) is nn.LSTM


def test_a_second_call_changes_the_backend_of_what_the_first_one_swapped(model):
    model.own = lstmvid.LSTM(5, 7, backend="reference")
    lstmvid.accelerate(lstmvid.accelerate(model, backend="cpu"), backend="torch")
    assert (model.lstm.backend, model.own.backend) == ("torch", "reference")


def test_a_named_backend_that_cannot_run_raises_in_the_call(model, tokens):
    lstmvid.accelerate(model, backend="cuda")
    with pytest.raises(lstmvid.BackendUnavailable, match="cuda"):
        model(tokens)


def test_hooks_survive(model, tokens):
    seen = []
    model.lstm.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.lstm.register_forward_hook(lambda module, args, output: seen.append(f"after {tuple(output[0].shape)}"))
    model.lstm.register_full_backward_hook(lambda module, inputs, outputs: seen.append("backward"))
    model.lstm.weight_hh_l0.register_hook(lambda gradient: seen.append(f"gradient {tuple(gradient.shape)}"))
    for change in (lambda module: module, lstmvid.accelerate, lstmvid.restore):
        seen.clear()
        change(model)(tokens).sum().backward()
        assert sorted(seen) == ["after (4, 3, 7)", "backward", "before", "gradient (28, 7)"]


def test_tied_weights_stay_tied(model, tokens):
    """Between two LSTMs, and between an LSTM and a module of another kind."""
    model.more[0].weight_hh_l0 = model.lstm.weight_hh_l1
    expected = gradients(model, tokens)
    lstmvid.accelerate(model)
    assert model.more[0].weight_hh_l0 is model.lstm.weight_hh_l1
    torch.testing.assert_close(gradients(model, tokens), expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        model.lstm.weight_hh_l1.zero_()
    assert not model.more[0].weight_hh_l0.any()


def test_parametrised_ones_and_subclasses_are_left_and_reported(model):
    class Own(nn.LSTM):
        pass

    model.normed = parametrizations.weight_norm(nn.LSTM(5, 7), "weight_hh_l0")
    model.sub = Own(5, 7)
    with pytest.warns(UserWarning, match=r"leaves normed \(ParametrizedLSTM\), sub \(Own\): only modules whose type"):
        lstmvid.accelerate(model)
    assert not isinstance(model.normed, lstmvid.LSTM)
    assert type(model.sub) is Own
    assert type(model.lstm) is lstmvid.LSTM
    with pytest.warns(UserWarning, match="the module itself"):
        lstmvid.accelerate(model.sub)


def test_ours_parametrised_later(model, tokens):
    """It keeps its class, which torch made on top of ours, until the parametrisation is gone."""
    lstmvid.accelerate(model)
    parametrizations.weight_norm(model.lstm, "weight_hh_l0")
    kind = type(model.lstm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lstmvid.accelerate(model, backend="reference")
    assert (type(model.lstm), model.lstm.backend) == (kind, "reference")
    model(tokens)
    with pytest.warns(UserWarning, match=r"restore\(\) leaves lstm \(ParametrizedLSTM\)"):
        lstmvid.restore(model)
    assert (type(model.lstm), type(model.alias)) == (kind, nn.LSTM)
    nn.utils.parametrize.remove_parametrizations(model.lstm, "weight_hh_l0")
    assert type(lstmvid.restore(model).lstm) is nn.LSTM


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_can_be_restored(model, tokens, clone):
    lstmvid.accelerate(model, backend="reference")
    twin = clone(model)
    assert (type(twin.lstm), twin.lstm.backend) == (lstmvid.LSTM, "reference")
    assert torch.equal(twin(tokens), model(tokens))
    assert type(lstmvid.restore(twin).lstm) is nn.LSTM
    assert type(model.lstm) is lstmvid.LSTM


def test_an_optimiser_made_before_goes_on(model, tokens):
    twin = copy.deepcopy(model)
    losses = []
    for candidate, swap in ((model, lambda m: m), (twin, lstmvid.accelerate)):
        optimizer = torch.optim.Adam(candidate.parameters(), lr=0.01)
        swap(candidate)
        losses.append([])
        for _ in range(5):
            losses[-1].append(gradients(candidate, tokens)[0])
            optimizer.step()
    torch.testing.assert_close(losses[1], losses[0])
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("wrong", [{"backend": "fast"}, {"module": 3}])
def test_wrong_arguments(model, wrong):
    with pytest.raises((ValueError, TypeError), match="must be"):
        lstmvid.accelerate(**({"module": model} | wrong))
    assert type(model.lstm) is nn.LSTM


def test_patched(tokens):
    class Own(nn.LSTM):
        pass

    with lstmvid.patched():
        model = Tagger()
        assert type(IMPORTED_EARLY(5, 7)) is lstmvid.LSTM
        assert type(Own(5, 7)) is Own
        assert type(lstmvid.LSTM(5, 7, peephole=True)) is lstmvid.LSTM
        own = lstmvid.LSTM(5, 7, backend="cpu")
    assert type(model.lstm) is type(model.alias) is lstmvid.LSTM
    assert own.backend == "cpu"
    assert type(nn.LSTM(5, 7)) is nn.LSTM
    assert isinstance(model.lstm, nn.LSTM)
    expected = model(tokens)
    assert type(lstmvid.restore(model).lstm) is nn.LSTM
    torch.testing.assert_close(model(tokens), expected)


def test_patched_draws_the_same_weights():
    torch.manual_seed(3)
    expected = nn.LSTM(5, 7, 2, bidirectional=True)
    torch.manual_seed(3)
    with lstmvid.patched():
        actual = nn.LSTM(5, 7, 2, bidirectional=True)
    assert all(torch.equal(a, b) for a, b in zip(actual.parameters(), expected.parameters(), strict=True))


def test_patched_blocks_nest_and_end_with_an_error():
    constructor = nn.LSTM.__init__

    def fail():
        with lstmvid.patched(backend="torch"):
            assert nn.LSTM(5, 7).backend == "torch"
            raise KeyError

    with lstmvid.patched(backend="reference"):
        with pytest.raises(KeyError):
            fail()
        assert nn.LSTM(5, 7).backend == "reference"
    assert nn.LSTM.__init__ is constructor
    with pytest.raises(ValueError, match="must be one of"), lstmvid.patched(backend="fast"):
        pass


def test_patched_reaches_other_threads():
    built = []
    with lstmvid.patched():
        thread = threading.Thread(target=lambda: built.append(nn.LSTM(5, 7)))
        thread.start()
        thread.join()
    assert type(built[0]) is lstmvid.LSTM
