"""`FusedComposite`: every combination, its equations' consequences, its gradients, and its errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import lstmvid
from lstmvid import FusedComposite

MODES = ("unconditional", "conditional", None)


def _copies(reconstruct, predict):
    names = [name for name, mode in (("reconstruct", reconstruct), ("predict", predict)) if mode]
    return [subset for size in range(len(names) + 1) for subset in itertools.combinations(names, size)]


COMBINATIONS = [
    (reconstruct, predict, copy) for reconstruct in MODES for predict in MODES for copy in _copies(reconstruct, predict)
]


def _model(**options):
    torch.manual_seed(2)
    model = FusedComposite(**{"frame_shape": (1, 3, 4), "hidden_size": 6, "num_layers": 2} | options)
    for name, weight in model.named_parameters():
        if "peephole" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def _plain(model, frames, targets, feedback_truth=True):
    """The composite step by step, cell by cell, as MODEL's equations read; losses in float64."""
    x, v = frames.flatten(2), targets.flatten(2)
    copies = model.copy_state

    def step(stack, frame, state):
        h, c = [list(s) for s in state]
        for layer, w in enumerate(stack.layer_weights()):
            z = h[layer] @ w.weight_hh.t() + w.bias_ih + w.bias_hh
            if frame is not None and w.weight_ih is not None:
                z = z + frame @ w.weight_ih.t()
            i, f, g, o = z.chunk(4, -1)
            p_i, p_f, p_o = w.peephole.chunk(3)
            i, f = torch.sigmoid(i + p_i * c[layer]), torch.sigmoid(f + p_f * c[layer])
            c[layer] = f * c[layer] + i * torch.tanh(g)
            h[layer] = torch.sigmoid(o + p_o * c[layer]) * torch.tanh(c[layer])
            frame = h[layer]
        return torch.stack(h), torch.stack(c)

    state = model.encoder.zero_state(x.size(1))
    for frame in x:
        state = step(model.encoder, frame, state)

    def decode(stack, head, truth, conditional, name):
        s, previous, outputs = state, torch.zeros_like(truth[0]), []
        for t in range(len(truth)):
            if t or name not in copies:
                s = step(stack, previous if conditional else None, s)
            outputs.append(head(s[0][-1]))
            previous = truth[t] if feedback_truth or name == "reconstruct" else model.likelihood.mean(outputs[-1])
        return torch.stack(outputs)

    losses = []
    if model.reconstructor is not None:
        mode = model.reconstruct_mode == "conditional"
        z = decode(model.reconstructor, model.reconstruction_head, x.flip(0), mode, "reconstruct")
        losses.append((z, x.flip(0)))
    if model.predictor is not None:
        z = decode(model.predictor, model.prediction_head, v, model.predict_mode == "conditional", "predict")
        losses.append((z, v))
    kind = model.config["likelihood"]

    def loss(z, target):
        if kind == "bernoulli":
            total = F.binary_cross_entropy(torch.sigmoid(z), target, reduction="sum")
        else:
            total = 0.5 * ((F.relu(z) if kind == "rectified" else z) - target).square().sum()
        return total / (z.size(0) * z.size(1))

    return [loss(z, target) for z, target in losses]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "rectified"])
