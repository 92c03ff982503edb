"""The core as a library: corpus, network, objective, a loop of optax, paired validation loss: minimal.py [STEPS]"""

import sys

import jax
import jax.numpy as jnp
import optax

from rfjax.config import Config, DataConfig, ModelConfig, TrainConfig, ValidationConfig
from rfjax.data.corpus import load_corpus
from rfjax.data.loader import batches
from rfjax.evaluation.validation import make_validation_step, validation_loss
from rfjax.models.backbone import make_backbone
from rfjax.training.loss import make_loss

STEPS, BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 300, 32
model = ModelConfig(depth=2, hidden=64, head_size=32, patch_size=4, position_tokens=4, position_span=4.0)
config = Config(model=model, data=DataConfig(corpus="shapes"), train=TrainConfig(condition_dropout=0.1))
corpus = load_corpus(config.data, config.seed)
network = make_backbone(config.model, corpus.shapes)  # init(key) -> params; apply(params, z, t, context, pooled)
loss = make_loss(config, network.apply, corpus.shapes.encoders)  # config.formulation: rectified flow, logit-normal t
optimizer = optax.adamw(2e-3, weight_decay=0.0)


@jax.jit
def update(params, state, batch, step):
    (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, step, jnp.arange(BATCH))
    changes, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, changes), state, value


params = network.init(jax.random.key(config.seed))
state = optimizer.init(params)
measure = make_validation_step(network.apply, ValidationConfig(examples=128, batch_size=64))
print(f"step 0: validation loss {validation_loss(measure, params, corpus).loss:.4f}")
for step, batch in enumerate(batches(corpus, batch_size=BATCH, start_step=0, stop_step=STEPS)):
    params, state, value = update(params, state, batch, step)
found = validation_loss(measure, params, corpus)
print(f"step {STEPS}: training loss {value:.4f}, validation loss {found.loss:.4f} ± {1.96 * found.stderr:.4f}")
