"""A video on its way from host memory: with copies that come late, and the faults that these uncover."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import lstmvid
from lstmvid.backends import streaming
from lstmvid.backends.frames import Frames
from lstmvid.backends.layers import Weights
from lstmvid.backends.streaming import input_weight_gradient, project_into, readers
from lstmvid.backends.windows import windows
from lstmvid.nn import likelihoods
from lstmvid.ops import LayerWeights, lstm_sequence

pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Video(NamedTuple):
    """How frames are given to `steps` steps."""

    steps: int = 23
    is_blind: bool = False
    reverse: bool = False
    dtype: torch.dtype = torch.uint8
    operand: torch.dtype = torch.float32
    batch_first: bool = False
    window: int = 7
    piece_steps: int = 3

    def frames(self) -> Tensor:
        shape = (self.steps - self.is_blind, 2, 5)
        shape = (shape[1], shape[0], shape[2]) if self.batch_first else shape
        drawn = torch.randint(0, 256, shape, dtype=torch.uint8)
        drawn = drawn if self.dtype == torch.uint8 else (drawn / 255).to(self.dtype)
        return drawn.transpose(0, 1) if self.batch_first else drawn


VIDEOS = {
    "bytes": Video(),
    "floats": Video(dtype=torch.float32),
    "floats of more bits": Video(dtype=torch.float32, operand=torch.bfloat16),
    "bytes to 16 bits": Video(operand=torch.float16, window=23),
    "blind": Video(is_blind=True),
    "blind, backwards": Video(is_blind=True, reverse=True, window=4),
    "backwards, batch first": Video(reverse=True, batch_first=True),
    "floats, blind, batch first": Video(is_blind=True, dtype=torch.float32, batch_first=True, piece_steps=5),
    "a step at a time": Video(window=1, piece_steps=1),
    "pieces longer than windows": Video(window=2, piece_steps=50),
    "one step": Video(steps=1),
    "one blind step": Video(steps=1, is_blind=True),
}


def forward_and_back(video: Video, frames: Tensor, state: torch.dtype = torch.float64) -> list[Tensor]:
    """A projection and its weight's gradient, in windows that go one way and then the other."""
    torch.manual_seed(1)
    weights = Weights(torch.randn(8, 5).to(video.operand), torch.empty(0), torch.randn(8).to(video.operand), None)
    z = torch.empty(video.steps, 2, 8, dtype=video.operand)
    grad_gates = torch.randn(video.steps, 2, 8).to(video.operand)
    parts, total = windows(video.steps, video.window), torch.zeros(8, 5, dtype=state)
    (reader,), lanes = readers([frames], 1, video.steps, [video.reverse], z)
    for part in parts:
        time = part.times(video.steps, video.reverse)
        project_into(z[time], reader, time, weights)
    for part in parts[::-1]:
        time = part.times(video.steps, video.reverse)
        total += input_weight_gradient(grad_gates[time], reader, time, state)
    for lane in lanes:
        lane.finish()
    return [z, total]


def expected(video: Video, frames: Tensor) -> list[Tensor]:
    whole = Frames(frames, video.steps, video.reverse, video.operand).whole()
    return forward_and_back(video._replace(is_blind=False, dtype=video.operand), whole)


def piece_bytes(video: Video) -> int:
    return video.piece_steps * 2 * 5 * video.operand.itemsize


def buffers(device) -> set[int]:
    return {target.untyped_storage().data_ptr() for target, _ in device.copies}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pins", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("name", VIDEOS)
def test_what_arrives_is_what_was_sent(name, pins, seed, stands_for_a_gpu):
    video, frames = VIDEOS[name], VIDEOS[name].frames()
    wanted = expected(video, frames)
    device = stands_for_a_gpu(frames, piece_bytes=piece_bytes(video), pins=pins, seed=seed)
    with device:
        arrived = forward_and_back(video, frames)
        if pins:
            frames.fill_(3)  # it is the caller's again
    tolerance = 1e-5 if video.operand == torch.float32 else 1e-2
    torch.testing.assert_close(arrived, wanted, rtol=tolerance, atol=tolerance)
    assert (len(device.copies) > 0) == (len(frames) > 0)
    assert not device.pending
    assert device.staged <= (0 if pins and frames.is_contiguous() else 4)
    assert max((len(target) for target, _ in device.copies), default=0) <= min(video.piece_steps, video.window)
    assert len(buffers(device)) <= 4  # two, and shorter ones before


@pytest.mark.parametrize("name", ["bytes", "blind", "backwards, batch first"])
def test_bytes_that_lie_here_come_in_the_same_pieces(name, stands_for_a_gpu):
    """So that it changes no bit where a video lies."""
    video, frames = VIDEOS[name], VIDEOS[name].frames()
    stands_for_a_gpu(piece_bytes=piece_bytes(video))
    here = forward_and_back(video, frames)
    with stands_for_a_gpu(frames, piece_bytes=piece_bytes(video)):
        arrived = forward_and_back(video, frames)
    assert all(torch.equal(a, b) for a, b in zip(here, arrived, strict=True))


