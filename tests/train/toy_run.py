"""A process of a run with a small loss of its own: for tests that kill, freeze and interrupt processes.

python -m tests.train.toy_run FOLDER SECONDS_A_STEP STEPS_A_STAGE SILENCE [HOST:PORT PROCESSES PROCESS]

$TOY_EMERGENCY names a folder for emergency checkpoints: those of FOLDER are rare then.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from m1jax.errors import AGAIN, InterruptedRunError
from m1jax.parallel import mesh as meshes
from m1jax.parallel import processes
from m1jax.train.hooks.journal import Journal
from m1jax.train.loop import fit
from m1jax.train.run.lease import Lease
from m1jax.train.run.liveness import Liveness
from m1jax.train.trainer import Trainer
from tests.train import test_loop


def share(batch, mesh):
    """This process's rows."""
    index, parts = meshes.row_share(mesh)
    return {name: np.split(value, parts)[index] for name, value in batch.items()}


def main(folder, seconds, steps, silence, coordinator="", count="1", index="0"):
    if coordinator:
        processes.start(processes.Processes(coordinator, int(count), int(index)))
    emergency_folder = os.environ.get("TOY_EMERGENCY")
    overrides = {"checkpoint_every": 3}
    if emergency_folder:
        overrides = {"checkpoint_every": 20, "emergency_every": 3, "emergency_folder": emergency_folder}
    overrides["keep_checkpoints"] = 3
    config = test_loop.small_config(Path(folder), **overrides)
    # Two rows of the last stage are too few for four processes.
    stages = tuple(
        dataclasses.replace(stage, global_batch=4, tokens=int(steps) * 4 * stage.row_length) for stage in config.stages
    )
    config = dataclasses.replace(config, stages=stages)
    mesh = meshes.make(config.mesh)

    def batches(first):
        for batch in test_loop.batches_of(config)(first):
            time.sleep(float(seconds))
            yield share(batch, mesh)

    def say(sentence):
        sys.stderr.write(f"{sentence}\n")

    lease = Lease(Path(folder) / "train", say)
    watch = Liveness(Path(folder) / "train", float(silence), lease.release)
    hooks = [lease, watch] if jax.process_index() else [lease, watch, Journal(Path(folder) / "train")]
    try:
        with lease, watch, Trainer(config, test_loop.Bigram(), mesh, hooks=hooks, say=say) as trainer:
            fit(trainer, trainer.restore(), batches)
    except InterruptedRunError as error:
        say(error)
        return AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