@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
@pytest.mark.parametrize(("num_layers", "future"), [(1, 4), (2, 3), (2, 4)])
def test_losses_and_gradients(combination, likelihood, num_layers, future):
    """Every combination against the equations written out, teacher-forced and free-running.

    With as many frames to predict as to reconstruct, two decoders of one kind take a single call.
    """
    reconstruct, predict, copy = combination
    model = _model(
        num_layers=num_layers,
        reconstruct=reconstruct,
        predict=predict,
        copy_state=copy,
        likelihood=likelihood,
        dtype=torch.float64,
    )
    frames, targets = torch.rand(4, 2, 1, 3, 4).double(), torch.rand(future, 2, 1, 3, 4).double()
    if reconstruct is None and predict is None:
        assert model(frames).loss is None
        return
    for feedback in (0.0, 1.0) if predict == "conditional" else (0.0,):
        out = model(frames, targets, feedback=feedback) if predict else model(frames)
        expected = _plain(model, frames, targets, feedback_truth=feedback == 0)
        actual = [loss for loss in (out.reconstruction_loss, out.prediction_loss) if loss is not None]
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(out.loss, sum(expected))
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(out.loss, parameters.values(), allow_unused=True)
        plain = torch.autograd.grad(sum(expected), parameters.values(), allow_unused=True)
        for name, a, b in zip(parameters, gradients, plain, strict=True):
            zeros = torch.zeros_like(parameters[name])
            a, b = zeros if a is None else a, zeros if b is None else b
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_shapes_and_outputs():
    model = _model(predict="conditional")
    frames, targets = torch.rand(4, 2, 1, 3, 4), torch.rand(3, 2, 1, 3, 4)
    out = model(frames, targets)
    assert out.reconstruction.shape == frames.shape
    assert out.prediction.shape == targets.shape
    assert out.state[0].shape == out.state[1].shape == (2, 2, 6)
    assert out.reconstruction.min() > 0
    assert out.reconstruction.max() < 1
    generated = model(frames, predict_steps=9)
    assert generated.prediction.shape == (9, 2, 1, 3, 4)
    assert generated.prediction_loss is None
    assert torch.equal(generated.loss, generated.reconstruction_loss)
    torch.testing.assert_close(model.predict(frames, 9), generated.prediction.detach())
    torch.testing.assert_close(model.reconstruct(frames), out.reconstruction.detach())
    for a, b in zip(model.encode(frames), out.state, strict=True):
        torch.testing.assert_close(a, b)
    assert not model.predict(frames, 2).requires_grad
    only = model(frames)
    assert only.prediction is None


def test_unconditional_decoders_have_no_input_weights():
    model = _model(reconstruct="unconditional", predict="conditional")
    assert "weight_ih_l0" not in dict(model.reconstructor.named_parameters())
    assert model.reconstructor.weight_ih_l1.shape == (24, 6)
    assert model.predictor.weight_ih_l0.shape == (24, 12)
    assert not any(isinstance(module, torch.nn.LSTM) for module in model.modules())


def test_reconstruction_is_decoded_in_reverse():
    """The last input frame is the decoder's first: only it is free of what the decoder saw of the others."""
    model = _model(reconstruct="conditional", predict=None)
    frames = torch.rand(5, 2, 1, 3, 4)
    state = model.encode(frames)
    changed = frames.clone()
    changed[2] = torch.rand_like(changed[2])

    def decode(x):  # the decoder alone, from one state
        return model._decode(state, x.flatten(2), 0, None, 0.0)[0]

    differs = (decode(changed) - decode(frames)).abs().amax((1, 2)) > 0
    assert differs.tolist() == [True, True, False, False, False]


