"""A child at another resolution than its parent: its weights at new positions, and what must be the same all the
same."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.bucketed_tiny import Part, bucketed, bucketed_train
from helpers.training_tiny import rows, tiny_config
from rfjax.data.buckets import BucketedCorpus, schedule_of
from rfjax.data.corpus import load_corpus
from rfjax.data.prepared.corpus import PreparedCorpus
from rfjax.data.prepared.manifest import Manifest
from rfjax.errors import ConfigError
from rfjax.flow.objective import draw
from rfjax.models.backbone import make_backbone
from rfjax.models.positions import POSITIONS
from rfjax.training import checkpoint
from rfjax.training.loss import run_keys

LOW = {
    "model.depth": 1,
    "model.position_tokens": 2,
    "model.position_span": 2.0,
    "model.position_grid": 8,
    "formulation": "rf",
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
    "train.condition_dropout": 0.0,
    "train.steps": 3,
}
HIGH = LOW | {
    "data.image_size": 8,
    "model.position_tokens": 4,
    "model.position_grid": 12,
    "train.learning_rate": 0.0,
    "train.steps": 4,
}
SHAPES = ((8, 8), (4, 12))


def grid_by_hand(grid, tokens, span, width):
    """[grid, grid, width], a number at a time: half the channels for the column, half for the row, each half sines and
    then cosines; the centre square of `tokens` begins at 0 and ends at `span`."""
    out = np.zeros((grid, grid, width), np.float32)
    for row in range(grid):
        for column in range(grid):
            for channel in range(width):
                index = column if channel < width // 2 else row
                place = (index - (grid - tokens) / 2) * span / tokens
                which = channel % (width // 2)
                angle = place / 10000 ** ((which % (width // 4)) / (width // 4))
                out[row, column, channel] = np.sin(angle) if which < width // 4 else np.cos(angle)
    return out


def test_a_child_begins_as_its_parents_network_at_the_new_positions(tmp_path):
    """Catches the parent's positions kept by the child, and rows taken for columns where a bucket is not square: every
    loss is that of the parent's weights on a stored grid, written by hand, in a network of its own."""
    low, high = tiny_config(LOW), tiny_config(HIGH)
    corpus, plain = load_corpus(low.data, low.seed), load_corpus(high.data, high.seed)
    bucketed_train(tmp_path / "low", LOW, corpus=corpus, backbone=make_backbone(low.model, corpus.shapes))
    parts = tuple(
        Part(0, replace(plain.shapes, latents=(*shape, 3)), first=100 * number) for number, shape in enumerate(SHAPES)
    )
    both = BucketedCorpus("both", parts, 0, (50, 50), (4, 4))
    backbone = make_backbone(high.model, plain.shapes)
    child = bucketed_train(tmp_path / "high", HIGH, corpus=both, backbone=backbone, init_from=f"{tmp_path / 'low'}@3")
    params, _ = checkpoint.restore_params(tmp_path / "low", 3, "raw")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(child.state.params), jax.device_get(params))

    stored = make_backbone(replace(low.model, positions="stored", position_grid=12), plain.shapes)
    told = {**params, POSITIONS: jnp.asarray(grid_by_hand(12, 4, 2.0, 16))}
    apply = jax.jit(stored.apply)
    taken = [schedule_of(both).at(3 + step) for step in range(4)]  # where the parent's stream ended
    assert {part for part, _ in taken} == {0, 1}
    for step, (part, earlier) in enumerate(taken):
        batch = parts[part].examples(np.arange(4 * earlier, 4 * earlier + 4, dtype=np.uint64), "train")
        draws = draw(
            run_keys(0)[1], jnp.int32(3 + step), jnp.arange(4, dtype=jnp.int32), batch.latents.shape[1:], 1, 0.0
        )
        t = np.asarray(draws.u)[:, None, None, None, None]
        z = (1 - t) * batch.latents + t * np.asarray(draws.noise)
        predicted = apply(told, jnp.asarray(z), draws.u, jnp.asarray(batch.context), jnp.asarray(batch.pooled))
        expected = np.mean((np.asarray(predicted) - (np.asarray(draws.noise) - batch.latents)) ** 2)
        assert rows(tmp_path / "high")[step]["loss"] == pytest.approx(float(expected), rel=1e-5)


@dataclass(frozen=True, kw_only=True)
class Made(Part):
    """Latents that some models are said to have made."""

    vae: str
    scale: float

    @property
    def made_with(self):
        return {"the files of vae": self.vae * 8, "the latents' scale": self.scale}


def test_a_corpus_that_other_models_made_is_refused(tmp_path):
    """Catches a fine-tune on another autoencoder's latents: shapes fit, nothing fails, and every loss is wrong."""
    plain = bucketed(tiny_config()).parts[0]
    corpus = lambda vae, scale: Made(0, plain.shapes, vae=vae, scale=scale)  # noqa: E731
    steps = {"train.steps": 4, "train.batch_size": 4}
    bucketed_train(tmp_path / "parent", steps, corpus=corpus("ab12", 2.0))
    for other, message in (
        (corpus("cd34", 2.0), "the files of vae: ab12ab12ab12 in the parent and cd34cd34cd34 in this run. Prepare"),
        (corpus("ab12", 1.5), "the latents' scale: 2.0 in the parent and 1.5 in this run. Prepare"),
    ):
        with pytest.raises(ConfigError, match=message):
            bucketed_train(tmp_path / "child", steps, corpus=other, init_from=f"{tmp_path / 'parent'}@4")
        assert not (tmp_path / "child").exists()
    bucketed_train(
        tmp_path / "child", steps, corpus=plain, init_from=f"{tmp_path / 'parent'}@4"
    )  # says nothing of models


def test_what_a_prepared_corpus_was_made_with():
    """Catches an encoder left out of account, or one counted whose features are not used."""
    encoder = {"kind": "clip", "tokens": 5, "channels": 6, "pooled": 4}
    facts = {
        "text": {"encoders": [{"name": name, **encoder} for name in ("clip_l", "clip_g")]},
        "latents": {"shift": 0.25, "scale": 2.0, "shape": [4, 4, 3]},
        "models": {"parts": {name: {"sha256": name * 4} for name in ("vae", "clip_l", "clip_g")}},
    }
    corpus = PreparedCorpus(Manifest(Path("folder"), facts), 0, ("clip_g",), 0.0, "", "prepared:folder")
    assert corpus.made_with == {
        "the files of vae": "vaevaevaevae",
        "the files of clip_g": "clip_g" * 4,
        "the latents' shift": 0.25,
        "the latents' scale": 2.0,
    }
