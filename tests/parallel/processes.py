"""One of several processes of a run: takes the steps of tests/parallel/toy.py and writes their losses.

python -m tests.parallel.processes COORDINATOR COUNT INDEX DEVICES MESH FOLDER
"""

import json
import os
import sys

coordinator, count, index, devices, sizes, folder = sys.argv[1:]
os.environ["JAX_PLATFORMS"] = "cpu"
# What the tests chose for all programs holds here too; of two numbers of devices, the last counts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
os.environ["NPROC"] = str(64 * int(devices))  # threads: with too few, devices wait for each other for ever

from jax._src.distributed import global_state  # noqa: E402

from m1jax.config import MeshConfig  # noqa: E402
from m1jax.parallel import mesh as meshes  # noqa: E402
from m1jax.parallel import processes  # noqa: E402
from m1jax.train.feed import Feed  # noqa: E402
from tests.parallel import toy  # noqa: E402

STEPS = 3


def main():
    if int(count) > 1:  # one alone needs no sockets between its devices
        processes.start(processes.Processes(coordinator, int(count), int(index)))
    mesh = meshes.make(MeshConfig(**json.loads(sizes)))
    share, shares = meshes.row_share(mesh)
    rows = toy.ROWS // shares

    def batches():
        for step in range(STEPS):
            yield {name: value[share * rows : (share + 1) * rows] for name, value in toy.batch(step).items()}

    run = toy.config()
    built = toy.program(run, mesh)
    state, feed, losses = toy.state(built, run), Feed(batches(), mesh), []
    step = built.step.lower(*built.arguments(toy.ROWS, toy.LENGTH)).compile()
    if int(count) > 1:
        # Gloo gives the others 30 seconds to come to a first collective: on a busy machine they compile longer.
        global_state.client.wait_at_barrier("compiled", 600_000)
    for _ in range(STEPS):
        state, metrics = step(state, feed.take().device, toy.SCALARS)
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    with open(os.path.join(folder, f"{index}.json"), "w") as file:
        json.dump(losses, file)


if __name__ == "__main__":
    main()
