"""Running a study elsewhere: SLURM, TPU VMs, GKE. Only the command line knows this package."""
