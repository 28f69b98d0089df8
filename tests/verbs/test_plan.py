"""`m1 plan` as its user meets it: the program that `m1 train` runs, answers, refusals."""

import hashlib
import json
import math
import pathlib
import types

import pytest

from m1jax import hardware
from m1jax.config import file as config_file
from m1jax.model.cache import row_bytes
from m1jax.objectives import OBJECTIVES
from m1jax.objectives.next_token import NextToken
from m1jax.plan import answers, compiling, topologies
from m1jax.train import program as programs
from m1jax.verbs import main
from m1jax.verbs.train import train

TINY = str(pathlib.Path(__file__).parents[1] / "tiny.py")


class BuiltError(Exception):
    """The program that training was about to run."""


def digest(lowered):
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


class Norms(NextToken):
    """Trains the norms and freezes the rest."""

    def trained(self, path):
        return "norm" in path


@pytest.mark.parametrize("objective", ["next_token", "norms"])
def test_plan_lowers_the_program_that_train_runs(tmp_path, monkeypatch, objective):
    pytest.importorskip("libtpu")
    monkeypatch.setitem(OBJECTIVES, "norms", Norms)
    settings = [f"folder={tmp_path}", "mesh.fsdp=4", "train.accumulation=2", "train.remat=block"]
    if objective == "norms":
        settings += ["objective=norms", "train.average_decay=0.9"]
    config = config_file.load(TINY, [*settings, *(f"stages.{i}.global_batch=16" for i in range(3))])
    build = programs.build

    def caught(*args, **settings):
        raise BuiltError(build(*args, **settings))

    # The program depends on no row: training is followed up to where it has built it.
    monkeypatch.setattr("m1jax.train.trainer.programs.build", caught)
    opened = types.SimpleNamespace(record=dict), None
    monkeypatch.setattr("m1jax.curriculum.opening.open_curriculum", lambda config: opened)
    monkeypatch.setattr("m1jax.curriculum.loader.Loader", lambda *_, **__: None)
    with pytest.raises(BuiltError) as built:
        train(config)
    monkeypatch.setattr("m1jax.train.trainer.programs.build", build)
    trained = built.value.args[0]
    mesh = compiling.mesh_for(config, topologies.parse("v5e:2x4"))
    assert dict(mesh.shape) == dict(trained.mesh.shape)
    planned = compiling.train_program(config, mesh)
    assert (set(planned.state.hooks) == {"average"}) == (objective == "norms") == bool(planned.state.frozen)
    for stage in config.stages[1:]:
        with compiling.lowering(mesh):
            assert digest(planned.lower(stage)) == digest(trained.lower(stage)), stage.name
    assert digest(planned.lower(config.stages[1])) != digest(trained.lower(config.stages[2]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v5p:3x3x3"], "2x2x1, 2x2x2"),
        ([], "--topology"),
        (["--topology", "v5e:2x2", "--set", "mesh.fsdp=3"], "do not make 4 devices"),
        (["--topology", "v5e:4x4"], "16 devices"),
        (["--topology", "v5e:2x2", "--stage", "nowhere"], "general, medical, annealing"),
        (["--topology", "v5e:1x1", "--search", "--price", "v5e=cheap"], "CHIP=NUMBER"),
        (["--topology", "v5e:1x1", "--search", "--price", "h100=2"], "v5e, v5p, v6e, tpu7x"),
        (["--topology", "v5e:1x1", "--search", "--price", "v5p=2"], "no price is given for v5e"),
        (["--topology", "v5e:1x1", "--search", "--decode", "8"], "plans of their own"),
        (["--topology", "v5e:1x1", "--write", "best"], "add --search"),
        (["--topology", "v5e:1x1", "--rl"], "has the objective 'next_token'"),
        (["--topology", "v5e:2x4", "--serve"], "does not divide"),
        (["--topology", "v5e:1x1", "--serve", "--stage", "general"], "leave out --stage and --price"),
        (["--topology", "v5e:1x1", "--rl", "--serve"], "plans of their own"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, capsys):
    pytest.importorskip("libtpu")
    assert main(["plan", "--config", TINY, *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


@pytest.mark.parametrize("option", ["--decode", "--confirm"])
def test_a_number_below_zero_is_one_sentence(option, capsys):
    with pytest.raises(SystemExit) as status:
        main(["plan", "--config", TINY, option, "-2"])
    assert status.value.code == 2 and "whole number" in capsys.readouterr().err


def test_a_batch_that_does_not_divide_says_what_would(capsys):
    """512 rows of 32,768 over 256 devices leave 2 a device, not 8 parts."""
    pytest.importorskip("libtpu")
    assert main(["plan", "--config", "m1_14b", "--topology", "v5p:4x8x8"]) == 2
    message = capsys.readouterr().err
    assert "512 rows" in message and "a train.accumulation that divides 2" in message


def test_a_model_that_fits_nowhere_is_refused_with_the_numbers(capsys):
    assert main(["plan", "--config", "m1_14b", "--topology", "v5e:2x2", "--search"]) == 2
    message = capsys.readouterr().err
    assert "14,470,764,320 parameters" in message and "of 16.0 GiB a device" in message


def test_every_shipped_config_names_the_topology_that_its_mesh_fills():
    found = {}
    for path in sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py")):
        config = config_file.load(str(path))
        found[config.name] = config.hardware.topology
        if config.hardware.topology != "cpu":
            devices = topologies.parse(config.hardware.topology, config.hardware.slices).num_devices
            assert math.prod(config.mesh.shape(devices)) == devices
    assert found == {
        "m1_14b": "v5p:4x4x4",
        "m1_1b5": "v5e:4x4",
        "quickstart": "cpu",
        "m1_14b_lora": "v5e:4x4",
        "m1_14b_sft": "v5p:2x4x4",
        "m1_14b_prefer": "v5p:2x4x4",
        "m1_14b_rl": "v5p:2x2x1",
        "prefer_quickstart": "cpu",
        "rl_quickstart": "cpu",
        "sft_quickstart": "cpu",
        "sft_rounds": "v5p:2x4x4",
    }


@pytest.mark.slow
def test_a_decode_step_is_planned_and_the_second_time_not_compiled(tmp_path, monkeypatch, capsys):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["plan", "--config", TINY, "--topology", "v5e:1x1", "--decode", "2", "--json", "-"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.delattr(compiling, "facts")
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first
    (answer,) = first
    assert answer["fits"] and answer["tokens"] == 2 and "attention reference" in answer["settings"]
    # The caches of both rows and the weights are read once a token.
    assert answer["times"]["hbm"] >= answer["parts"]["weights"] / hardware.TPUS["v5e"].hbm_bandwidth


def test_a_search_writes_a_setting_that_the_config_takes(tmp_path, capsys):
    best, ranked = tmp_path / "best", tmp_path / "ranked.json"
    arguments = ["--topology", "v5p:4x4x4", "--search", "--confirm", "0", "--write", str(best), "--json", str(ranked)]
    assert main(["plan", "--config", "m1_14b", *arguments]) == 0
    config = config_file.load("m1_14b", best.read_text().split())
    found = json.loads(ranked.read_text())
    assert config.mesh.shape(64) == tuple(found[0]["mesh"].values())
    assert (config.train.accumulation, config.train.remat) == (found[0]["accumulation"], found[0]["remat"])
    costs = [entry["cost"] for entry in found]
    assert costs == sorted(costs) and len(costs) > 50


def test_what_is_frozen_and_what_hooks_keep_are_parts_of_the_memory(monkeypatch, tmp_path, capsys):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(OBJECTIVES, "norms", Norms)
    settings = ("objective=norms", "train.average_decay=0.9")
    arguments = ["plan", "--config", TINY, "--topology", "v5e:1x1", "--stage", "general", "--json", "-"]
    assert main([*arguments, *(part for setting in settings for part in ("--set", setting))]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    parts, config = answer["parts"], config_file.load(TINY).model
    norms = (2 * config.num_layers + 1) * config.hidden * 4
    assert parts["parameters"] == parts["average of hooks"] == norms
    assert parts["frozen parameters"] == config.num_parameters * 4 - norms
    assert parts["optimiser"] < 2 * norms + 1000


OTHER_FAULTS = {
    "a batch that does not divide": "stages.2.global_batch=7",
    "rows that were not packed": "stages.2.row_length=96",
    "a warm-up longer than the stage": "stages.2.learning_rate.warmup_steps=600",
    "a domain that is not listed": "stages.2.mixture={'domain:letters':1}",
}


@pytest.mark.parametrize("fault", OTHER_FAULTS.values(), ids=OTHER_FAULTS)
def test_only_the_stage_asked_for_is_checked(fault, monkeypatch, capsys):
    pytest.importorskip("libtpu")
    planned = []

    def compiles(config, stage, *_):
        planned.append(stage.name)
        raise ArithmeticError("it went on to compile")

    monkeypatch.setattr(answers, "train_step", compiles)
    arguments = ["plan", "--config", TINY, "--topology", "v5e:2x4", "--set", fault]
    assert main([*arguments, "--stage", "general"]) == 1
    assert "it went on to compile" in capsys.readouterr().err
    assert main(arguments) == main([*arguments, "--stage", "annealing"]) == 2
    assert "stages.2" in capsys.readouterr().err
    assert planned == ["general"]


def test_an_iteration_of_rewards_is_planned_whole(capsys):
    pytest.importorskip("libtpu")
    tiny = str(pathlib.Path(__file__).with_name("tiny_rl.py"))
    # A file name that names no folder: the plan counts a reward model without reading one.
    settings = ["--set", 'policy.rewards={"model:nowhere": 1.0}', "--stage", "ppo"]
    assert main(["plan", "--config", tiny, "--topology", "v5e:1x1", "--rl", "--json", "-", *settings]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    config, planned = config_file.load(tiny), found["iteration"]
    copies = 4 * config.model.num_parameters
    resident, head = planned["resident"], 4 * (config.model.hidden + 1)
    assert resident["trained parameters"] == copies + head  # with the critic's head
    assert resident["reference, other frozen parameters"] == copies and resident["reward models"] == copies + head
    assert 2 * (copies + head) <= resident["optimiser"] < 2 * (copies + head) + 10_000
    programs = {name: part for part in planned["programs"] for name in [part["name"]]}
    assert len(programs) == 6 and all(part["fits"] for part in planned["programs"]) and planned["fits"]
    steps, scored = programs["steps"], next(part for name, part in programs.items() if "scored" in name)
    assert (steps["own"], steps["beside"]) == (found["hbm"], copies + head) and steps["calls"] == config.policy.steps
    # While rows are scored the optimiser's state and the reward model rest; parameters and reference are its arguments.
    assert scored["beside"] == resident["optimiser"] + copies + head
    slots = next(part for name, part in programs.items() if "slots" in name)
    assert slots["calls"] * config.policy.slots == planned["sampled_tokens"] == 4 * 4 * 8
    assert slots["beside"] >= 5 * copies + head and slots["own"] > resident["sampler's copy, while it samples"]


def test_what_a_server_holds_is_what_fits_beside_the_weights(monkeypatch, capsys):
    pytest.importorskip("libtpu")
    # A device with little memory, so that few rows fill it and the programs are small.
    monkeypatch.setattr(topologies.Topology, "hbm_per_device", 24 << 20)
    assert main(["plan", "--config", TINY, "--topology", "v5e:1x1", "--serve", "--json", "-"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    model = config_file.load(TINY).model
    assert found["context"] == 512 and found["rows"] > 4
    # Few more rows would fit: their number is found by a line through what one program needs.
    assert 0.8 * found["limit"] < found["used"] <= found["limit"] < 24 << 20
    assert found["cache"] / found["rows"] > row_bytes(model, 512)
    assert found["weights"] == pytest.approx(4 * model.num_parameters, rel=0.01)
    assert found["tokens_per_second"] == pytest.approx(
        found["rows"] / max(found["token"][part] for part in ("compute", "hbm", "ici", "dcn"))
    )
    monkeypatch.setattr(topologies.Topology, "hbm_per_device", 1 << 20)
    assert main(["plan", "--config", TINY, "--topology", "v5e:1x1", "--serve"]) == 2
    assert "has no room for one conversation of 512 tokens" in capsys.readouterr().err
