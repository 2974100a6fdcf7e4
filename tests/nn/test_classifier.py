"""`SequenceClassifier`: shapes, averaging, transfer from an encoder, dropout, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lstmvid import FusedComposite, SequenceClassifier


def test_logits_probabilities_and_loss():
    classifier = SequenceClassifier(12, 6, 2, 5)
    x, labels = torch.rand(4, 3, 1, 3, 4), torch.tensor([0, 4, 2])
    logits = classifier(x)
    assert logits.shape == (4, 3, 5)
    torch.testing.assert_close(classifier.predict_proba(x), torch.softmax(logits, -1).mean(0))
    expected = sum(F.cross_entropy(step, labels, reduction="sum") for step in logits) / 3
    torch.testing.assert_close(classifier.loss(x, labels), expected)
    first = SequenceClassifier(12, 6, 2, 5, batch_first=True)
    first.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(first(x.transpose(0, 1)), logits.transpose(0, 1))
    torch.testing.assert_close(first.predict_proba(x.transpose(0, 1)), classifier.predict_proba(x))
    torch.testing.assert_close(first.loss(x.transpose(0, 1), labels), expected)


def test_starts_from_an_encoder():
    composite = FusedComposite((1, 3, 4), 6, 2)
    torch.nn.init.normal_(composite.encoder.weight_peephole_l0)
    classifier = SequenceClassifier.from_encoder(composite, 5, output_dropout=0.5)
    x = torch.randint(0, 256, (4, 3, 1, 3, 4), dtype=torch.uint8)
    hidden, _ = classifier.encoder(x.flatten(2) / 255, classifier.encoder.zero_state(3))
    torch.testing.assert_close(hidden[-1], composite.encode(x)[0][-1])
    # A copy: fine-tuning leaves the composite as it was.
    classifier.encoder.weight_hh_l0.data.zero_()
    assert composite.encoder.weight_hh_l0.any()
    assert classifier.output_dropout == 0.5


def test_learns_to_tell_directions_apart():
    """Which way a bump moves: nothing in a single frame says it."""
    position = torch.arange(8)
    up = torch.stack([F.one_hot((position + start) % 8, 8) for start in range(8)], 1).float()
    x, labels = torch.cat([up, up.flip(0)], 1), torch.tensor([0] * 8 + [1] * 8)
    classifier = SequenceClassifier(8, 16, 1, 2)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        classifier.loss(x, labels).backward()
        optimizer.step()
    assert torch.equal(classifier.predict_proba(x).argmax(-1), labels)


@pytest.mark.parametrize("name", ["input_dropout", "dropout", "output_dropout"])
def test_dropout(name):
    classifier = SequenceClassifier(12, 6, 2, 5, **{name: 0.5})
    x = torch.rand(4, 3, 12)
    assert not torch.equal(classifier(x), classifier(x))
    classifier.eval()
    assert torch.equal(classifier(x), classifier(x))
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=name):
            SequenceClassifier(12, 6, 2, 5, **{name: wrong})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c, x: c(x[..., :11]), ValueError, "12 features"),
        (lambda c, x: c(x[0]), ValueError, "12 features"),
        (lambda c, x: c(x[:0]), ValueError, "empty sequence"),
        (lambda c, x: c(x.double()), TypeError, "float32"),
        (lambda c, x: c.loss(x, torch.zeros(2, dtype=torch.long)), ValueError, "labels"),
        (lambda c, x: c.loss(x, torch.zeros(3)), ValueError, "labels"),
        (lambda c, x: SequenceClassifier(12, 6, 2, 0), ValueError, "num_classes"),
    ],
)
def test_wrong_calls(call, error, words):
    with pytest.raises(error, match=words):
        call(SequenceClassifier(12, 6, 2, 5), torch.rand(4, 3, 12))


def test_compiles_as_one_graph():
    classifier = SequenceClassifier(12, 6, 2, 5)
    x = torch.rand(4, 3, 12)
    compiled = torch.compile(classifier, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), classifier(x))
