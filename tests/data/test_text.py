import hashlib
import subprocess
import sys

import numpy as np
import pytest

from rfjax.data import digits, grammar, shapes, text
from rfjax.errors import ConfigError

VOCABULARIES = {"shapes": shapes.VOCABULARY, "digits": digits.VOCABULARY}


@pytest.fixture(scope="module")
def encoder():
    return text.TextEncoder.fit(list(grammar.specimens(shapes.VOCABULARY)))


def token(encoder, caption, word):
    ids, _ = encoder.tokenize([caption])
    return ids[0].tolist().index(encoder._processor.piece_to_id("\u2581" + word))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_word_is_one_piece(name):
    vocabulary = VOCABULARIES[name]
    captions = list(grammar.specimens(vocabulary))
    words = {word for caption in captions for word in caption.split()}
    assert words >= {*vocabulary.classes, *vocabulary.plurals, *vocabulary.colors, "an", "a", "left", "under"}
    encoder = text.TextEncoder.fit(captions)
    ids, lengths = encoder.tokenize(sorted(words))
    assert (lengths == 2).all()  # the word and the end
    assert len(set(ids[:, 0].tolist())) == len(words)


def test_another_process_trains_the_same_model(encoder):
    script = (
        "import hashlib; from rfjax.data import grammar, shapes, text;"
        "e = text.TextEncoder.fit(list(grammar.specimens(shapes.VOCABULARY)));"
        "c, p = e(['a photo of a red ring']);"
        "h = [hashlib.sha256(b).hexdigest() for b in (e.model, c.tobytes() + p.tobytes())];"
        "print(*h, e.fingerprint)"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    context, pooled = encoder(["a photo of a red ring"])
    assert other == [
        hashlib.sha256(encoder.model).hexdigest(),
        hashlib.sha256(context.tobytes() + pooled.tobytes()).hexdigest(),
        encoder.fingerprint,
    ]


def test_shapes_padding_and_the_empty_caption(encoder):
    context, pooled = encoder(["a photo of a ring", ""])
    assert context.shape == (2, text.CONTEXT_TOKENS, text.CONTEXT_SIZE) and context.dtype == np.float32
    assert pooled.shape == (2, text.POOLED_SIZE) and pooled.dtype == np.float32
    used = np.abs(context).sum(axis=-1) > 0
    assert used[0].tolist() == [True] * 6 + [False] * 10
    # The null condition is all zeros; an encoded empty caption is not.
    assert used[1].tolist() == [True] + [False] * 15
    assert np.abs(pooled[1]).sum() > 0


def test_a_caption_does_not_depend_on_its_neighbours(encoder):
    captions = ["a ring", "a photo of a red bar to the left of a blue cross", "", "four white rings"]
    context, pooled = encoder(captions)
    for i, caption in enumerate(captions):
        alone = encoder([caption])
        assert np.array_equal(alone[0][0], context[i]) and np.array_equal(alone[1][0], pooled[i])


def test_features_tell_order_place_and_binding(encoder):
    captions = ["a red ring and a blue bar", "a blue ring and a red bar", "a photo of a red ring and a blue bar"]
    context, pooled = encoder(captions)
    rings = [context[i, token(encoder, caption, "ring")] for i, caption in enumerate(captions)]
    piece = text.BLOCKS["piece"]
    for other in (1, 2):
        assert np.array_equal(rings[0][:piece], rings[other][:piece])  # the same word
        assert np.abs(rings[0][piece:] - rings[other][piece:]).max() > 0.1  # another neighbour or place
    # The same bag of words: only the pairs differ.
    bag = text.POOLED_BLOCKS["pieces"]
    assert np.allclose(pooled[0, :bag], pooled[1, :bag], atol=1e-6)
    assert np.abs(pooled[0, bag:] - pooled[1, bag:]).max() > 0.1


def test_scale(encoder):
    context, pooled = encoder(list(grammar.specimens(shapes.VOCABULARY))[::7])
    used = context[np.abs(context).sum(axis=-1) > 0]
    start = 0
    for size in text.BLOCKS.values():
        assert 0.6 < np.mean(used[:, start : start + size] ** 2) < 1.6
        start += size
    assert np.allclose(np.mean(pooled**2, axis=1), 1.0, atol=1e-5)


def test_a_long_caption_is_refused(encoder):
    fits = "a photo of a red ring to the left of a blue bar and a"
    assert encoder([fits])[0].shape[0] == 1
    with pytest.raises(ConfigError, match="17 tokens.*16.*shorten"):
        encoder([fits + " ring"])


def test_features_reveal_what_training_needs():
    """A linear readout of `pooled` and of a noun's token finds colour, class and relation."""
    from rfjax.config import DataConfig
    from rfjax.data.corpus import load_corpus
    from rfjax.data.geneval_names import TASKS

    corpus = load_corpus(DataConfig(), 0)
    contents, _, captions = corpus.scenes(np.arange(5000), "train")
    pooled = corpus.encode(captions)[1]
    for task, targets in (
        ("position", (contents.relation, contents.classes[:, 0], contents.classes[:, 1])),
        ("color_attr", (contents.colors[:, 0], contents.colors[:, 1])),
        ("counting", (contents.count, contents.classes[:, 0])),
    ):
        mine = contents.task == TASKS.index(task)
        for target in targets:
            assert readout(pooled[mine], target[mine]) > 0.85


def readout(features, target):
    """Accuracy on the last quarter of a ridge regression onto one-hot targets."""
    x = np.c_[features, np.ones(len(features))]
    y = np.eye(target.max() + 1)[target]
    cut = 3 * len(x) // 4
    weights = np.linalg.solve(x[:cut].T @ x[:cut] + np.eye(x.shape[1]), x[:cut].T @ y[:cut])
    return np.mean((x[cut:] @ weights).argmax(axis=1) == target[cut:])
