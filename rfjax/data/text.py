"""Frozen text features of the embedded corpora: a sentencepiece model and fixed random vectors.

They replace CLIP and T5: the network receives `context` and `pooled`, never strings. A token's feature vector consists
of four blocks:

    piece      a random vector of the piece itself
    left       the pieces before it: sum over k >= 1 of DECAY^(k-1) w(p[i-k]) e_left(p[i-k])
    right      the same sum over the pieces after it
    position   a random vector of the token's place

So "ring" in "red ring left of a square" carries its colour, its relation and its partner, as the output of a contextual
encoder would. w(p) = a / (a + frequency of p) is the smooth inverse frequency of Arora, Liang & Ma 2017 ("A simple but
tough-to-beat baseline for sentence embeddings"). With this weight, "a photo of a" does not drown the words that matter.

`pooled` has two parts: a weighted sum over pieces, and a weighted sum over ordered pairs of pieces, where a pair is the
elementwise product of two random vectors. Every sequence ends in an end-of-text token, so an encoded empty caption
differs from the null condition, which is zeros. Rows beyond the caption's length are zeros. Features have a mean square
of about 1 per component over the rows in use.

The random vectors are hashed from the pieces' text, and do not depend on the corpus's seed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sentencepiece
from jaxtyping import Float, Int

from rfjax.data import hashing
from rfjax.data.batch import Conditions, EncoderSlot
from rfjax.errors import ConfigError

VERSION = "text-1"
CONTEXT_TOKENS = 16
BLOCKS = {"piece": 40, "left": 24, "right": 24, "position": 8}
CONTEXT_SIZE = sum(BLOCKS.values())
POOLED_BLOCKS = {"pieces": 48, "pairs": 48}
POOLED_SIZE = sum(POOLED_BLOCKS.values())
DECAY = 0.7
FREQUENCY_SCALE = 0.02  # a of the smooth inverse frequency
NEIGHBOUR_SCALE = 2.0  # brings the left and right blocks to a mean square of about 1

_SPECIAL = 3  # <unk>, <s>, </s>
_END = 2

SLOT = EncoderSlot("words", (0, CONTEXT_TOKENS), (0, CONTEXT_SIZE), (0, POOLED_SIZE))


PIECES = 200  # the size of the tokenizer's vocabulary; with so many, every word of the scenes' grammar is one piece


def train_tokenizer(captions: Iterable[str], vocabulary_size: int = PIECES) -> bytes:
    """Trains a byte-pair sentencepiece model on the captions. The same captions give the same bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary_size,
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789",
        normalization_rule_name="nmt_nfkc_cf",
        num_threads=1,  # more threads may merge in another order
        minloglevel=2,
    )
    return model.getvalue()


@dataclass(frozen=True)
class TextEncoder:
    """Encodes captions with a tokenizer and the frequencies of its pieces."""

    model: bytes
    frequencies: tuple[float, ...]  # for each piece, its expected share of a caption's tokens

    @classmethod
    def fit(cls, captions: Sequence[str], vocabulary_size: int = PIECES) -> TextEncoder:
        model = train_tokenizer(captions, vocabulary_size)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        counts = np.zeros(processor.get_piece_size())
        for ids in processor.encode(list(captions)):
            np.add.at(counts, ids + [_END], 1.0)
        return cls(model, tuple((counts / counts.sum()).tolist()))

    @property
    def fingerprint(self) -> str:
        text = f"{VERSION}|{BLOCKS}|{POOLED_BLOCKS}|{DECAY}|{FREQUENCY_SCALE}|{NEIGHBOUR_SCALE}|{self.frequencies}"
        return hashlib.sha256(self.model + text.encode()).hexdigest()

    @cached_property
    def _processor(self):
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @cached_property
    def _weights(self) -> Float[np.ndarray, " pieces"]:
        return FREQUENCY_SCALE / (FREQUENCY_SCALE + np.array(self.frequencies))

    def _table(self, role: str, size: int) -> Float[np.ndarray, "pieces size"]:
        """A standard normal vector of `size` numbers for each piece of the vocabulary. It is hashed from the piece's
        text and from `role`, the feature block that it is for."""
        pieces = [self._processor.id_to_piece(i) for i in range(len(self.frequencies))]
        keys = np.array([hashing.key(VERSION, role, piece) for piece in pieces], np.uint64)
        return hashing.normals(0, keys, size)

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        sizes = {"piece": BLOCKS["piece"], "left": BLOCKS["left"], "right": BLOCKS["right"]}
        sizes |= {"pieces": POOLED_BLOCKS["pieces"], "first": POOLED_BLOCKS["pairs"], "second": POOLED_BLOCKS["pairs"]}
        tables = {role: self._table(role, size) for role, size in sizes.items()}
        place = np.arange(CONTEXT_TOKENS)
        tables["position"] = hashing.normals(hashing.key(VERSION, "position"), place, BLOCKS["position"])
        return tables

    def tokenize(self, captions: Sequence[str]) -> tuple[Int[np.ndarray, "n tokens"], Int[np.ndarray, " n"]]:
        """Returns (piece ids, lengths). A row of ids ends in the end-of-text token, and is filled up with -1. A length
        counts the end-of-text token, too. Raises `ConfigError` for too long a caption."""
        rows = [ids + [_END] for ids in self._processor.encode(list(captions), num_threads=1)]
        lengths = np.array([len(row) for row in rows], int)
        if len(rows) and lengths.max() > CONTEXT_TOKENS:
            given = f"caption {captions[int(lengths.argmax())]!r} has {lengths.max()} tokens"
            raise ConfigError(f"{given}, more than the {CONTEXT_TOKENS} of the context; shorten it")
        ids = np.full((len(rows), CONTEXT_TOKENS), -1)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids, lengths

    def __call__(self, captions: Sequence[str]) -> Conditions:
        """Encodes captions as float32 features. The features of a caption do not depend on the other captions."""
        ids, _ = self.tokenize(captions)
        used = (ids >= 0)[..., None]
        weights = np.where(ids >= 0, self._weights[ids], 0.0)[..., None]
        tables = self._tables
        left = _decayed_past(weights * tables["left"][ids])
        right = _decayed_past((weights * tables["right"][ids])[:, ::-1])[:, ::-1]
        position = np.broadcast_to(tables["position"], (*ids.shape, BLOCKS["position"]))
        neighbours = NEIGHBOUR_SCALE * np.concatenate([left, right], axis=-1)
        context = np.concatenate([tables["piece"][ids], neighbours, position], axis=-1) * used

        bag = (weights * tables["pieces"][ids]).sum(axis=1)
        first = _decayed_past(weights * tables["first"][ids])
        pairs = (weights * tables["second"][ids] * first).sum(axis=1)
        pooled = np.concatenate([_unit(bag), _unit(pairs)], axis=-1)
        return Conditions(context.astype(np.float32), pooled.astype(np.float32))


def _decayed_past(values: Float[np.ndarray, "n tokens size"]) -> Float[np.ndarray, "n tokens size"]:
    """out[i] = sum over k >= 1 of DECAY^(k-1) values[i-k]."""
    out = np.zeros_like(values)
    for i in range(1, values.shape[1]):
        out[:, i] = values[:, i - 1] + DECAY * out[:, i - 1]
    return out


def _unit(values):
    """Scales each row to a mean square of 1; a row of zeros stays zero."""
    scale = np.sqrt(np.mean(values**2, axis=-1, keepdims=True))
    return values / np.maximum(scale, 1e-12)
