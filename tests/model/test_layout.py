import jax
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1jax import model
from m1jax.config import ModelConfig
from m1jax.model import LayerPath, Layout, layout
from m1jax.model.layout import stacked


def config_of(kinds):
    return ModelConfig(
        vocab_size=256, hidden=8, ffn=8, num_layers=len(kinds), num_heads=2, num_kv_heads=1, window_num_heads=4,
        window_num_kv_heads=2, window=4, norm_eps=1e-6, init_std=0.02, max_positions=64, pattern=tuple(kinds),
    )  # fmt: skip


GLOBAL, WINDOW = "global", "window"


@pytest.mark.parametrize(
    ("kinds", "cut"),
    [
        ((GLOBAL, WINDOW) * 20, Layout((), (GLOBAL, WINDOW), 20, ())),
        ((GLOBAL,) * 6, Layout((), (GLOBAL,), 6, ())),
        ((GLOBAL, WINDOW), Layout((GLOBAL, WINDOW), (), 0, ())),
        ((WINDOW,), Layout((WINDOW,), (), 0, ())),
        ((GLOBAL, WINDOW, WINDOW) * 3 + (GLOBAL,), Layout((), (GLOBAL, WINDOW, WINDOW), 3, (GLOBAL,))),
        ((GLOBAL,) + (WINDOW,) * 4, Layout((GLOBAL,), (WINDOW,), 4, ())),
    ],
)
def test_known_cuts(kinds, cut):
    assert layout(config_of(kinds)) == cut


@given(st.lists(st.sampled_from([GLOBAL, WINDOW]), min_size=1, max_size=24))
def test_every_layer_has_its_own_place_of_its_kind(kinds):
    cut = layout(config_of(kinds))
    assert cut.num_layers == len(kinds)
    paths = [cut.path(i) for i in range(len(kinds))]
    assert len(set(paths)) == len(kinds)
    by_section = {"prefix": cut.prefix, "periods": cut.period, "suffix": cut.suffix}
    assert [by_section[path.section][int(path.slot)] for path in paths] == kinds
    for slot in range(len(cut.period)):
        stacked = [cut.path(i) for i in cut.layers_of_slot(slot)]
        assert stacked == [LayerPath("periods", str(slot), n) for n in range(cut.repeats)]
    distinct = len(cut.prefix) + len(cut.period) + len(cut.suffix)
    assert distinct <= len(kinds) and (cut.repeats != 1)


@pytest.mark.parametrize("kinds", [(GLOBAL, WINDOW, WINDOW) * 2 + (GLOBAL,), (GLOBAL,) + (WINDOW,) * 3, (WINDOW,)])
def test_a_path_tells_kind_and_stack(kinds):
    """Of a real tree, and of the moments of an optimiser over it: the leading axis is there or is not."""
    config = config_of(kinds)
    cut = layout(config)
    params = model.initialise(config, jax.random.key(0))
    alone = {kind: model.initialise(config_of((kind,)), jax.random.key(0))["prefix"] for kind in set(kinds)}
    shapes = {kind: {leaf.shape for leaf in jax.tree.leaves(tree)} for kind, tree in alone.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = cut.kind_of(path)
        assert kind == path[0].key if path[0].key in ("embed", "head", "norm") else kind in kinds
        if kind in shapes:
            assert (leaf.shape[1:] if stacked(path) else leaf.shape) in shapes[kind]
        assert not stacked(path) or leaf.shape[0] == cut.repeats
    state = optax.adam(1e-3).init(params)
    moments = [stacked(path) for path, _ in jax.tree_util.tree_leaves_with_path(state[0].mu)]
    assert moments == [stacked(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert any(moments) == bool(cut.period)
