"""What is held to a contract: a config, what is changed in it, the chips, and whether it is compiled or lowered."""

import dataclasses
import json
import pathlib

import jax

from m1jax.config import file as config_file
from m1jax.plan import compiling, contracts, topologies

FOLDER = pathlib.Path(__file__).parent
# Narrow and shallow, so that a compilation is short, but deep enough to be a loop over periods, with the head_dim of
# the 14B's two layer kinds (256 on global layers, 128 on window layers) and several query heads to a KV head.
SMALL = (
    "model.hidden=1024",
    "model.ffn=2048",
    "model.num_layers=12",
    "model.vocab_size=4096",
    "model.window=512",
    "model.num_heads=4",
    "model.window_num_heads=8",
    "model.window_num_kv_heads=4",
    "model.max_positions=2048",
    "data.vocab_size=4096",
    "data.vocab_parts=[]",
    "data.row_lengths=[1024,2048]",
    "train.loss_chunk=4096",
    "train.accumulation=2",
    *(f"stages.{i}.row_length={length}" for i, length in enumerate((1024, 1024, 2048))),
    *(f"stages.{i}.global_batch={rows}" for i, rows in enumerate((32, 32, 16))),
)


@dataclasses.dataclass(frozen=True)
class Case:
    config: str
    stage: str
    topology: str = ""
    slices: int = 1
    overrides: tuple[str, ...] = ()
    compiled: str = ""
    """"always", "moved" (where the lowered program, the compiler or its flags are not those agreed) or "" (never)."""

    def run(self):
        return config_file.load(self.config, self.overrides)

    def lower(self):
        """(lowered program, its mesh, its topology, its parameters)."""
        run = self.run()
        topology = topologies.parse(self.topology or run.hardware.topology, self.slices)
        mesh = compiling.mesh_for(run, topology)
        program = compiling.train_program(run, mesh)
        with compiling.lowering(mesh):
            return program.lower(compiling.stage_named(run, self.stage)), mesh, topology, program.state.params


CASES = {
    "m1_14b_8k": Case("m1_14b", "general"),
    "m1_14b_32k": Case("m1_14b", "annealing"),
    "m1_1b5_8k": Case("m1_1b5", "general"),
    "m1_14b_sft": Case("m1_14b_sft", "long"),
    "m1_14b_lora": Case("m1_14b_lora", "sft"),
    "m1_14b_prefer": Case("m1_14b_prefer", "preferences"),
    "m1_14b_rl": Case("m1_14b_rl", "ppo"),
    "quickstart": Case("quickstart", "general", "v5e:1x1", overrides=("model.attention=pallas_tpu",)),
    "small_v5e_fsdp": Case("m1_14b", "general", "v5e:2x2", overrides=(*SMALL, "mesh.fsdp=4"), compiled="always"),
    "small_v5p_context": Case(
        "m1_14b",
        "annealing",
        "v5p:2x2x1",
        overrides=(*SMALL, "mesh.fsdp=2", "mesh.context=2"),
        compiled="always",
    ),
}


def path(name):
    return FOLDER / f"{name}.json"


def shown(lowered, topology):
    return contracts.lowered(lowered.as_text(), compiling.fingerprint(lowered, topology))


def measure(name, agreed=None):
    """The contract that the program meets now; compiled, where the case says so, unless it is the one agreed."""
    case = CASES[name]
    lowered, mesh, topology, params = case.lower()
    now = shown(lowered, topology)
    moved = agreed is None or agreed.lowered.fingerprint != now.fingerprint
    if case.compiled == "always" or (case.compiled == "moved" and moved):
        facts = compiling.facts(lowered, now.fingerprint, mesh, topology, params)
        return contracts.compiled(now, compiling.compiler(), facts)
    return contracts.Contract(now, compiling.compiler())


def write(name, contract):
    path(name).write_text(json.dumps(dataclasses.asdict(contract), indent=1) + "\n", encoding="utf-8")


def attention_calls(run):
    """The fewest calls of the forward kernel in a lowered step: one a layer kind, two where remat runs it again.

    Layers of a kind may share one function of the program's text.
    """
    return len(set(run.model.layer_kinds)) * (2 if run.train.remat in ("block", "offload") else 1)


jax.config.update("jax_platforms", "cpu")
