from __future__ import annotations

import numpy as np
import pytest
import torch

from lstmvid.data.registry import check_options, open_source, source_names, source_options
from lstmvid.data.sequences import Cut, Selection, ShuffledBatches, Windows, check_clips, held_out, spread, stack


def numbered(*lengths: int, shape: tuple[int, ...] = (1, 2)) -> list[np.ndarray]:
    """Sequences in which frame t of sequence s is full of 100 s + t."""
    return [
        np.broadcast_to((100 * s + np.arange(length)).reshape(-1, *[1] * len(shape)), (length, *shape)).astype(np.uint8)
        for s, length in enumerate(lengths)
    ]


def starts(clips) -> list[int]:
    return [clips[index].flatten(1)[0, 0].item() for index in range(len(clips))]


def test_windows():
    clips = Windows(numbered(7, 2, 5), 3, stride=2)
    assert starts(clips) == [0, 2, 4, 200, 202]
    assert clips.frame_shape == (1, 2)
    assert clips[-1].tolist() == [[[202, 202]], [[203, 203]], [[204, 204]]]
    assert starts(Windows(numbered(7), 3, step=3)) == [0]
    assert Windows(numbered(8), 3, step=3)[1].flatten(1)[:, 0].tolist() == [1, 4, 7]
    assert list(map(starts, [list(clips)])) == [[0, 2, 4, 200, 202]]  # iterating ends
    with pytest.raises(IndexError, match="index is 5, expected one of 5 clips"):
        clips[5]


def test_windows_do_not_share_memory():
    sequences = numbered(4)
    clip = Windows(sequences, 4)[0]
    clip += 1
    assert sequences[0][0, 0, 0] == 0


@pytest.mark.parametrize(
    ("sequences", "num_frames", "options", "message"),
    [
        (numbered(4, 5), 6, {}, "longest sequence has 5 frames, expected at least 6"),
        (numbered(4), 2, {"step": 4}, "longest sequence has 4 frames, expected at least 5"),
        ([], 2, {}, "longest sequence has 0 frames"),
        ([*numbered(4), *numbered(4, shape=(3,))], 2, {}, "frames of different shapes"),
        (numbered(4), 0, {}, "num_frames is 0"),
        (numbered(4), 1, {"stride": 0}, "stride is 0"),
    ],
)
def test_windows_that_cannot_be(sequences, num_frames, options, message):
    with pytest.raises(ValueError, match=message):
        Windows(sequences, num_frames, **options)


def test_shuffled_batches_have_every_clip_once_a_pass():
    clips = Windows(numbered(11), 1)
    batches = ShuffledBatches(clips, seed=3)
    row = torch.cat([batches.batch(index, 4)[0, :, 0, 0] for index in range(11)]).tolist()
    passes = [row[first : first + 11] for first in range(0, 44, 11)]
    assert all(sorted(one) == list(range(11)) for one in passes)
    assert len(set(map(tuple, passes))) == 4


def test_shuffled_batches_are_a_function_of_seed_and_index():
    clips = Windows(numbered(10), 2)
    one, other = ShuffledBatches(clips, 3), ShuffledBatches(clips, 3)
    straight = [one.batch(index, 3) for index in range(8)]
    for index in (7, 0, 5, 2):
        assert torch.equal(other.batch(index, 3), straight[index])
    assert straight[0].shape == (2, 3, 1, 2)
    different = ShuffledBatches(clips, 4)
    assert any(not torch.equal(different.batch(index, 3), straight[index]) for index in range(8))
    # More clips than there are.
    assert sorted(one.batch(0, 18)[0, :, 0, 0].tolist()) == sorted([*range(9), *range(9)])


def test_spread_and_selection():
    clips = Windows(numbered(10), 1)
    assert starts(spread(clips, 4)) == [0, 2, 5, 7]
    assert spread(clips, 10) is clips
    assert stack(Selection(clips, [3, 1]), [0, -1])[0, :, 0, 0].tolist() == [3, 1]
    with pytest.raises(ValueError, match="indices is empty"):
        Selection(clips, [])


@pytest.mark.parametrize(("count", "fraction", "away"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.3, 3)])
def test_held_out(count, fraction, away):
    kept, out = held_out(count, fraction, 1)
    assert sorted(kept + out) == list(range(count))
    assert len(out) == away
    assert held_out(count, fraction, 1) == (kept, out)


def test_held_out_of_one():
    with pytest.raises(ValueError, match="only 1 to split"):
        held_out(1, 0.5, 0)


def test_clips_are_looked_at():
    clips = Windows(numbered(10), 3)
    check_clips(clips, Cut(input_frames=2, target_frames=1), "x")
    with pytest.raises(ValueError, match=r"x has clips of shape \(3, 1, 2\) .*, expected \(4, 1, 2\)"):
        check_clips(clips, Cut(input_frames=2, target_frames=2), "x")
    doubles = Windows([np.zeros((5, 2))], 3)
    with pytest.raises(ValueError, match=r"type torch\.float64, expected .* torch\.uint8 or torch\.float32"):
        check_clips(doubles, Cut(input_frames=2, target_frames=1), "x")


# ---- the registry ----


def test_every_source_opens_with_its_own_settings(tmp_path):
    assert source_names()[0] == "moving_mnist"
    for name in source_names()[1:]:
        assert isinstance(source_options(name), dict)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_source(name, str(tmp_path / "nowhere"), Cut(input_frames=2, target_frames=2))


def test_options_are_checked():
    check_options("frames", {"stride": 3})
    with pytest.raises(ValueError, match=r"^options\.strid is no setting of the source frames; it has stride"):
        check_options("frames", {"strid": 3})
    with pytest.raises(ValueError, match=r"^options\.x is no setting of the source taxibj; it has none"):
        check_options("taxibj", {"x": 3})
    for value in (True, 2.0, "2"):
        with pytest.raises(ValueError, match=r"^options\.stride is .*, expected an integer"):
            check_options("frames", {"stride": value})
