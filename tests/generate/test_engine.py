import dataclasses
import functools

import jax
import numpy as np
import pytest

from m1jax import model
from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.generate import LanguageModel, session
from m1jax.parallel import mesh as meshes
from tests.generate.uncached import CONFIG, greedy, language_model, parameters
from tests.model import small

PROMPTS = [[1, 2, 3], list(range(40, 61)), [9]]


def test_logits_are_those_of_the_decoder_for_one_row_and_for_several():
    graphdef = model.abstract(CONFIG).graphdef
    rows = np.asarray(small.tokens(0, 2, 9))
    want = small.logits(graphdef, parameters(), rows)
    np.testing.assert_allclose(language_model()(rows), want, atol=5e-5)
    np.testing.assert_allclose(language_model()(rows[1].tolist()), want[1], atol=5e-5)


BFLOAT16 = {"normalize_head": False, "compute_dtype": "bfloat16"}


@pytest.mark.parametrize("head", [{"tie_embeddings": True}, BFLOAT16, {"tie_embeddings": True, **BFLOAT16}])
def test_what_is_prepared_once_changes_no_logit(head):
    config = small.config(num_layers=2, **head)
    graphdef, params = model.create(config, 0)
    rows = np.asarray(small.tokens(0, 1, 9))
    prepared = LanguageModel(config, small.BASE, params)
    np.testing.assert_allclose(prepared(rows), small.logits(graphdef, params, rows), atol=5e-5)
    narrow = prepared._prepared.parameters["prefix"]["0"]
    assert narrow["mlp"]["up_proj"].dtype == config.compute_dtype
    assert narrow["input_norm"]["weight"].dtype == narrow["attention"]["conv_k"].dtype == np.float32


def test_parameters_of_numpy_are_as_good_as_those_of_a_device():
    arrays = jax.tree.map(np.asarray, parameters())
    model_ = LanguageModel(CONFIG, small.BASE, arrays)
    assert model_.generate(PROMPTS[0], 5) == language_model().generate(PROMPTS[0], 5)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model_._prepared.parameters))


@pytest.mark.parametrize("chunk", [512, 16])
def test_greedy_tokens_equal_the_uncached_ones_past_the_window(chunk, monkeypatch):
    """A batch of prompts of different lengths, prefilled at once and in chunks, 20 tokens with a window of 5."""
    monkeypatch.setattr(session, "CHUNK", chunk)
    together = language_model().generate(PROMPTS, 20)
    assert together == [greedy(prompt, 20) for prompt in PROMPTS]
    assert language_model().generate(PROMPTS[1], 20) == together[1]
    assert list(language_model().stream(PROMPTS[1], 20)) == together[1]


def test_generations_longer_than_one_call_of_the_device_and_than_their_room(monkeypatch):
    monkeypatch.setattr(session, "_ROOM_AHEAD", 4)
    count = session.ROOM + 20
    assert language_model().generate(PROMPTS[1], count) == greedy(PROMPTS[1], count)


def test_a_row_ends_with_one_of_the_end_tokens_and_the_others_go_on():
    free = language_model().generate(PROMPTS, 12)
    ends = free[0][4], free[1][7]
    stopped = language_model().generate(PROMPTS, 12, eos_id=ends)

    def until_end(row):
        return row[: next((i + 1 for i, token in enumerate(row) if token in ends), 12)]

    assert stopped == [until_end(row) for row in free]
    assert len(stopped[0]) < 12 and len(stopped[1]) < 12
    assert language_model().generate(PROMPTS[0], 12, eos_id=ends[0]) == stopped[0]


def test_a_seed_reproduces_its_tokens_and_another_does_not():
    draw = functools.partial(language_model().generate, PROMPTS, 16, temperature=1.5, top_k=100, top_p=0.95)
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert all(len(row) == 16 for row in draw(seed=1))


