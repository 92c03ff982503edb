"""What captions' features in float16 and int8 cost a trained model: text_precision.py CORPUS CORPUS ... [--steps N]

Takes the folders that `rfjax prepare` wrote from the same images with different values of --text-precision; the first
is the reference. Prints for each corpus the megabytes of its captions' files, the error of its features against the
reference's, and two differences in validation loss from the network that was trained on the reference. The first is for
the same network when it reads this corpus's features. The second is for a network trained on this corpus, from the same
initial weights and on the same batches. Differences are paired by example, with standard errors. The last row is a
second seed on the reference: it shows how large a difference chance alone makes.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rfjax.config import Config, DataConfig, ModelConfig, PreparedConfig, TrainConfig, ValidationConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.loader import batches
from rfjax.data.prepared import manifest
from rfjax.evaluation.paired_loss import paired_difference
from rfjax.evaluation.validation import make_validation_step, validation_loss
from rfjax.models.backbone import make_backbone
from rfjax.training.loss import make_loss

BATCH = 16


def data_of(found, folder):
    (tokens, size), pooled, _ = manifest.layout(found.encoders)
    return DataConfig(
        corpus="prepared",
        image_size=found.side,
        channels=found.buckets[0].latents[-1],
        context_tokens=tokens,
        context_size=size,
        pooled_size=pooled,
        prepared=PreparedConfig(path=str(folder)),
    )


def train(corpus, config, steps, seed):
    network = make_backbone(config.model, corpus.shapes)
    loss = make_loss(config, network.apply, corpus.shapes.encoders)
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, steps), b2=0.99, weight_decay=0.0)

    @jax.jit
    def update(params, state, batch, step):
        _, gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, step, jnp.arange(BATCH))
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    params = network.init(jax.random.key(seed))
    state = optimizer.init(params)
    for step, batch in enumerate(batches(corpus, batch_size=BATCH, start_step=0, stop_step=steps)):
        params, state = update(params, state, batch, step)
    return params


def feature_error(corpus, reference, count):
    """The root mean square error of the context over that of the reference's, on validation examples."""
    ours, theirs = (each.examples(np.arange(count), "validation").context for each in (corpus, reference))
    return float(np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()
    found = [manifest.read(folder) for folder in args.folders]
    corpora = [load_corpus(data_of(each, folder), 0) for each, folder in zip(found, args.folders, strict=True)]
    examples = found[0].count("validation")
    model = ModelConfig(depth=1, hidden=96, head_size=32, patch_size=4, position_tokens=8, position_span=8.0)
    config = Config(model=model, data=data_of(found[0], args.folders[0]), train=TrainConfig(condition_dropout=0.1))
    network = make_backbone(model, corpora[0].shapes)
    measure = make_validation_step(network.apply, ValidationConfig(examples=examples, batch_size=examples))
    trained = train(corpora[0], config, args.steps, 0)
    reference = validation_loss(measure, trained, corpora[0])
    rows = []
    for corpus, each in zip(corpora, found, strict=True):
        recipe = each.facts["recipe"]
        captions = [file["bytes"] for file in each.every_file() if ".captions." in file["name"]]
        own = trained if corpus is corpora[0] else train(corpus, config, args.steps, 0)
        read, learnt = (validation_loss(measure, params, corpus) for params in (trained, own))
        rows.append(
            {
                "features": recipe.get("text_precision") or recipe["precision"],
                "captions_megabytes": round(sum(captions) / 1e6, 2),
                "feature_error": feature_error(corpus, corpora[0], examples),
                "loss": learnt.loss,
                "read_only": paired_difference(read, reference),
                "trained": paired_difference(learnt, reference),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    other = validation_loss(measure, train(corpora[0], config, args.steps, 1), corpora[0])
    rows.append({"features": "another seed", "loss": other.loss, "trained": paired_difference(other, reference)})
    print(json.dumps(rows[-1]))
    print(json.dumps({"validation_images": examples, "training_images": found[0].count("train"), "steps": args.steps}))


if __name__ == "__main__":
    main()
