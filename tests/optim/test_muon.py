import dataclasses

import jax
import numpy as np
import pytest

from m1jax import model
from m1jax.config import OptimizerConfig
from m1jax.optim.adamw import adamw
from m1jax.optim.muon import muon
from tests.model import small

SETTINGS = OptimizerConfig(eps=1e-8, name="muon", weight_decay=0.0)
CONFIG = small.config(num_layers=6)


def gradients(seed):
    rng = np.random.default_rng(seed)
    shapes = model.abstract(CONFIG).shapes
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def updates_of(rule, trees):
    state = rule.init(trees[0])
    for tree in trees:
        found, state = rule.update(tree, state, trees[0])  # without decay, the values of parameters do not matter
    return jax.tree.map(np.asarray, found)


def matrices(tree):
    """Every matrix of every layer as (inputs, outputs), written out from the shapes that the layers document."""
    hidden = CONFIG.hidden
    for slot in tree["periods"].values():
        for name in ("q_proj", "k_proj", "v_proj"):
            yield from slot["attention"][name].reshape(3, hidden, -1)
        yield from slot["attention"]["o_proj"].reshape(3, -1, hidden)
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield from slot["mlp"][name]


def test_each_matrix_of_each_layer_is_made_orthogonal_by_itself():
    trees = [gradients(seed) for seed in range(3)]
    found = list(matrices(updates_of(muon(SETTINGS), trees)))
    assert len(found) == 2 * 7 * 3
    for given, update in zip(zip(*(matrices(tree) for tree in trees), strict=True), found, strict=True):
        momentum = np.zeros(update.shape)
        for gradient in given:
            momentum = 0.95 * momentum + 0.05 * gradient
        # Nesterov's: the average of the next step, as far as it is known; optax corrects both for their start at 0.
        looked_ahead = 0.95 * momentum / (1 - 0.95**4) + 0.05 * given[-1] / (1 - 0.95**3)
        left, values, right = np.linalg.svd(looked_ahead, full_matrices=False)
        values = values / np.sqrt((values**2).sum())
        for _ in range(5):  # the quintic of Jordan et al., on singular values
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        expected = 0.2 * np.sqrt(max(update.shape)) * (left * values) @ right
        np.testing.assert_allclose(update, expected, atol=2e-5)


def test_updates_are_those_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = rng.normal(size=(24, 16)).astype(np.float32)
    weight = torch.nn.Parameter(torch.tensor(start.T))  # (outputs, inputs)
    reference = torch.optim.Muon([weight], lr=0.02, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    rule = muon(dataclasses.replace(SETTINGS, weight_decay=0.3))
    params = {"mlp": {"down_proj": start}}
    state = rule.init(params)
    for _ in range(4):
        gradient = rng.normal(size=start.shape).astype(np.float32)
        updates, state = rule.update({"mlp": {"down_proj": gradient}}, state, params)
        params = jax.tree.map(lambda p, u: p - 0.02 * u, params, updates)
        weight.grad = torch.tensor(gradient.T)
        reference.step()
    moved = params["mlp"]["down_proj"] - start
    expected = weight.detach().numpy().T - start
    # torch iterates in bfloat16 and does not correct the momentum for its start.
    assert np.linalg.norm(moved - expected) < 0.05 * np.linalg.norm(expected)


def test_a_layers_update_depends_on_its_own_gradient_and_not_on_its_size():
    tree = gradients(0)
    changed = jax.tree.map(np.copy, tree)
    projection = changed["periods"]["1"]["mlp"]["up_proj"]
    projection[0] *= 8
    projection[2] = projection[2][::-1]
    before, after = (updates_of(muon(SETTINGS), [t])["periods"]["1"]["mlp"]["up_proj"] for t in (tree, changed))
    np.testing.assert_allclose(after[:2], before[:2], rtol=1e-4, atol=1e-5)
    assert np.abs(after[2] - before[2]).max() > 0.1


def test_the_rest_is_adamws():
    trees = [gradients(seed) for seed in range(2)]
    found, expected = (updates_of(rule(SETTINGS), trees) for rule in (muon, adamw))
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        assert np.array_equal(leaf, other) != ("proj" in name), name