def test_a_row_draws_the_same_beside_any_others_in_any_pieces():
    settings = {"temperature": 1.2, "repetition_penalty": 1.3, "min_p": 0.02, "seed": 3}
    (row, second, _) = language_model().generate(PROMPTS, 12, **settings)
    others = [PROMPTS[0], [7] * 30, [200, 8]]
    assert language_model().generate(others, 12, **settings)[0] == row
    assert language_model().generate(PROMPTS[0], 12, **settings) == row
    assert list(language_model().stream(PROMPTS[0], 12, **settings)) == row
    greedy_second = language_model().generate(PROMPTS, 12, **(settings | {"temperature": [1.2, 0.0, 5.0]}))
    assert greedy_second[0] == row
    assert greedy_second[1] != second


def test_a_repetition_penalty_counts_the_prompt_and_what_was_generated():
    found = language_model().generate(PROMPTS[1], 20, repetition_penalty=1e6)
    assert len({*found, *PROMPTS[1]}) == 20 + len(PROMPTS[1])


def test_tokens_on_two_devices_are_those_of_one():
    """The window layers' two KV heads are split, the global layers' one is held by both devices."""
    mesh = meshes.make(MeshConfig(tensor=2), jax.devices()[:2])
    split = LanguageModel(CONFIG, small.BASE, parameters(), mesh)
    held, whole = split.session(2, 96), language_model().session(2, 96)
    for turn in (held, whole):
        turn.extend(PROMPTS[:2])
    layers = split._prepared.parameters["prefix"]
    for layer, axis, kv_heads in ((0, None, 1), (1, "tensor", 1)):
        assert layers[str(layer)]["attention"]["k_proj"].sharding.spec[1] == axis
        k = held.state.cache.layers[layer].k
        assert k.sharding.shard_shape(k.shape)[1] == kv_heads
    assert layers["0"]["attention"]["q_proj"].sharding.spec[1] == "tensor"
    assert held.generate(12) == whole.generate(12)
    settings = {"temperature": 1.0, "top_k": 20, "seed": 5}
    assert held.generate(12, **settings) == whole.generate(12, **settings)


def test_on_several_devices_a_config_with_kernels_decodes_with_the_reference():
    """XLA cannot divide a Pallas call; the kernel would also refuse to run on this machine's CPU."""
    mesh = meshes.make(MeshConfig(tensor=2), jax.devices()[:2])
    with_kernels = dataclasses.replace(CONFIG, attention="pallas_tpu")
    split = LanguageModel(with_kernels, small.BASE, parameters(), mesh)
    assert split.generate(PROMPTS[:2], 6) == language_model().generate(PROMPTS[:2], 6)


def test_a_model_that_devices_do_not_divide_is_refused():
    mesh = meshes.make(MeshConfig(tensor=4), jax.devices()[:4])
    with pytest.raises(
        UserError, match=r"has 2 along 'heads', which mesh\.tensor = 4 does not divide: choose a divisor"
    ):
        LanguageModel(CONFIG, small.BASE, parameters(), mesh)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "a prompt is empty"),
        ([[1], []], {}, "a prompt is empty"),
        ([1, 432], {}, "leave the vocabulary of 432"),
        ([-1], {}, "leave the vocabulary of 432"),
        ([1.5], {}, "must be integers"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([1] * 250, {"max_new_tokens": 7}, "need 257 positions, the model has 256"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([[1], [2]], {"temperature": [1.0, 1.0, 1.0]}, "one for each of the 2 prompts"),
    ],
)
def test_bad_requests_are_refused_before_anything_compiles(prompt, settings, message):
    with pytest.raises(UserError, match=message):
        language_model().generate(prompt, **({"max_new_tokens": 4} | settings))


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(UserError, match="vocabulary"):
        language_model()([[1, 999]])


def test_lengths_fall_into_few_buckets():
    assert [session.bucket(n) for n in (1, 16, 17, 33, 512, 513, 1025)] == [16, 16, 24, 48, 512, 768, 1536]
    assert [session.bucket(n, 1) for n in range(1, 10)] == [1, 2, 3, 4, 6, 6, 8, 8, 12]
    buckets = [session.bucket(n) for n in range(1, 4097)]
    assert len(set(buckets)) == 17
    assert all(n <= found <= max(16, n * 3 / 2) for n, found in enumerate(buckets, 1))
