"""Configs of diffusers' schedulers, as files."""

import json

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.15}


def scheduler(tmp_path, **changes):
    """The path of a scheduler's config with these changes; a value `...` leaves a key out."""
    path = tmp_path / "scheduler_config.json"
    content = {key: value for key, value in (EULER | changes).items() if value is not ...}
    path.write_text(json.dumps(content))
    return path
