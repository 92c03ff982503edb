"""Preference tuning of every size of a finished study of shapes: does the law survive it?

    rfjax tune runs/shapes_hour --workdir runs/preference --config=preference

DiffusionNFT with the graded reward of GenEval's rules. A size of up to 5M parameters takes about eight minutes on two
CPU cores. `--method dpo` tunes by pairs instead, in another --workdir. The held-out reward and diversity are measured
without guidance, too, and the last checkpoint gets the study's own evaluations.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "method": "nft",
            "reward": "geneval_graded",
            "held_out_reward": "geneval",
            "steps": 150,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "lora": {"rank": 32},
            "rollout": {
                "prompts": 48,
                "images_per_prompt": 8,
                "steps_per_round": 10,
                "sampler_steps": 10,
                "guidance_scale": 1.0,  # as in DiffusionNFT: guidance is learnt, not applied
            },
            "nft": {"keep_growth": 0.0},
            "dpo": {"beta": 500.0},
            "watch": {"prompts_per_task": 20, "images_per_prompt": 4},
        }
    )
