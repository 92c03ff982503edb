"""A SLURM cluster of nodes with eight H100s, each node given to one job as a whole.

Give --partition and --setup, or fill them in a copy of this file; and --account where the cluster wants one.
"""

from ml_collections import ConfigDict


def get_site():
    return ConfigDict(
        {
            "on": "slurm",
            "partition": None,
            "setup": None,  # what makes `rfjax` and CUDA available, as "module load cuda; . ~/rfjax/bin/activate"
            "gpus_per_node": 8,
            "time": "1-00",
            "sbatch": ["--exclusive"],  # processors and memory, too
        }
    )
