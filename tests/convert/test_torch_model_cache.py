"""All state lies in the cache: any cut into calls, any padding and any packing give the logits of the whole row."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from m1jax.convert.torch_model.modeling_m1 import BaichuanM1Cache
from tests.convert import torch_exports as exports

LENGTH = 19
few = settings(max_examples=20, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def uncached(found, tokens, **rows):
    return found(tokens, use_cache=False, **rows).logits


@given(exports.configs(), st.lists(st.integers(1, LENGTH - 1), max_size=6), st.integers(0, 99))
@few
def test_any_cut_into_calls_gives_the_whole(config, cuts, seed):
    found, tokens = exports.random_model(config, seed), exports.random_tokens(seed, 2, LENGTH)
    expected = uncached(found, tokens)
    cache, parts = None, []
    for start, stop in zip([0, *sorted(set(cuts))], [*sorted(set(cuts)), LENGTH], strict=True):
        out = found(tokens[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    exports.assert_close(torch.cat(parts, dim=1), expected)
    assert cache.get_seq_length() == LENGTH
    for i, kind in enumerate(config.layer_kinds):
        _, kv_heads, head_dim = config.heads(kind)
        held = min(config.window - 1, LENGTH) if kind == "window" else LENGTH
        assert cache.layers[i].keys.shape == cache.layers[i].values.shape == (2, kv_heads, held, head_dim)
        assert cache.layers[i].last_key.shape == (2, kv_heads, 1, head_dim)


@given(exports.configs(), st.integers(0, 99), st.data())
@few
def test_padding_anywhere_changes_nothing(config, seed, data):
    """Rows of different lengths, padding left, right and between, over several calls: each row is as if alone."""
    found = exports.random_model(config, seed)
    real = data.draw(st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=2, max_size=3))
    mask = torch.tensor(real)
    assume(mask.any())
    tokens = exports.random_tokens(seed, *mask.shape)
    cut = data.draw(st.integers(1, LENGTH - 1))
    first = found(tokens[:, :cut], attention_mask=mask[:, :cut], use_cache=True)
    second = found(tokens[:, cut:], attention_mask=mask, past_key_values=first.past_key_values)
    logits = torch.cat([first.logits, second.logits], dim=1)
    exports.assert_close(logits[mask], uncached(found, tokens, attention_mask=mask)[mask])
    assert logits.isfinite().all()
    for row in range(len(mask)):
        if mask[row].any():
            exports.assert_close(logits[row, mask[row]], uncached(found, tokens[row : row + 1, mask[row]])[0])


@given(exports.configs(), st.integers(0, 99), st.lists(st.integers(1, 7), min_size=2, max_size=4))
@few
def test_documents_of_a_packed_row_do_not_see_each_other(config, seed, lengths):
    found, tokens = exports.random_model(config, seed), exports.random_tokens(seed, 1, sum(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = uncached(found, tokens, position_ids=positions)
    alone = [uncached(found, piece) for piece in tokens.split(lengths, dim=1)]
    exports.assert_close(packed, torch.cat(alone, dim=1))


@given(exports.configs(), st.integers(0, 99), st.lists(st.integers(0, 2), min_size=1, max_size=4))
@few
def test_rows_of_a_cache_can_be_reordered_repeated_and_copied(config, seed, order):
    found, tokens = exports.random_model(config, seed), exports.random_tokens(seed, 3, LENGTH)
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[0, :4] = 0
    cut = LENGTH - 3
    cache = found(tokens[:, :cut], attention_mask=mask[:, :cut], use_cache=True).past_key_values
    expected = uncached(found, tokens, attention_mask=mask)[:, cut:]

    def goes_on(cache, rows):
        out = found(tokens[rows, cut:], attention_mask=mask[rows], past_key_values=cache)
        exports.assert_close(out.logits, expected[rows])

    rows = torch.tensor(order)
    for change, rows_then in (
        (lambda copied: copied.reorder_cache(rows), rows),
        (lambda copied: copied.batch_select_indices(rows), rows),
        (lambda copied: copied.batch_repeat_interleave(2), torch.tensor([0, 0, 1, 1, 2, 2])),
    ):
        copied = copy.deepcopy(cache)
        change(copied)
        goes_on(copied, rows_then)
    goes_on(cache, torch.arange(3))
    cache.reset()
    exports.assert_close(found(tokens[:, :5], past_key_values=cache).logits, uncached(found, tokens[:, :5]))


@pytest.mark.parametrize("window", [2, 6, 64])
def test_generation_with_the_cache_is_generation_without(window):
    found = exports.random_model(exports.config(window=window, num_layers=3), window)
    tokens = exports.random_tokens(1, 2, 9)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    for how in ({}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.3}):
        both = [
            found.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False, use_cache=use, **how)
            for use in (True, False)
        ]
        assert both[0].tolist() == both[1].tolist()
    samples = []
    for use in (True, False):
        torch.manual_seed(5)
        samples.append(found.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=True, use_cache=use))
    assert samples[0].tolist() == samples[1].tolist()


def test_a_second_turn_goes_on_from_the_first_ones_cache():
    found = exports.random_model(exports.config())
    tokens = exports.random_tokens(2, 1, 11)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    first = found.generate(tokens, return_dict_in_generate=True, **settings)
    turn = torch.cat([first.sequences, exports.random_tokens(3, 1, 5)], dim=1)
    warm = found.generate(turn, past_key_values=first.past_key_values, **settings)
    assert warm.tolist() == found.generate(turn, use_cache=False, **settings).tolist()
    chunked = found.generate(turn, prefill_chunk_size=4, **settings)
    assert chunked.tolist() == warm.tolist()


def test_bytes_of_the_cache():
    """As the facts' formula: a global layer 2 K D numbers a token, a window layer at most W tokens, and 2 K D once."""
    config = exports.config()
    found = exports.random_model(config).to(torch.bfloat16)
    for length in (3, 40, 41, 200):
        cache = found(exports.random_tokens(0, 1, length), use_cache=True).past_key_values
        for i, kind in enumerate(config.layer_kinds):
            layer = cache.layers[i]
            _, kv_heads, head_dim = config.heads(kind)
            token = 2 * kv_heads * head_dim * 2
            columns = min(length, config.window - 1) if kind == "window" else length
            stored = [layer.keys, layer.values]
            assert sum(x.numel() * x.element_size() for x in stored) == columns * token
            if length >= 40:  # nothing longer hides behind a view
                assert sum(x.untyped_storage().nbytes() for x in stored) <= 2 * columns * token
            last = [layer.last_key, layer.last_value]
            assert sum(x.numel() * x.element_size() for x in last) == token


def test_what_a_cache_cannot_do_is_said():
    found = exports.random_model(exports.config(num_layers=2))
    tokens = exports.random_tokens(0, 1, 6)
    cache = found(tokens, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask has the shape \(1, 1\): \(1, 7\) is needed"):
        found(tokens[:, :1], attention_mask=torch.ones(1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache"):
        found(tokens, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache"):
        found.generate(tokens, past_key_values=DynamicCache(), max_new_tokens=2)
    with pytest.raises(ValueError, match="cannot be shortened"):
        cache.crop(3)
    with pytest.raises(ValueError, match=r"cannot be shortened|requires a cache that can be cropped"):
        found.generate(tokens, prompt_lookup_num_tokens=2, max_new_tokens=8)
    with pytest.raises(ValueError, match="cache_implementation must stay unset"):
        found.generate(tokens, cache_implementation="static", max_new_tokens=2)
    assert isinstance(cache, BaichuanM1Cache)