def test_bytes_become_numbers_a_piece_at_a_time(stands_for_a_gpu, monkeypatch):
    video, frames, seen = VIDEOS["bytes"], VIDEOS["bytes"].frames(), []
    stands_for_a_gpu(piece_bytes=piece_bytes(video))
    convert = streaming.as_operand
    monkeypatch.setattr(streaming, "as_operand", lambda x, dtype: (seen.append(len(x)), convert(x, dtype))[1])
    forward_and_back(video, frames)
    assert set(seen) == {1, 2, 3}
    assert sum(seen) == 2 * video.steps


def test_operands_that_lie_here_are_read_in_place(stands_for_a_gpu):
    """One product over a stretch of time, however long."""
    frames = torch.randn(9, 2, 5)
    stands_for_a_gpu(piece_bytes=1)
    (reader,), lanes = readers([frames], 1, 9, [False], torch.empty(0))
    ((rows, piece),) = reader.pieces(slice(2, 9))
    assert (rows, lanes) == (slice(0, 7), [])
    assert piece.data_ptr() == frames[2].data_ptr()


def test_one_video_for_two_groups_has_one_way_there(stands_for_a_gpu):
    frames = torch.randn(6, 2, 5)
    device = stands_for_a_gpu(frames, piece_bytes=40)
    with device:
        both, lanes = readers([frames], 2, 6, [False, True], torch.empty(0))
        for reader in both:
            arrived = torch.cat([piece.clone() for _, piece in reader.pieces(slice(0, 6))])
            assert torch.equal(arrived, frames)
    assert len(lanes) == 1
    assert len(buffers(device)) == 2


# What somebody forgets, whether memory is pinned, and the words with which it is noticed.
FAULTS = {
    "computations don't wait for copies": ("compute_after", None, False, "wrong numbers"),
    "copies don't wait for computations": ("mark", 0, False, "a computation may still read"),
    "the host writes pinned memory too early": ("wait", None, False, "a copy may still read"),
    "the caller has his memory back too early": ("wait", None, True, "a copy may still read"),
}


def notices(device, video: Video, frames: Tensor) -> str:
    """What is wrong: the words of an assertion, or that numbers are."""
    wanted = expected(video, frames)
    try:
        with device:
            arrived = forward_and_back(video, frames)
            frames.fill_(3)
    except AssertionError as error:
        return str(error)
    return "nothing" if torch.allclose(arrived[0], wanted[0], atol=1e-5) else "wrong numbers"


def test_nothing_is_noticed_where_nothing_is_wrong(stands_for_a_gpu):
    video, frames = VIDEOS["bytes"], VIDEOS["bytes"].frames()
    assert notices(stands_for_a_gpu(frames, piece_bytes=piece_bytes(video), pins=True), video, frames) == "nothing"


@pytest.mark.parametrize("name", FAULTS)
def test_whoever_does_not_wait_is_found_out(name, stands_for_a_gpu, monkeypatch):
    forgotten, result, pins, words = FAULTS[name]
    video, frames = VIDEOS["bytes"], VIDEOS["bytes"].frames()
    device = stands_for_a_gpu(frames, piece_bytes=piece_bytes(video), pins=pins)
    monkeypatch.setattr(device, forgotten, lambda *_: result)
    assert words in notices(device, video, frames)


@pytest.mark.parametrize(("step", "pins"), [("release", False), ("finish", True)])
def test_a_step_left_out_is_found_out(step, pins, stands_for_a_gpu, monkeypatch):
    """Of the module itself: when a buffer is free again, and when the caller's memory is."""
    video, frames = VIDEOS["bytes"], VIDEOS["bytes"].frames()
    device = stands_for_a_gpu(frames, piece_bytes=piece_bytes(video), pins=pins)
    monkeypatch.setattr(streaming._Lane, step, lambda *_: None)
    assert "may still read" in notices(device, video, frames)


# ---- The operators and the models, on tensors that are on a GPU by name only ----


