"""Models built from the original authors' files, against the equations written out once more in float64 numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lstmvid
from lstmvid.training import OriginalSGD, summed_loss

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


# ---- Going on with the original optimiser ----


class ReferenceOptimiser:
    """The released update in float64, its gradients by central differences of a loss summed over frames and batch."""

    def __init__(self, message, values, velocities, loss):
        layers = [layer for field in ("lstm", "lstm_dec", "lstm_future") for layer in message.get(field, [])]
        self.blocks = {f"{layer['name']}:{name}": layer.get(name) for layer in layers for name in BLOCKS}
        self.values = {name: value.astype(np.float64) for name, value in values.items()}
        self.velocities = {name: value.astype(np.float64) for name, value in velocities.items()}
        self.loss = loss

    def gradient(self, name, step=1e-5):
        value = self.values[name]
        gradient = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            middle = value[index]
            value[index] = middle + step
            above = self.loss(self.values)
            value[index] = middle - step
            gradient[index] = (above - self.loss(self.values)) / (2 * step)
            value[index] = middle
        return gradient

    def update(self):
        gradients = {name: self.gradient(name) for name in self.values}
        for name, value in self.values.items():
            if self.blocks[name] is None:
                continue
            number = {setting: float(np.float32(self.blocks[name].get(setting, 0.0))) for setting in SETTINGS}
            velocity = number["momentum"] * self.velocities[name]
            velocity -= number["epsilon"] * (gradients[name] + number["l2_decay"] * value)
            if number["gradient_clip"] > 0:
                velocity = np.clip(velocity, -number["gradient_clip"], number["gradient_clip"])
            self.velocities[name] = velocity
            value += velocity


BLOCKS = ("w_dense", "w_diag", "b", "w_input", "w_output", "b_output")
SETTINGS = ("epsilon", "momentum", "l2_decay", "gradient_clip")


def train_like_the_originals(files, message):
    """Settings that differ between blocks, so that none can be mistaken for another's; velocities to begin with."""
    for layer in (layer for field in ("lstm", "lstm_dec", "lstm_future") for layer in message.get(field, [])):
        for number, name in enumerate(name for name in BLOCKS if name in layer):
            clip = (0.02, 0.0, 0.5)[number % 3]  # 0 is no bound to them
            layer[name] = {"epsilon": 0.01 * (1 + number), "momentum": 0.9 - 0.1 * number, "gradient_clip": clip}
            layer[name] |= {} if name.startswith("b") else {"l2_decay": 0.03}
    values = files.parameters(message)
    rng = np.random.default_rng(5)
    velocities = {name: rng.uniform(-0.02, 0.02, value.shape).astype(np.float32) for name, value in values.items()}
    pbtxt = files.write_model(message)
    return pbtxt, files.write_checkpoint(values, velocities=velocities, updates=41), values, velocities


def check_against(reference, model, names):
    for ours, theirs in names.items():
        parameter = model.get_parameter(ours).detach().numpy()
        np.testing.assert_allclose(
            parameter, reference.values[theirs].reshape(parameter.shape), rtol=0, atol=2e-8, err_msg=theirs
        )


def test_training_goes_on_as_in_the_released_code(files):
    message = files.composite(FRAME, HIDDEN, 1, None, "conditional", binary_data=True)
    del message["lstm"][0]["w_diag"]  # a block that is left out is not trained, whatever its stored velocity
    pbtxt, h5, values, velocities = train_like_the_originals(files, message)
    rng = np.random.default_rng(1)
    frames, targets = rng.uniform(size=(STEPS, BATCH, FRAME)), rng.uniform(size=(FUTURE, BATCH, FRAME))

    def loss(values):
        states = ReferenceStack(values, ["lstm_1_enc"]).encode(frames)[-1]
        seen = lambda t, outputs: targets[t - 1]  # noqa: E731
        future = ReferenceStack(values, ["lstm_1_fut"]).decode(states, FUTURE, seen, False, ACTIVATIONS["bernoulli"])
        return frame_loss("bernoulli", future, targets) * FUTURE * BATCH

    model = lstmvid.FusedComposite.from_original(pbtxt, h5, dtype=torch.float64, batch_first=True)
    optimizer = OriginalSGD.from_original(model, pbtxt, h5)
    assert {state["updates"] for state in optimizer.state.values()} == {41}
    reference = ReferenceOptimiser(message, values, velocities, loss)
    names = {"weight_ih_l0": "w_input", "weight_hh_l0": "w_dense", "bias_ih_l0": "b", "weight_peephole_l0": "w_diag"}
    names = {
        f"{part}.{ours}": f"lstm_1_{short}:{theirs}"
        for part, short in (("encoder", "enc"), ("predictor", "fut"))
        for ours, theirs in names.items()
    } | {"prediction_head.weight": "lstm_1_fut:w_output", "prediction_head.bias": "lstm_1_fut:b_output"}
    check_against(reference, model, names)
    for _ in range(3):
        reference.update()
        optimizer.zero_grad()
        batch = (torch.from_numpy(x).transpose(0, 1) for x in (frames, targets))
        summed_loss(model(*batch)).backward()
        optimizer.step()
        check_against(reference, model, names)
    assert not model.encoder.weight_peephole_l0.any()
    assert not model.predictor.bias_hh_l0.any()
    assert {state["updates"] for state in optimizer.state.values()} == {44}


