"""The training step, the loop around it, its checkpoints and its reports."""
