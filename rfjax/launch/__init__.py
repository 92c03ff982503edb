"""Runs a study elsewhere: on SLURM, TPU VMs or GKE. Only the command line imports this package."""