def test_a_classifier_goes_on_as_in_the_released_code(files):
    message = files.classifier(FRAME, HIDDEN, 1, classes=3)
    pbtxt, h5, values, velocities = train_like_the_originals(files, message)
    frames, labels = np.random.default_rng(1).normal(size=(STEPS, BATCH, FRAME)), np.array([2, 0])

    def loss(values):
        stack = ReferenceStack(values, ["lstm_1_cls"])
        logits = np.stack([stack.readout(states) for states in stack.encode(frames)])
        right = np.exp(logits)[:, np.arange(BATCH), labels] / np.exp(logits).sum(-1)
        return -np.log(right).sum()

    model = lstmvid.SequenceClassifier.from_original(pbtxt, h5, dtype=torch.float64)
    optimizer = OriginalSGD.from_original(model, pbtxt, h5)
    reference = ReferenceOptimiser(message, values, velocities, loss)
    for _ in range(2):
        reference.update()
        optimizer.zero_grad()
        (model.loss(torch.from_numpy(frames), torch.from_numpy(labels)) * len(labels)).backward()
        optimizer.step()
        names = {"encoder.weight_ih_l0": "lstm_1_cls:w_input", "head.bias": "lstm_1_cls:b_output"}
        check_against(reference, model, names)


def test_the_optimiser_goes_on_from_its_own_state(files):
    """Stopped after two updates and loaded again, by way of `state_dict`, it is the one that never stopped."""
    pbtxt, h5, _, _ = train_like_the_originals(files, files.composite(FRAME, HIDDEN, 2))
    x, y = torch.rand(STEPS, BATCH, FRAME), torch.rand(FUTURE, BATCH, FRAME)

    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            summed_loss(model(x, y)).backward()
            optimizer.step()

    whole = lstmvid.FusedComposite.from_original(pbtxt, h5)
    steps(whole, OriginalSGD.from_original(whole, pbtxt, h5), 4)
    first = lstmvid.FusedComposite.from_original(pbtxt, h5)
    optimizer = OriginalSGD.from_original(first, pbtxt, h5)
    steps(first, optimizer, 2)
    second = lstmvid.FusedComposite.from_original(pbtxt)
    second.load_state_dict(first.state_dict())
    resumed = OriginalSGD.from_original(second, pbtxt)
    resumed.load_state_dict(optimizer.state_dict())
    steps(second, resumed, 2)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name


def test_velocities_are_read_as_they_stand(files):
    message = files.composite(FRAME, HIDDEN, 1, None, "unconditional")
    pbtxt, h5, _, velocities = train_like_the_originals(files, message)
    model = lstmvid.FusedComposite.from_original(pbtxt, h5, dtype=torch.float16)
    optimizer = OriginalSGD.from_original(model, pbtxt, h5)
    state = optimizer.state[model.encoder.weight_hh_l0]["velocity"]
    assert state.dtype == torch.float16
    np.testing.assert_array_equal(state.numpy(), velocities["lstm_1_enc:w_dense"].astype(np.float16))
    assert OriginalSGD.from_original(model, pbtxt).state == {}


def test_faults_of_velocities_and_models_are_named(files):
    message = files.composite(FRAME, HIDDEN, 1)
    pbtxt, h5, values, velocities = train_like_the_originals(files, message)
    model = lstmvid.FusedComposite.from_original(pbtxt, h5)
    other = lstmvid.FusedComposite(FRAME, HIDDEN, 1, predict=None)
    with pytest.raises(
        ValueError, match=r"not the one that .*model\.pbtxt describes: only one of them has prediction_head"
    ):
        OriginalSGD.from_original(other, pbtxt)
    larger = lstmvid.FusedComposite(FRAME, HIDDEN + 1, 1)
    with pytest.raises(ValueError, match=r"encoder\.weight_ih_l0 of shape \(16, 5\), .*model\.pbtxt of \(12, 5\)"):
        OriginalSGD.from_original(larger, pbtxt, h5)
    files.write_checkpoint(values, velocities=velocities | {"lstm_1_enc:b": np.full((1, 12), np.nan, np.float32)})
    with pytest.raises(ValueError, match=r"model\.h5: dataset 'lstm_1_enc:b_grad' holds values that are not finite"):
        OriginalSGD.from_original(model, pbtxt, h5)
    files.write_checkpoint(values, velocities=velocities | {"lstm_1_enc:b": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"dataset 'lstm_1_enc:b_grad' is \(2, 2\) of float32, expected \(1, 12\)"):
        OriginalSGD.from_original(model, pbtxt, h5)
    files.write_checkpoint(values, velocities=velocities, updates=-1)
    with pytest.raises(ValueError, match=r"model\.h5: attribute '.*_t' is .*-1.*, expected a number of updates"):
        OriginalSGD.from_original(model, pbtxt, h5)
    with pytest.raises(ValueError, match="out has no loss"):
        summed_loss(lstmvid.FusedComposite(FRAME, HIDDEN, 1, reconstruct=None)(torch.rand(2, 1, FRAME)))


def test_frames_may_be_images(files):
    message = files.composite(12, HIDDEN, 1)
    pbtxt, h5 = files.write_model(message), files.write_checkpoint(files.parameters(message))
    flat = lstmvid.FusedComposite.from_original(pbtxt, h5)
    images = lstmvid.FusedComposite.from_original(pbtxt, h5, frame_shape=(1, 3, 4))
    x = torch.rand(STEPS, BATCH, 1, 3, 4)
    assert torch.equal(images.predict(x, 2).flatten(2), flat.predict(x.flatten(2), 2))
    with pytest.raises(ValueError, match=r"frame_shape is \(1, 4, 4\), but .*model\.pbtxt has 12 values a frame"):
        lstmvid.FusedComposite.from_original(pbtxt, h5, frame_shape=(1, 4, 4))
