"""Features, traces and the page that holds them."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import lstmvid
from lstmvid import viz


def weights(model, gate: int):
    return model.encoder.weight_ih_l0.detach().double().chunk(4)[gate]


def test_input_features_are_ordered_by_the_inputs_norm_and_stay_together():
    model = lstmvid.FusedComposite((1, 4, 5), 7, 2)
    features = viz.input_features(model, 4)
    order = weights(model, 2).norm(dim=1).argsort(descending=True)[:4]
    assert list(features) == ["input", "input gate", "forget gate", "output gate"]
    for name, gate in (("input", 2), ("input gate", 0), ("forget gate", 1), ("output gate", 3)):
        assert torch.equal(features[name], weights(model, gate)[order]), name
    assert len(viz.input_features(model)["input"]) == 7  # all there are
    assert viz.input_features(lstmvid.SequenceClassifier(20, 3, 1, 2), 2)["forget gate"].shape == (2, 20)


def test_output_features_are_columns_of_the_heads():
    model = lstmvid.FusedComposite((1, 4, 5), 7, 1, reconstruct=None)
    (name, rows), *others = viz.output_features(model, 3).items()
    assert (name, others) == ("prediction", [])
    columns = model.prediction_head.weight.detach().double().T
    assert torch.equal(rows, columns[columns.norm(dim=1).argsort(descending=True)[:3]])
    assert not viz.output_features(lstmvid.FusedComposite(5, 2, 1, reconstruct=None, predict=None))


@pytest.mark.parametrize(
    ("frame_shape", "tile"), [((4, 6), (6, 4)), ((1, 4, 6), (6, 4)), ((3, 4, 6), (6, 4)), ((2, 4, 6), (12, 4))]
)
def test_grid_has_a_tile_for_each(frame_shape, tile):
    count = np.prod(frame_shape)
    features = torch.zeros(5, int(count))
    features[3, 0], features[3, 1] = 2.0, -2.0
    picture = viz.feature_grid(features, frame_shape, columns=3, scale=1)
    assert picture.size == (2 * 12 + 3 * (tile[0] + 2) - 2, 2 * 12 + 2 * (tile[1] + 2) - 2)
    assert picture.mode == ("RGB" if frame_shape[0] == 3 else "L")
    pixels = np.asarray(picture.convert("RGB"))
    grey = (pixels == 128).all(2).sum()
    assert grey == (5 * tile[0] * tile[1]) - 2  # the zeros; the sixth place is empty
    corner = pixels[12 + tile[1] + 2, 12]  # of the fourth feature, in the second row
    assert tuple(corner) == ((255, 128, 128) if frame_shape[0] == 3 else (255, 255, 255))
    following = pixels[12 + tile[1] + 2, 13]
    assert tuple(following) == ((1, 128, 128) if frame_shape[0] == 3 else (1, 1, 1))


def test_small_features_are_magnified_and_each_has_its_own_scale():
    features = torch.tensor([[1.0, 0, 0, 0], [1e-6, 0, 0, 0]])
    pixels = np.asarray(viz.feature_grid(features, (2, 2)).convert("L"))
    assert pixels.shape == (2 * 12 + 48, 2 * 12 + 2 * 48 + 2)
    assert (pixels[12:36, 12:36] == 255).all()
    assert (pixels[12:36, 62:86] == 255).all()
    assert (pixels[36:60, 62:110] == 128).all()


def test_grid_refuses():
    with pytest.raises(ValueError, match=r"frames of shape \(20,\) are no images"):
        viz.feature_grid(torch.zeros(2, 20), (20,))
    with pytest.raises(ValueError, match=r"features has shape \(2, 20\), expected \(N, 16\)"):
        viz.feature_grid(torch.zeros(2, 20), (1, 4, 4))
    with pytest.raises(ValueError, match=r"features has shape \(0, 16\)"):
        viz.feature_grid(torch.zeros(0, 16), (1, 4, 4))
    with pytest.raises(ValueError, match="columns is 0"):
        viz.feature_grid(torch.zeros(2, 16), (4, 4), columns=0)
    with pytest.raises(ValueError, match="not finite"):
        viz.feature_grid(torch.full((2, 16), torch.nan), (4, 4))
    with pytest.raises(ValueError, match="count is 0"):
        viz.input_features(lstmvid.FusedComposite(4, 2, 1), 0)


def test_traces():
    gate = torch.linspace(0, 1, 30).view(10, 3)
    content = viz.trace_png({"gate": gate, "cell": gate - 0.5}, start=11, trained_until=15)
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    left, right = np.split(picture, [picture.shape[1] // 2], axis=1)
    spread = [np.ptp(half, axis=2).max() for half in (left[100:200], right[100:200])]
    assert spread[1] > 100  # colours around zero; a gate is grey but for the line where training ended
    assert content != viz.trace_png({"gate": gate, "cell": gate - 0.5}, start=11)
    copied = gate.clone()
    copied[0] = torch.nan
    assert viz.trace_png({"gate": copied})
    with pytest.raises(ValueError, match=r"trace 'a' has shape \(3,\)"):
        viz.trace_png({"a": torch.zeros(3)})
    with pytest.raises(ValueError, match="traces is empty"):
        viz.trace_png({})


class Elements(HTMLParser):
    """Open tags, checked to be closed in turn, and all that is fetched from elsewhere."""

    EMPTY = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_one_whole_file(tmp_path):
    page = viz.Page("a < b & c")
    page.heading("<First>")
    page.sentence("1 < 2 & 3")
    page.table(["", "MSE"], [["<model>", "1.5"], ["floor", "2"]], "caption & more")
    png = viz.encode_png(viz.strip_image({"x": torch.rand(2, 8, 8)}))
    page.picture("x.png", png, 'a "quoted" <caption>')
    page.picture("y.gif", viz.gif_bytes({"x": torch.rand(2, 8, 8)}), "moving")
    for name in ("x.png", "x.jpg"):
        with pytest.raises(ValueError, match=f"name is {name}"):
            page.picture(name, png, "")
    page.save(tmp_path / "new" / "page.html")
    assert os.listdir(tmp_path / "new") == ["page.html"]
    html = (tmp_path / "new" / "page.html").read_text()
    found = Elements(html)
    assert found.seen.count("tr") == 3
    assert found.sources[0] == "#part-1"
    assert [source.partition(",")[0] for source in found.sources[1:]] == [
        "data:image/png;base64",
        "data:image/gif;base64",
    ]
    assert base64.b64decode(found.sources[1].partition(",")[2]) == png
    assert "<model>" in found.text
    assert not re.search(r"https?:|@import|url\(", html)
    paths = page.save_pictures(tmp_path / "pictures")
    assert [path.name for path in paths] == ["x.png", "y.gif"]
    assert paths[0].read_bytes() == png
