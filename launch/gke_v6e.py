"""Spot slices of 256 TPU v6e chips on a GKE cluster with JobSet; each point of the study gets a slice.

Give --image and --volume, or fill them in a copy of this file. If the volume is a bucket, give --service-account, too.
"""

from ml_collections import ConfigDict


def get_site():
    return ConfigDict(
        {
            "on": "gke",
            "accelerator": "v6e-256",
            "spot": True,
            "image": None,  # a container with rfjax and jax[tpu]
            "volume": None,  # "pvc:CLAIM" or "gs://BUCKET"
        }
    )
