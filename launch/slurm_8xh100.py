"""A SLURM cluster of nodes with eight H100s, each node given to one job as a whole.

Give --partition and --setup, or fill them in a copy of this file. If the cluster asks for an account, give --account.
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
            "sbatch": ["--exclusive"],  # the job also gets all processors and all memory of its nodes
        }
    )