class Groups(TorchDispatchMode):
    """Keeps the number of groups of each call of `lstm_sequence`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.lstmvid.lstm_sequence.default:
            self.seen.append(args[1].size(0))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("options", "future", "groups"),
    [
        ({"reconstruct": "unconditional", "predict": "unconditional"}, 4, [1, 2]),
        ({"reconstruct": "conditional", "predict": "conditional"}, 4, [1, 2]),
        ({"reconstruct": "conditional", "predict": "conditional", "copy_state": ("reconstruct",)}, 3, [1, 1, 1]),
        ({"reconstruct": "unconditional", "predict": "unconditional", "copy_state": ("reconstruct",)}, 3, [1, 2]),
        ({"reconstruct": "unconditional", "predict": "unconditional", "copy_state": ("predict",)}, 4, [1, 1, 1]),
        ({"reconstruct": "unconditional", "predict": "unconditional"}, 3, [1, 1, 1]),
        ({"reconstruct": "unconditional", "predict": "conditional"}, 4, [1, 1, 1]),
        ({"reconstruct": None, "predict": "conditional"}, 4, [1, 1]),
    ],
)
def test_decoders_that_are_alike_take_one_call(options, future, groups):
    model = _model(**options, backend="reference")
    with Groups() as calls:
        model(torch.rand(4, 2, 1, 3, 4), torch.rand(future, 2, 1, 3, 4))
    assert calls.seen == groups


class Operators(TorchDispatchMode):
    """Keeps the names of our operators in the order of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lstmvid":
            self.seen.append(function._schema.name.partition("::")[2])
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("copy_state", [(), ("predict",)])
def test_a_linear_predictor_of_one_layer_is_folded(copy_state):
    """Into a recurrence without input, after its first step."""
    options = {"predict": "conditional", "likelihood": "gaussian", "copy_state": copy_state, "backend": "reference"}
    model = _model(num_layers=1, **options)
    with Operators() as calls:
        model.predict(torch.rand(4, 2, 1, 3, 4), 50)
    assert calls.seen == ["lstm_sequence"] * (2 if copy_state else 3)  # the encoder, the first step, the others


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "rectified"])
@pytest.mark.parametrize("copy_state", [(), ("predict",)])
@pytest.mark.parametrize("feedback", [1.0, 0.5])
def test_the_closed_loop_is_one_call(likelihood, copy_state, feedback):
    """Forward and backward, and the same as step by step."""
    options = {"predict": "conditional", "likelihood": likelihood, "copy_state": copy_state, "dtype": torch.float64}
    model, by_steps = (_model(backend=backend, peephole=False, **options) for backend in ("cpu", "torch"))
    frames, targets = torch.rand(4, 3, 1, 3, 4).double(), torch.rand(5, 3, 1, 3, 4).double()
    with Operators() as calls:
        torch.manual_seed(1)
        out = model(frames, targets, feedback=feedback)
        gradients = torch.autograd.grad(out.loss, list(model.parameters()))
    assert calls.seen.count("closed_loop") == calls.seen.count("closed_loop_bwd") == 1
    assert calls.seen.count("lstm_sequence") == 2
    torch.manual_seed(1)
    expected = by_steps(frames, targets, feedback=feedback)
    torch.testing.assert_close(out.prediction, expected.prediction)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected.loss, list(by_steps.parameters())), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_a_closed_loop_with_dropout_draws_at_every_step():
    model = _model(predict="conditional", reconstruct=None, dropout=0.5)
    frames = torch.rand(4, 64, 1, 3, 4)
    model.train()
    with Operators() as calls:
        model(frames, predict_steps=3)
    assert "closed_loop" not in calls.seen
    model.eval()
    with Operators() as calls:
        model(frames, predict_steps=3)
    assert calls.seen == ["lstm_sequence", "closed_loop"]


@pytest.mark.parametrize("copy_state", [(), ("predict",)])
@pytest.mark.parametrize("steps", [1, 2])
def test_short_closed_loops(copy_state, steps):
    model = _model(predict="conditional", reconstruct=None, copy_state=copy_state, dtype=torch.float64)
    frames, targets = torch.rand(2, 3, 1, 3, 4).double(), torch.rand(steps, 3, 1, 3, 4).double()
    free, forced = model(frames, predict_steps=steps), model(frames, targets)
    torch.testing.assert_close(free.prediction[0], forced.prediction[0])
    assert model(frames, targets, feedback=0.5).prediction.shape == (steps, 3, 1, 3, 4)


def test_batch_first_and_uint8():
    model = _model(predict="conditional")
    first = _model(predict="conditional", batch_first=True)
    frames = torch.randint(0, 256, (7, 2, 1, 3, 4), dtype=torch.uint8)
    expected = model(frames[:4].float() / 255, frames[4:].float() / 255)
    out = first(frames[:4].transpose(0, 1), frames[4:].transpose(0, 1))
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.reconstruction.transpose(0, 1), expected.reconstruction)
    torch.testing.assert_close(out.prediction.transpose(0, 1), expected.prediction)
    assert out.state[0].shape == (2, 2, 6)


def test_feature_vectors():
    model = FusedComposite(11, 6, 1, likelihood="rectified")
    assert model(torch.rand(4, 2, 11), torch.rand(3, 2, 11)).prediction.shape == (3, 2, 11)


