"""Models built from the original authors' files, against the equations written out once more in float64 numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lstmvid

STEPS, FUTURE, BATCH, FRAME, HIDDEN = 4, 3, 2, 5, 3
ATOL = 1e-12  # float64 on both sides; only the order of sums differs

ACTIVATIONS = {
    "bernoulli": lambda z: 1.0 / (1.0 + np.exp(-z)),
    "gaussian": lambda z: z,
    "rectified": lambda z: np.maximum(z, 0.0),
}


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


class ReferenceStack:
    """Layers of one stack with the parameters as the checkpoint has them: gates i, f, a, o and one bias."""

    def __init__(self, values, layers):
        self.layers = [
            {
                name.split(":")[1]: value.astype(np.float64)
                for name, value in values.items()
                if name.split(":")[0] == layer
            }
            for layer in layers
        ]

    def step(self, frame, states):
        """One step of all layers: `frame` is None or (B, D), `states` a list of (h, c). Returns the new states."""
        new_states = []
        below = frame
        for p, (h, c) in zip(self.layers, states, strict=True):
            z = h @ p["w_dense"].T + p["b"]
            if below is not None:
                z = z + below @ p["w_input"].T
            z_i, z_f, z_a, z_o = np.split(z, 4, axis=1)
            w_i, w_f, w_o = np.split(p["w_diag"], 3, axis=1)
            i, f, a = sigmoid(z_i + w_i * c), sigmoid(z_f + w_f * c), np.tanh(z_a)
            c = f * c + i * a
            h = sigmoid(z_o + w_o * c) * np.tanh(c)
            new_states.append((h, c))
            below = h
        return new_states

    def readout(self, states):
        top = self.layers[-1]
        return states[-1][0] @ top["w_output"].T + top["b_output"]

    def encode(self, frames):
        states = [(np.zeros((BATCH, HIDDEN)), np.zeros((BATCH, HIDDEN))) for _ in self.layers]
        outputs = []
        for frame in frames:
            states = self.step(frame, states)
            outputs.append(states)
        return outputs

    def decode(self, states, steps, previous, copy, act):
        """Frames (steps, B, D). `previous(t, outputs)` is the frame that step t sees, or None."""
        outputs = []
        for t in range(steps):
            if t > 0 or not copy:
                states = self.step(previous(t, outputs) if t > 0 else None, states)
            outputs.append(act(self.readout(states)))
        return np.stack(outputs)


def frame_loss(likelihood, mean, truth):
    """Summed over a frame's values, averaged over frames and batch."""
    if likelihood == "bernoulli":
        values = -(truth * np.log(mean) + (1.0 - truth) * np.log(1.0 - mean))
    else:
        values = 0.5 * (mean - truth) ** 2
    return values.sum(-1).mean()


def close(ours, reference):
    np.testing.assert_allclose(ours.detach().numpy(), reference, rtol=1e-10, atol=ATOL)