@pytest.fixture
def nowhere():
    """Tensors of any device, without memory."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def weights_on_a_gpu() -> list[Tensor]:
    return [torch.empty(size, device="cuda") for size in ((28, 5), (28, 7), (28,), (28,))]


@pytest.mark.parametrize("backend", ["cuda", "triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_results_are_where_the_weights_are(backend, dtype, nowhere):
    """Of the operator, forward and backward, whoever runs it: nothing asks the frames for a place."""
    # Autograd itself can't be asked: it looks for the device's streams, which are nowhere.
    frames, state, weights = torch.empty(6, 3, 5).to(dtype), torch.empty(1, 1, 3, 7, device="cuda"), weights_on_a_gpu()
    given = ([frames], state, state, weights[:3], None)
    options = (6, True, False, [False], True, False, False, 256, backend)
    output, h_n, c_n, *kept = torch.ops.lstmvid.lstm_sequence(*given, *options)
    assert (output.device.type, h_n.device.type, output.shape) == ("cuda", "cuda", (1, 6, 3, 7))
    options = (6, True, False, [False], False, False, 256, False, True, backend)
    gradients = torch.ops.lstmvid.lstm_sequence_bwd(output, h_n, c_n, None, *given, output, *kept, *options)
    assert [g.device.type for g in gradients] == ["cuda"] * 5
    assert [g.shape for g in gradients] == [tensor.shape for tensor in (state, state, *weights[:3])]


@pytest.mark.parametrize("options", [{}, {"reconstruct": "conditional", "batch_first": True}])
def test_a_model_takes_a_video_in_host_memory(options, monkeypatch):
    """Nothing in it mixes devices; the model's is "meta" here, which has no backend that streams."""
    monkeypatch.setattr(streaming, "is_elsewhere", lambda given, device: not given.is_meta and device.type == "meta")
    model = lstmvid.FusedComposite(5, 7, 2, **options, device="meta")
    frames, targets = torch.randint(0, 256, (4, 4, 5), dtype=torch.uint8), torch.rand(4, 4, 5)
    out, mixed = model(frames, targets), model(frames, targets, feedback=0.5)
    (out.loss + mixed.loss).backward()
    classifier = lstmvid.SequenceClassifier(5, 7, 1, 3, device="meta")
    found = [*out[:2], *out.state, *out[3:], mixed.loss, *model.encode(frames), model.predict(frames, 3)]
    found += [classifier(frames), *(parameter.grad for parameter in model.parameters())]
    assert all(tensor.is_meta for tensor in found)
    with pytest.raises(ValueError, match="targets are in host memory and can't have a gradient there"):
        model(frames, targets.requires_grad_())


def test_a_gradient_in_host_memory_is_refused(nowhere):
    state, frames = torch.empty(1, 1, 3, 7, device="cuda"), torch.empty(6, 3, 5, requires_grad=True)
    words = "inputs are in host memory and can't have a gradient there, the states are on cuda:0: detach"
    with pytest.raises(ValueError, match=words):
        lstm_sequence([frames], state, state, [[LayerWeights(*weights_on_a_gpu())]], steps=6)
    with pytest.raises(ValueError, match="input is in host memory and can't have a gradient"):
        lstmvid.functional.lstm(frames, (torch.empty(1, 3, 7, device="cuda"),) * 2, weights_on_a_gpu())


def test_frames_elsewhere_are_refused():
    """On the meta device, as well as on a GPU for a model on the CPU."""
    model, classifier = lstmvid.FusedComposite(5, 7), lstmvid.SequenceClassifier(5, 7, 1, 2)
    state, weights = (torch.zeros(1, 3, 7),) * 2, list(torch.nn.LSTM(5, 7).parameters())
    calls = {"frames are": model.encode, "x is": classifier}
    calls["input is"] = lambda x: lstmvid.functional.lstm(x, state, weights)
    for words, call in calls.items():
        with pytest.raises(
            ValueError, match=f"{words} on meta, .* is on cpu: frames must lie there, or in host memory"
        ):
            call(torch.zeros(4, 3, 5, device="meta"))


def test_what_else_must_lie_on_the_device(nowhere):
    state = torch.empty(1, 3, 7, device="cuda")
    weights = [torch.empty(w.shape) for w in weights_on_a_gpu()]
    with pytest.raises(ValueError, match="weight_ih of layer 0 is on cpu, the state on cuda:0"):
        lstmvid.functional.lstm(torch.empty(6, 3, 5), (state, state), weights)
    with pytest.raises(ValueError, match="frames must lie there"):
        lstmvid.functional.lstm(torch.empty(6, 3, 5, device="cuda"), (torch.empty(1, 3, 7),) * 2, weights)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_the_other_backends_get_it_whole_on_the_device(backend, nowhere):
    frames = torch.empty(5, 3, 4).to(torch.uint8)
    (found,) = streaming.inputs_for(backend, [frames], 6, [True], torch.bfloat16, torch.device("cuda:0"))
    assert found.device.type == "cuda"
    whole = (6, torch.bfloat16) if backend == "torch" else (5, torch.uint8)
    assert (len(found), found.dtype) == whole
    (kept,) = streaming.inputs_for("cuda", [frames], 6, [True], torch.bfloat16, torch.device("cuda:0"))
    assert kept is frames


@pytest.mark.parametrize("likelihood", likelihoods.LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_loss_takes_frames_by_windows(likelihood, dtype, stands_for_a_gpu, monkeypatch):
    z, of = torch.randn(7, 2, 5, requires_grad=True), likelihoods.LIKELIHOODS[likelihood]
    frames = Video(steps=7, dtype=dtype).frames()
    wanted = likelihoods.loss_of_frames(of, z, frames)
    gradient = torch.autograd.grad(wanted, z)[0]
    monkeypatch.setattr(likelihoods, "WINDOW_BYTES", 3 * 2 * 5 * 4)
    stands_for_a_gpu(frames)
    lengths, convert = [], likelihoods.as_frames
    monkeypatch.setattr(likelihoods, "as_frames", lambda x, of: (lengths.append(len(x)), convert(x, of))[1])
    loss = likelihoods.loss_of_frames(of, z, frames)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], gradient)
    assert sorted(lengths) == [1, 1, 3, 3, 3, 3]  # once more in backward
    with torch.no_grad():
        torch.testing.assert_close(likelihoods.loss_of_frames(of, z, frames), wanted)
