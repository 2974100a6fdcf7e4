from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import lstmvid
from lstmvid.evaluation.anomaly import anomaly_scores, frame_auc, frame_errors


@pytest.mark.parametrize("missing", ["predict", "reconstruct", None])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_errors_are_those_of_the_clips_that_a_frame_is_in(missing, dtype):
    model = lstmvid.FusedComposite(3, 4, 1, **({missing: None} if missing else {})).eval()
    frames = np.random.default_rng(0).integers(0, 256, (12, 3)).astype(np.uint8)
    if dtype == np.float32:
        frames = (frames / 255).astype(np.float32)
    errors = frame_errors(model, frames, 3, 2, batch_size=2)
    absent = {"predict": {"prediction"}, "reconstruct": {"reconstruction"}, None: set()}[missing]
    assert set(errors) == {"prediction", "reconstruction"} - absent
    # Clips begin at 0, 2, 4, 6 and, to end with the video, 7.
    truth = torch.from_numpy(frames).double() / (255 if dtype == np.uint8 else 1)
    expected = {name: [[] for _ in range(12)] for name in errors}
    for start in (0, 2, 4, 6, 7):
        clip = torch.from_numpy(frames[start : start + 5])[:, None]
        with torch.no_grad():
            out = model(clip[:3], predict_steps=2 if missing != "predict" else None)
        for name, offset in (("prediction", 3), ("reconstruction", 0)):
            if name in errors:
                for step, guess in enumerate(getattr(out, name)):
                    place = start + offset + step
                    expected[name][place].append((guess[0].double() - truth[place]).square().mean().item())
    for name, values in errors.items():
        means = [np.mean(found) if found else np.nan for found in expected[name]]
        np.testing.assert_allclose(values.numpy(), means, rtol=1e-5)
    if "prediction" in errors:
        assert errors["prediction"][:3].isnan().all()
        assert not errors["prediction"][3:].isnan().any()


def test_a_video_has_to_hold_a_clip():
    model = lstmvid.FusedComposite(3, 4, 1).eval()
    with pytest.raises(ValueError, match="the video has 4 frames, expected at least 5 for a clip"):
        frame_errors(model, np.zeros((4, 3), dtype=np.uint8), 3, 2)
    assert not frame_errors(model, np.zeros((5, 3), dtype=np.uint8), 3, 2)["prediction"][3:].isnan().any()


def test_scores_are_scaled_within_a_video():
    scores = anomaly_scores(torch.tensor([torch.nan, 2.0, 6.0, 3.0]))
    assert scores[1:].tolist() == [0, 1, 0.25]
    assert scores[0].isnan()
    assert anomaly_scores(torch.tensor([torch.nan, 5.0, 5.0]))[1:].tolist() == [0, 0]
    with pytest.raises(ValueError, match="no number"):
        anomaly_scores(torch.tensor([torch.nan]))


def test_auc_is_that_of_all_frames_with_a_score():
    rng = np.random.default_rng(0)
    scores = [torch.from_numpy(np.round(rng.random(count), 1)) for count in (40, 25)]  # with ties
    labels = [torch.from_numpy(rng.random(len(score)) < 0.3) for score in scores]
    expected = roc_auc_score(torch.cat(labels), torch.cat(scores))
    assert frame_auc(scores, labels) == pytest.approx(expected, abs=1e-6)
    longer = [torch.cat([torch.full((3,), torch.nan, dtype=torch.float64), score]) for score in scores]
    marked = [torch.cat([torch.ones(3, dtype=torch.bool), label]) for label in labels]
    assert frame_auc(longer, marked) == pytest.approx(expected, abs=1e-6)
    # Closer than float32 tells apart.
    close = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    assert frame_auc([close], [torch.tensor([False, True])]) == 1
    assert frame_auc([close], [torch.tensor([True, False])]) == 0


def test_auc_needs_both_kinds_and_equal_lengths():
    with pytest.raises(ValueError, match="marks 0 of 2 frames, expected some but not all"):
        frame_auc([torch.rand(2)], [torch.tensor([False, False])])
    with pytest.raises(ValueError, match="marks 1 of 1 frames"):
        frame_auc([torch.tensor([torch.nan, 1.0])], [torch.tensor([False, True])])
    with pytest.raises(ValueError, match=r"lengths \[\(2, 3\)\]"):
        frame_auc([torch.rand(2)], [torch.tensor([False, True, True])])


def test_a_model_of_the_usual_tells_the_unusual():
    """Waves that travel are learned; frames in which they stand out by noise have the highest errors."""
    torch.manual_seed(0)
    places = torch.arange(16) / 16

    def waves(phases: torch.Tensor, steps: int) -> torch.Tensor:
        time = torch.arange(steps)[:, None, None] / 8
        return 0.5 + 0.4 * torch.sin(2 * torch.pi * (places + phases[:, None] + time))

    model = lstmvid.FusedComposite(16, 32, 1, predict="unconditional", likelihood="gaussian")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        clips = waves(torch.rand(16), 9)
        optimizer.zero_grad()
        model(clips[:6], clips[6:]).loss.backward()
        optimizer.step()
    model.eval()
    scores, unusual = {}, []
    for video in range(3):
        frames = waves(torch.rand(1), 40)[:, 0]
        marks = torch.zeros(40, dtype=torch.bool)
        marks[20 + video : 25 + video] = True
        frames[marks] += 0.3 * torch.randn(5, 16)
        unusual.append(marks)
        for name, errors in frame_errors(model, frames, 6, 3, stride=1).items():
            scores.setdefault(name, []).append(anomaly_scores(errors))
    assert frame_auc(scores["prediction"], unusual) > 0.9
    assert frame_auc(scores["reconstruction"], unusual) > 0.9
