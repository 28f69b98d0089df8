"""The operator's side of a launch: Python's standard library, gcloud or xpk, and nothing else."""
