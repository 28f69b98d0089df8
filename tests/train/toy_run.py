"""A process of a run with a small loss of its own: for tests that kill, freeze and interrupt processes.

python -m tests.train.toy_run FOLDER SECONDS_A_STEP STEPS_A_STAGE SILENCE [HOST:PORT PROCESSES PROCESS]

$TOY_EMERGENCY names a folder for emergency checkpoints: those of FOLDER are rare then.
"""

import dataclasses
import functools
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from m1jax.config import to_dict
from m1jax.errors import AGAIN, InterruptedRunError
from m1jax.parallel import mesh as meshes
from m1jax.parallel import processes
from m1jax.train.checkpoint.checkpoints import Checkpoints, Meta
from m1jax.train.checkpoint.emergency import EmergencyCheckpoints
from m1jax.train.hooks.journal import Journal
from m1jax.train.loop import fit
from m1jax.train.run.liveness import Liveness
from tests.train import test_loop


def share(batch, mesh):
    """This process's rows."""
    index, parts = meshes.row_share(mesh)
    return {name: np.split(value, parts)[index] for name, value in batch.items()}


def main(folder, seconds, steps, silence, coordinator="", count="1", index="0"):
    if coordinator:
        processes.start(processes.Processes(coordinator, int(count), int(index)))
    emergency_folder = os.environ.get("TOY_EMERGENCY")
    overrides = {"checkpoint_every": 20, "emergency_every": 3} if emergency_folder else {"checkpoint_every": 3}
    overrides["keep_checkpoints"] = 3
    config = test_loop.small_config(Path(folder), **overrides)
    # Two rows of the last stage are too few for four processes.
    stages = tuple(
        dataclasses.replace(stage, global_batch=4, tokens=int(steps) * 4 * stage.row_length) for stage in config.stages
    )
    config = dataclasses.replace(config, stages=stages)
    mesh = meshes.make(config.mesh)
    journals = []

    def batches(first):
        for batch in test_loop.batches_of(config)(first):
            time.sleep(float(seconds))
            yield share(batch, mesh)

    def record(journal, report):
        journal.write(report.step, report.stage, {"loss": report.loss})

    def say(sentence):
        sys.stderr.write(f"{sentence}\n")

    def on_start(first, saved):
        if jax.process_index():
            return [watch]
        journals.append(Journal(Path(folder) / "train", first))
        return [watch, functools.partial(record, journals[0])]

    try:
        with Liveness(Path(folder) / "train", float(silence)) as watch:
            checkpoints = Checkpoints(config.checkpoints, config.train.keep_checkpoints)
            emergency = None
            if emergency_folder:
                emergency = EmergencyCheckpoints(Path(emergency_folder), checkpoints, say)
            fit(
                config,
                mesh=mesh,
                init_params=test_loop.init_params,
                params_axes=test_loop.AXES,
                loss_fn=test_loop.bigram_loss,
                batches=batches,
                checkpoints=checkpoints,
                emergency=emergency,
                meta=Meta(run=to_dict(config), curriculum={}, versions={}),
                on_start=on_start,
                say=say,
            )
            if emergency:
                emergency.close()
            checkpoints.close()
    except InterruptedRunError as error:
        sys.stderr.write(f"{error}\n")
        checkpoints.close()
        return AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
