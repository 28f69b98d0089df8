import numpy as np
import pytest

from m1jax.config import file as config_file
from m1jax.config import to_dict
from m1jax.config.stages import blend, easy_first
from m1jax.errors import UserError
from m1jax.optim.schedules import learning_rate, segment
from tests.tiny import get_config


def build(*stages, **data):
    tree = get_config().to_dict()
    tree["stages"] = stages
    tree["data"].update(data)
    return config_file.from_dict(tree)


def last_stage(**changes):
    return {**get_config().to_dict()["stages"][2], "tokens": 12 * 1024 + 5, **changes}


def test_a_blend_goes_from_one_mixture_to_the_other_on_one_curve():
    stage = last_stage(mixture={"a": 3, "b": 1}, ramp={"start": 4, "increment": 4, "tokens": 512})
    whole = build(stage)
    parts = build(*blend(stage, {"a": 0.25, "c": 0.75}, 4)).stages
    assert [part.name for part in parts] == [f"annealing.{i}" for i in (1, 2, 3, 4)]
    assert [dict(part.mixture) for part in (parts[0], parts[-1])] == [
        {"a": 0.75, "b": 0.25, "c": 0},
        {"a": 0.25, "b": 0, "c": 0.75},
    ]
    assert parts[1].mixture == pytest.approx({"a": 0.75 - 0.5 / 3, "b": 0.25 * 2 / 3, "c": 0.25})
    assert sum(part.tokens for part in parts) == whole.stages[0].tokens
    assert [part.ramp.start for part in parts] == [4, 0, 0, 0]
    config = build(*blend(stage, {"c": 1.0}, 4))
    rate, curve = learning_rate(config), segment(whole.stages[0].learning_rate, config.total_steps)
    np.testing.assert_allclose([rate(i) for i in range(16)], [curve(i) for i in range(16)], rtol=1e-6)


def test_easy_first_reads_each_part_of_the_range_once():
    parts = build(*easy_first(last_stage(), 3)).stages
    assert [part.difficulty for part in parts] == [(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]
    parts = build(*easy_first(last_stage(difficulty=(0.5, 1.0)), 2)).stages
    assert [part.difficulty for part in parts] == [(0.5, 0.75), (0.75, 1.0)]


def test_what_a_stage_may_not_be():
    first = get_config().to_dict()["stages"][0]
    rate = {"start": 1e-3, "end": 1e-3, "goes_on": True}
    ramp = {"start": 2, "increment": 2, "tokens": 512}
    for changes, words in (
        ({"difficulty": (0.5, 0.5)}, "difficulty must be .low, high."),
        ({"difficulty": (0.5, 0.6, 0.7)}, "difficulty must be .low, high."),
        ({"ramp": {**ramp, "start": 8}}, "ramp must have start below global_batch = 8"),
        ({"ramp": {**ramp, "increment": 0}}, "increment and tokens above 0, got 2, 0 and 512"),
        ({"ramp": {**ramp, "tokens": 10**9}}, "ramp.tokens = 1000000000 leaves no step of 8 rows"),
        ({"learning_rate": rate}, "learning_rate.goes_on is True, but the stage before has other values"),
    ):
        with pytest.raises(UserError, match=f"stages.1.{words}|{words}"):
            build(first, last_stage(**changes))
    with pytest.raises(UserError, match=r"learning_rate\.goes_on is True"):
        build(last_stage(learning_rate=rate))
    with pytest.raises(UserError, match=r"max_epochs\.x must be above 0"):
        build(first, max_epochs={"x": 0})


def test_a_config_with_all_of_it_comes_back_from_json():
    ramp = {"start": 2, "increment": 2, "tokens": 512}
    config = build(last_stage(ramp=ramp, difficulty=(0.0, 0.5)), max_epochs={"*": 4, "domain:medical": 10})
    assert config_file.from_dict(to_dict(config)) == config
    assert config_file.from_dict(to_dict(build(last_stage()))).data.max_epochs == {}


def test_the_14b_stages_are_the_reports():
    stages = config_file.load("m1_14b").stages
    assert [stage.tokens for stage in stages] == [12 * 10**12, 6 * 10**12, 2 * 10**12]
    assert [stage.row_length for stage in stages] == [8192, 8192, 32_768]
    assert {stage.row_length * stage.global_batch for stage in stages} == {2**24}
    assert [stage.rope_base for stage in stages] == [1e5, 1e5, 1e6]
    assert not any(stage.ramp.start for stage in stages)
    rates = [stage.learning_rate for stage in stages]
    assert [(rate.start, rate.end, rate.shape, rate.warmup_steps) for rate in rates] == [
        (4e-4, 4e-4, "constant", 2000),
        (4e-4, 4e-4, "constant", 0),
        (4e-4, 2e-5, "cosine", 0),
    ]