MODES = ("unconditional", "conditional", None)
COMBINATIONS = [modes for modes in itertools.product(MODES, MODES) if any(modes)]
LIKELIHOODS = {"bernoulli": {"binary_data": True}, "gaussian": {}, "rectified": {"relu_data": True}}


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("copies", [(), ("reconstruct",), ("predict",), ("reconstruct", "predict")], ids="+".join)
@pytest.mark.parametrize(("reconstruct", "predict"), COMBINATIONS)
def test_composite(files, reconstruct, predict, copies, num_layers):
    likelihood = list(LIKELIHOODS)[(COMBINATIONS.index((reconstruct, predict)) + len(copies) + num_layers) % 3]
    message = files.composite(FRAME, HIDDEN, num_layers, reconstruct, predict, **LIKELIHOODS[likelihood])
    message |= {"decoder_copy_init_state": "reconstruct" in copies, "future_copy_init_state": "predict" in copies}
    values = files.parameters(message)
    model = lstmvid.FusedComposite.from_original(
        files.write_model(message), files.write_checkpoint(values), dtype=torch.float64
    ).eval()

    rng = np.random.default_rng(1)
    frames, targets = rng.uniform(size=(STEPS, BATCH, FRAME)), rng.uniform(size=(FUTURE, BATCH, FRAME))
    act = ACTIVATIONS[likelihood]
    encoder = ReferenceStack(values, [layer["name"] for layer in message["lstm"]])
    states = encoder.encode(frames)[-1]

    out = model(torch.from_numpy(frames), torch.from_numpy(targets) if predict else None)
    for ours, reference in zip(out.state, zip(*states, strict=True), strict=True):
        close(ours, np.stack(reference))
    expected_loss = 0.0
    if reconstruct:
        decoder = ReferenceStack(values, [layer["name"] for layer in message["lstm_dec"]])
        seen = (lambda t, outputs: frames[STEPS - t]) if reconstruct == "conditional" else (lambda t, outputs: None)
        reversed_frames = decoder.decode(states, STEPS, seen, "reconstruct" in copies, act)
        close(out.reconstruction, reversed_frames[::-1])
        close(model.reconstruct(torch.from_numpy(frames)), reversed_frames[::-1])
        loss = frame_loss(likelihood, reversed_frames[::-1], frames)
        close(out.reconstruction_loss, loss)
        expected_loss += loss
    else:
        assert out.reconstruction is out.reconstruction_loss is None
    if predict:
        predictor = ReferenceStack(values, [layer["name"] for layer in message["lstm_future"]])
        forced = (lambda t, outputs: targets[t - 1]) if predict == "conditional" else (lambda t, outputs: None)
        future = predictor.decode(states, FUTURE, forced, "predict" in copies, act)
        close(out.prediction, future)
        loss = frame_loss(likelihood, future, targets)
        close(out.prediction_loss, loss)
        expected_loss += loss
        fed_back = (lambda t, outputs: outputs[-1]) if predict == "conditional" else (lambda t, outputs: None)
        generated = predictor.decode(states, FUTURE + 2, fed_back, "predict" in copies, act)
        close(model(torch.from_numpy(frames), predict_steps=FUTURE + 2).prediction, generated)
        close(model.predict(torch.from_numpy(frames), FUTURE + 2), generated)
    else:
        assert out.prediction is out.prediction_loss is None
    close(out.loss, expected_loss)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_classifier(files, num_layers):
    message = files.classifier(FRAME, HIDDEN, num_layers, classes=4)
    for layer in message["lstm"]:
        layer |= {"input_dropprob": 0.5, "output_dropprob": 0.5}  # without effect outside training
    values = files.parameters(message)
    model = lstmvid.SequenceClassifier.from_original(
        files.write_model(message), files.write_checkpoint(values), dtype=torch.float64
    ).eval()
    frames = np.random.default_rng(1).normal(size=(STEPS, BATCH, FRAME))
    stack = ReferenceStack(values, [layer["name"] for layer in message["lstm"]])
    logits = np.stack([stack.readout(states) for states in stack.encode(frames)])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = np.array([3, 1])
    close(model(torch.from_numpy(frames)), logits)
    close(model.predict_proba(torch.from_numpy(frames)), probabilities.mean(0))
    loss = -np.log(probabilities[:, np.arange(BATCH), labels]).sum(0).mean()
    close(model.loss(torch.from_numpy(frames), torch.from_numpy(labels)), loss)


def test_the_single_bias_and_left_out_blocks_are_frozen(files):
    message = files.composite(FRAME, HIDDEN, 1)
    message["lstm"] = [files.layer("lstm_1_enc", HIDDEN, FRAME, without=("w_diag", "b"))]
    model = lstmvid.FusedComposite.from_original(
        files.write_model(message), files.write_checkpoint(files.parameters(message))
    )
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        *("encoder.bias_ih_l0", "encoder.weight_peephole_l0"),
        *(f"{part}.bias_hh_l0" for part in ("encoder", "reconstructor", "predictor")),
    }
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    model(torch.rand(STEPS, BATCH, FRAME), torch.rand(FUTURE, BATCH, FRAME)).loss.backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
        assert name not in frozen or not parameter.any()


def test_classifier_freezes_its_second_biases(files):
    message = files.classifier(FRAME, HIDDEN, 2)
    model = lstmvid.SequenceClassifier.from_original(
        files.write_model(message), files.write_checkpoint(files.parameters(message))
    )
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.bias_hh_l0", "encoder.bias_hh_l1"}
    assert next(model.parameters()).dtype == torch.float32


def test_without_a_checkpoint_the_values_are_drawn_as_the_text_says(files):
    message = files.composite(64, 64, 1)
    torch.manual_seed(0)
    model = lstmvid.FusedComposite.from_original(files.write_model(message))
    for name, parameter in model.named_parameters():
        bound = 0.01 if "weight" in name else 0.0
        largest = parameter.abs().max().item()
        assert largest <= bound + 1e-9, name
        assert largest >= 0.95 * bound, name


def test_the_other_kind_of_model_is_refused(files):
    with pytest.raises(ValueError, match="has_output: true, expected false"):
        lstmvid.FusedComposite.from_original(files.write_model(files.classifier()))
    with pytest.raises(ValueError, match="so it is a composite model"):
        lstmvid.SequenceClassifier.from_original(files.write_model(files.composite()))