def test_parameter_count_of_the_paper():
    """142,667,776 parameters: 2-layer unconditional future predictor, 64x64 frames, one bias a gate."""
    model = FusedComposite((1, 64, 64), 2048, 2, reconstruct=None, predict="unconditional", device="meta")
    second_bias = sum(p.numel() for name, p in model.named_parameters() if "bias_hh" in name)
    assert sum(p.numel() for p in model.parameters()) - second_bias == 142_667_776


def test_overfits_one_batch():
    """A 2-layer conditional composite learns one batch by heart: nearly all of the loss above its entropy is gone."""
    model = FusedComposite((1, 6, 6), 64, 2, reconstruct="conditional", predict="conditional")
    frames = (torch.rand(10, 4, 1, 6, 6) > 0.5).to(torch.uint8) * 255
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(frames[:5], frames[5:]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 45  # two decoders at 36 ln 2 = 25 nats a frame
    assert losses[-1] < 0.5


def test_scheduled_sampling():
    model = _model(predict="conditional", reconstruct=None)
    frames, targets = torch.rand(4, 64, 1, 3, 4), torch.rand(5, 64, 1, 3, 4)
    forced, free = model(frames, targets), model(frames, targets, feedback=1.0)
    torch.manual_seed(1)
    mixed = model(frames, targets, feedback=0.5).prediction
    torch.manual_seed(1)
    assert torch.equal(model(frames, targets, feedback=0.5).prediction, mixed)
    # At the second step a sample saw either the truth or its own output, and some saw each.
    as_forced = torch.isclose(mixed[1], forced.prediction[1]).flatten(1).all(1)
    as_free = torch.isclose(mixed[1], free.prediction[1]).flatten(1).all(1)
    assert torch.equal(as_forced, ~as_free)
    assert 10 < as_forced.sum() < 54
    torch.testing.assert_close(free.prediction, model(frames, predict_steps=5).prediction)


@pytest.mark.parametrize("copy_state", [(), ("predict",)])
def test_original_encoder_gradient(copy_state):
    """The reconstruction's gradient is lost through c, and through h too where the predictor copies the state."""
    options = {"copy_state": copy_state, "predict": "conditional", "dtype": torch.float64}
    true, original = _model(**options), _model(original_encoder_gradient=True, **options)
    frames, targets = torch.rand(4, 2, 1, 3, 4).double(), torch.rand(3, 2, 1, 3, 4).double()
    torch.testing.assert_close(true(frames, targets).loss, original(frames, targets).loss)
    x = frames.flatten(2)
    state = true._encode(x)
    h, c = (s.detach().requires_grad_() for s in state)
    z_reconstruction, z_prediction = true._decode((h, c), x, 3, targets.flatten(2), 0.0)
    reconstruction = true.likelihood.loss(z_reconstruction, x)
    prediction = true.likelihood.loss(z_prediction, targets.flatten(2))
    (grad_h,) = torch.autograd.grad(reconstruction, h)
    seeds = list(torch.autograd.grad(prediction, (h, c)))
    if not copy_state:
        seeds[0] = seeds[0] + grad_h
    expected = torch.autograd.grad(state, list(true.encoder.parameters()), seeds)
    actual = torch.autograd.grad(original(frames, targets).loss, list(original.encoder.parameters()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    unlike = torch.autograd.grad(true(frames, targets).loss, list(true.encoder.parameters()))
    assert not torch.allclose(unlike[0], actual[0])


@pytest.mark.parametrize("peephole", [False, True])
def test_backends_agree(peephole):
    results = {}
    for backend in ("reference", "cpu", "torch"):
        if peephole and backend == "torch":
            continue
        torch.manual_seed(0)
        model = FusedComposite((1, 3, 4), 6, 2, peephole=peephole, backend=backend)
        loss = model(*torch.rand(2, 4, 3, 1, 3, 4).unbind(0)).loss
        results[backend] = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
        torch.manual_seed(0)
    for result in results.values():
        for a, b in zip(result, results["reference"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if peephole:
        with pytest.raises(lstmvid.BackendUnavailable, match="no peepholes"):
            FusedComposite((1, 3, 4), 6, backend="torch")(torch.rand(4, 3, 1, 3, 4))


def test_config_builds_the_model_again():
    model = _model(copy_state=("predict",), predict="conditional", dropout=0.25, likelihood="gaussian")
    twin = FusedComposite(**model.config)
    twin.load_state_dict(model.state_dict())
    frames = torch.rand(4, 2, 1, 3, 4)
    assert torch.equal(twin.eval().predict(frames, 3), model.eval().predict(frames, 3))


def test_dropout_between_layers_in_training_only():
    model = _model(dropout=0.5)
    frames = torch.rand(4, 2, 1, 3, 4)
    assert not torch.equal(model.encode(frames)[0][1], model.encode(frames)[0][1])
    assert torch.equal(model.encode(frames)[0][0], model.encode(frames)[0][0])  # the lowest layer sees none
    model.eval()
    assert torch.equal(model.encode(frames)[0], model.encode(frames)[0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: m(x[..., :3]), ValueError, "frames must have shape"),
        (lambda m, x: m(x[0]), ValueError, "frames must have shape"),
        (lambda m, x: m(x[:0]), ValueError, "empty sequence"),
        (lambda m, x: m(x.double()), TypeError, "uint8 or the model's torch.float32"),
        (lambda m, x: m(x.long()), TypeError, "uint8 or the model's torch.float32"),
        (lambda m, x: m(x, x[:, :1]), ValueError, "targets hold 1 sequences"),
        (lambda m, x: m(x, x[..., :3]), ValueError, "targets must have shape"),
        (lambda m, x: m(x, predict_steps=0), ValueError, "at least 1"),
        (lambda m, x: m(x, x, predict_steps=3), ValueError, "predict_steps is 3"),
        (lambda m, x: m(x, x, feedback=1.5), ValueError, "feedback"),
        (lambda m, x: m(x, x, feedback=float("nan")), ValueError, "feedback"),
        (lambda m, x: m.predict(x, None), ValueError, "steps"),
        (lambda m, x: _model(predict=None)(x, x), ValueError, "no"),
        (lambda m, x: _model(reconstruct=None).reconstruct(x), ValueError, "no reconstruction decoder"),
    ],
)
def test_wrong_calls(call, error, words):
    with pytest.raises(error, match=words):
        call(_model(predict="conditional"), torch.rand(4, 2, 1, 3, 4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frame_shape": (1, 0, 4)}, "frame_shape"),
        ({"frame_shape": ()}, "frame_shape"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_layers": 1.5}, "num_layers"),
        ({"reconstruct": "yes"}, "reconstruct"),
        ({"predict": "sometimes"}, "predict"),
        ({"likelihood": "poisson"}, "likelihood"),
        ({"dropout": float("nan")}, "dropout"),
        ({"predict": None, "copy_state": ("predict",)}, "copy_state"),
        ({"copy_state": ("future",)}, "copy_state"),
        ({"backend": "fast"}, "backend"),
        ({"recompute": "maybe"}, "recompute"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=words):
        FusedComposite(**{"frame_shape": (1, 3, 4), "hidden_size": 6} | options)


@pytest.mark.parametrize("predict", ["conditional", "unconditional"])
def test_compiles_as_one_graph(predict):
    """`fullgraph=True`: forward and backward of the whole model, for more than one batch size."""
    model = _model(predict=predict)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5):
        frames, targets = torch.rand(4, batch, 1, 3, 4), torch.rand(3, batch, 1, 3, 4)
        expected, actual = model(frames, targets).loss, compiled(frames, targets).loss
        torch.testing.assert_close(actual, expected)
        for a, b in zip(
            torch.autograd.grad(actual, list(model.parameters())),
            torch.autograd.grad(expected, list(model.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compiles_with_inductor():
    model = _model(predict="conditional")
    frames, targets = torch.rand(4, 2, 1, 3, 4), torch.rand(3, 2, 1, 3, 4)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(frames, targets).loss, model(frames, targets).loss)


def test_exports():
    model = _model(predict="conditional")
    frames = torch.rand(4, 2, 1, 3, 4)
    program = torch.export.export(model, (frames, frames))
    torch.testing.assert_close(program.module()(frames, frames).loss, model(frames, frames).loss)
