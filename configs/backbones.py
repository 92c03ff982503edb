"""MM-DiT against DiT, CrossDiT and U-ViT (SD3 section 5.2.3), everything else fixed; small enough for a CPU.

The paper does not say what was held equal, so each contender runs twice: with about the reference's parameters, and
with about its FLOPs. `mmdit` is the reference: two blocks of 4 heads. The contenders have as many blocks and heads, and
the hidden sizes that `rfjax.models.equal_size` finds (`HIDDEN`; docs/backbones.md has the mismatches). `dit_class` sees
the pooled text alone. Training is that of the shipped config `shapes`, the sizes of the scenes are those of `digits`,
and the variants are ranked as in `formulations`.
"""

from rfjax.config_files import load_file

shapes, digits = load_file("shapes"), load_file("digits")

REFERENCE = {"model.depth": 2, "model.hidden": 128, "model.head_size": 32}
HEADS = 4
CONTENDERS = {
    "mmdit3": {"model.weight_sets": 3, "model.first_text_tokens": 8},  # of 16 text tokens
    "dit": {"model.backbone": "dit"},
    "dit_class": {"model.backbone": "dit_class"},
    "crossdit": {"model.backbone": "crossdit"},
    "uvit": {"model.backbone": "uvit"},
}
PARAMETERS = {"mmdit3": 112, "dit": 160, "dit_class": 164, "crossdit": 156, "uvit": 124}
HIDDEN = {
    "shapes": {
        "parameters": PARAMETERS,
        "flops": {"mmdit3": 128, "dit": 128, "dit_class": 168, "crossdit": 140, "uvit": 64},
    },
    "digits": {
        "parameters": PARAMETERS,
        "flops": {"mmdit3": 128, "dit": 128, "dit_class": 156, "crossdit": 136, "uvit": 60},
    },
}


def get_config():
    config = shapes.get_config()
    config.name = "backbones"
    config.model.update({"depth": 2, "hidden": 128, "head_size": 32})
    config.evaluation.geneval = {"prompts_per_task": 0}
    config.evaluation.ranking = {"prompts_per_task": 24, "images_per_prompt": 1, "batch_size": 144}
    return config


def points():
    made = {}
    for corpus, sides in digits.CORPORA.items():
        common = {"data.corpus": corpus, **sides, **REFERENCE}
        made[f"{corpus}-mmdit"] = common
        for by, sizes in HIDDEN[corpus].items():
            for name, hidden in sizes.items():
                heads = {"model.hidden": hidden, "model.head_size": hidden // HEADS}
                made[f"{corpus}-{name}-{by}"] = common | CONTENDERS[name] | heads
    return made
