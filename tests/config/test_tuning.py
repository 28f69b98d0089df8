"""What a config says of trained parameters and adapters, checked before anything is compiled."""

import json

import jax
import pytest

from m1jax import model
from m1jax.config import changes, to_dict, tuning
from m1jax.config import file as config_file
from m1jax.errors import UserError


def load(*overrides):
    return config_file.load("quickstart", overrides)


@pytest.mark.parametrize("override", ["model.tie_embeddings=True", "model.num_layers=3", "model.ffn=96"])
def test_names_and_sizes_are_those_of_the_tree(override):
    config = load(override)
    shapes = model.abstract(config.model).shapes
    found = tuning.sizes(config.model)
    assert sum(found.values()) == config.model.num_parameters
    cut = model.layout(config.model)
    exact = {
        name: leaf.size for name in ("embed", "norm", "head") if name in shapes for leaf in [shapes[name]["weight"]]
    }
    exact = {f"{name}/weight": size for name, size in exact.items()}
    for layer in range(config.model.num_layers):
        section, slot, index = cut.path(layer)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes[section][slot]):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            exact[f"layers/{layer}/{name}"] = leaf.size // (1 if index is None else cut.repeats)
    assert found == exact


def test_factors_are_counted():
    config = load("train.lora.rank=3", "train.lora.targets=['k','o','up']", "train.lora.layers=[1,2]")
    lora = config.train.lora
    shapes = model.abstract(config.model, lora=lora).shapes
    shapes = jax.tree_util.tree_leaves_with_path(shapes)
    per_layer = sum(
        leaf.size // leaf.shape[0] for path, leaf in shapes if "'lora'" in str(path) and "'1'" in str(path[:2])
    )
    sizes = tuning.factor_sizes(config.model, lora)
    assert {name.split("/")[1] for name in sizes} == {"1", "2"}
    assert sum(size for name, size in sizes.items() if name.startswith("layers/1/")) == per_layer
    assert tuning.trained_scalars(config.model, lora, ()) == sum(sizes.values())
    assert tuning.trained_scalars(config.model, lora, ["norm"]) == sum(sizes.values()) + config.model.hidden
    assert tuning.trained_scalars(config.model, load().train.lora, ()) == config.model.num_parameters


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.trained=['layers/*/mpl']"], r"train\.trained: 'layers/\*/mpl' matches no .*'layers/\*/mlp'"),
        (["train.trained=['lm_head']"], r"'lm_head' matches no parameter .* 'head'"),
        (["train.trained=['layers/99/mlp']"], r"'layers/99/mlp' matches no parameter"),
        (["train.lora.targets=['q_proj']"], r"must hold q, k, v, .* got 'q_proj': did you mean 'q'"),
        (["train.lora.targets=['W_pack']"], r"got 'W_pack': its parts are q, k and v"),
        (["train.lora.targets=['head']"], r"got 'head': tables have no factors"),
        (["train.lora.targets=['q','q']"], r"names something twice"),
        (["train.lora.targets=[]"], r"train\.lora\.targets must be a non-empty list"),
        (["train.lora.layers=[44]"], r"train\.lora\.layers has 44, but the model has layers 0 to "),
        (["train.lora.rank=2", "train.lora.alpha=0"], r"alpha must be above 0"),
        (["train.lora.rank=-1"], r"rank must be at least 0"),
        (["train.lora.r=8"], r"unknown config key train\.lora\.r: did you mean train\.lora\.rank"),
        (["train.frozen_dtype=float16"], r"frozen_dtype must be one of"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_one_sentence(overrides, words):
    with pytest.raises(UserError, match=words):
        load(*overrides)


def test_a_run_keeps_what_it_trains_but_may_change_the_scale():
    saved = json.loads(json.dumps(to_dict(load("train.lora.rank=4"))))
    for override, said in (
        ("train.lora.rank=8", "train.lora.rank was 4, is 8"),
        ("train.lora.layers=[1]", "train.lora.layers was []"),
        ("train.trained=['norm']", "train.trained was []"),
        ("train.frozen_dtype=bfloat16", "train.frozen_dtype was empty, is bfloat16"),
    ):
        config = load("train.lora.rank=4", override)
        with pytest.raises(UserError, match="another folder, which may begin from this one") as error:
            changes.check(saved, config, 7, amend=True)
        assert said.split(", is")[0] in str(error.value)
    found = changes.check(saved, load("train.lora.rank=4", "train.lora.alpha=1"), 7, amend=True)
    assert found.learned == ["train.lora.alpha was 32.0, is 1.0"]
