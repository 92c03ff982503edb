"""Spot slices of 128 TPU v5p chips (256 TensorCores) as TPU VMs; each point of the study gets a slice.

Give --setup, and a --zone in which you have quota, or fill them in a copy of this file. The project is the one that
gcloud is set to.
"""

from ml_collections import ConfigDict


def get_site():
    return ConfigDict(
        {
            "on": "tpu-vm",
            "accelerator": "v5p-256",
            "spot": True,
            "zone": None,
            "storage": "/mnt/rfjax",
            # what mounts the storage and makes `rfjax` available, as
            # "mountpoint -q /mnt/rfjax || gcsfuse --implicit-dirs BUCKET /mnt/rfjax; . ~/rfjax/bin/activate"
            "setup": None,
        }
    )
