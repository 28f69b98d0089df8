"""Programs of reduced width and depth whose memory the compiler has told, and the command that asks it again.

`python -m tests.plan.memory_cases` compiles all of them and writes memory_cases.json.
"""

import itertools
import json
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from m1jax import config_file
from m1jax.plan import chips, compiling

FILE = pathlib.Path(__file__).with_suffix(".json")
TOPOLOGY = "v5e:2x2"
# hidden, ffn, layers, fsdp, tensor, context, accumulation, remat, rows of the batch
FITTED = (
    (2560, 8704, 12, 4, 1, 1, 1, "block", 8),
    (1024, 4096, 16, 2, 2, 1, 2, "dots", 16),
    (2560, 6144, 10, 1, 2, 2, 4, "block", 16),
    (1024, 4096, 12, 4, 1, 1, 2, "none", 16),
)
HELD_BACK = (
    (2560, 8704, 12, 4, 1, 1, 2, "block", 16),
    (2560, 6144, 16, 4, 1, 1, 1, "block", 16),
    (1024, 4096, 20, 4, 1, 1, 1, "dots", 8),
    (2560, 8704, 10, 2, 2, 1, 1, "block", 8),
    (2560, 8704, 12, 2, 1, 2, 2, "block", 8),
    (1024, 6144, 12, 1, 4, 1, 1, "block", 8),
    (2560, 6144, 12, 4, 1, 1, 4, "dots", 16),
    (1024, 4096, 24, 2, 2, 1, 1, "block", 16),
    (2560, 4096, 10, 2, 1, 2, 1, "dots", 8),
    (1024, 8704, 12, 4, 1, 1, 1, "none", 4),
    (2560, 6144, 12, 1, 2, 2, 2, "dots", 8),
    (1024, 6144, 16, 4, 1, 1, 8, "block", 64),
)
CASES = (*FITTED, *HELD_BACK)


def name(case):
    return "-".join(map(str, case))


def config(case):
    hidden, ffn, layers, fsdp, tensor, context, accumulation, remat, rows = case
    sizes = {
        "model": {
            "hidden": hidden, "ffn": ffn, "num_layers": layers, "num_heads": hidden // 256, "num_kv_heads": 2,
            "window_num_heads": hidden // 128, "window_num_kv_heads": 4, "window": 1024,
            "vocab_size": 32768, "max_positions": 2048,
        },
        "data": {"vocab_size": 32768, "general_vocab_size": 0, "row_lengths": [2048]},
        "mesh": {"fsdp": fsdp, "tensor": tensor, "context": context},
        "train": {"accumulation": accumulation, "remat": repr(remat), "loss_chunk": 4096},
    }  # fmt: skip
    changes = [f"{group}.{key}={value}" for group, keys in sizes.items() for key, value in keys.items()]
    stages = [
        f"stages.{i}.{key}={value}"
        for i, (key, value) in itertools.product(range(3), (("row_length", 2048), ("global_batch", rows)))
    ]
    return config_file.load("m1_14b", [*changes, *stages])


def compiled(case):
    """What the compiler says: total bytes of HBM of one device."""
    run, topology = config(case), chips.parse(TOPOLOGY)
    mesh = compiling.mesh_for(run, topology)
    program = compiling.train_program(run, mesh)
    with compiling.lowering(mesh):
        lowered = program.lower(run.stages[0])
    mark = compiling.fingerprint(lowered, topology)
    facts = compiling.cached(mark) or compiling.facts(lowered, mark, mesh, topology, program.state.params)
    return {"hbm": facts.hbm, "arguments": facts.arguments, "temporaries": facts.temporaries, "code": facts.code}


def main():
    found = {"compiler": compiling.compiler(), "topology": TOPOLOGY, "cases": {}}
    for case in CASES:
        try:
            found["cases"][name(case)] = compiled(case)
        except compiling.TooLargeError as error:
            found["cases"][name(case)] = {"too large": str(error)}
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
