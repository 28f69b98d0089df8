import collections
import dataclasses
import itertools
import json
import time

import numpy as np
import pytest
import toy_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.data.curriculum import Curriculum
from m1jax.data.mixture import MAX_PERIOD, TOLERANCE, period_table, quantise, source_shares
from m1jax.errors import UserError

weights = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 1.0), min_size=1)


@given(weights)
@settings(max_examples=60, deadline=None)
def test_quotas_are_the_shares(mixture):
    shares = {name: weight / sum(mixture.values()) for name, weight in mixture.items()}
    quotas = quantise("s", shares)
    assert quotas.period <= MAX_PERIOD and quotas.period & (quotas.period - 1) == 0
    error = max(abs(quotas.rows[n] / quotas.period - share) / share for n, share in shares.items())
    assert quotas.error == pytest.approx(error) and (error < TOLERANCE or quotas.period == MAX_PERIOD)
    assert all(abs(quotas.rows[n] - share * quotas.period) < 1 for n, share in shares.items())


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
@settings(max_examples=100, deadline=None)
def test_every_prefix_is_within_one_row_of_the_quotas(quotas):
    sources, before = period_table(tuple(quotas))
    period = sum(quotas)
    counts = np.zeros(len(quotas), int)
    for t, (source, rank) in enumerate(zip(sources, before, strict=True), 1):
        assert counts[source] == rank
        counts[source] += 1
        # In integers: |count - t q / P| < 1.
        assert all(abs(n * period - t * q) < period for n, q in zip(counts, quotas, strict=True))
    assert counts.tolist() == quotas


def test_a_long_period_is_exact_to_its_end():
    quotas = (1, 3, 65_000, 532)
    sources, _ = period_table(quotas)
    counts = np.cumsum(sources[:, None] == np.arange(4), axis=0)
    ideal = np.arange(1, 65_537)[:, None] * np.array(quotas) / 65_536
    assert np.abs(counts - ideal).max() < 1 and counts[-1].tolist() == list(quotas)


def test_domains_are_divided_by_tokens():
    manifest = toy_rows.manifest(
        {"x": {8: [1]}, "y": {8: [1]}, "z": {8: [1]}},
        domains={"x": "medical", "y": "medical"},
        tokens={"x": 300, "y": 100},
    )
    shares = source_shares("s", {"domain:medical": 3.0, "z": 1.0}, manifest.sources)
    assert shares == pytest.approx({"x": 0.5625, "y": 0.1875, "z": 0.25})
    shares = source_shares("s", {"domain:medical": 1, "x": 1, "z": 0}, manifest.sources)
    assert shares == pytest.approx({"x": 0.875, "y": 0.125})


@st.composite
def curricula(draw):
    """Two row lengths, a few sources of a few windows, a few stages."""
    names = draw(st.sampled_from(["a", "ab", "abc"]))
    windows = {}
    for name in names:
        sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
        windows[name] = {8: sizes, 32: [-(-size // 3) for size in sizes]}
    stages = []
    for i in range(draw(st.integers(1, 4))):
        mixture = {name: draw(st.integers(0, 5)) for name in names}
        mixture[draw(st.sampled_from(names))] = 2
        row_length, batch, steps = draw(st.sampled_from([8, 32])), draw(st.integers(1, 6)), draw(st.integers(1, 12))
        stages.append(toy_rows.stage(f"s{i}", row_length, batch, steps, mixture))
    return tuple(stages), toy_rows.manifest(windows), draw(st.integers(0, 3))


def places(curriculum):
    return [curriculum.locate(row) for row in range(curriculum.first_row(curriculum.steps))]


@given(curricula())
@settings(max_examples=80, deadline=None)
def test_epochs_are_read_whole_and_nothing_twice(case):
    stages, manifest, seed = case
    curriculum = Curriculum(stages, manifest, seed)
    by_source = collections.defaultdict(list)
    for place in places(curriculum):
        by_source[place.source].append((place.epoch, stages[place.stage].row_length, place.window, place.row))
    skipped = collections.Counter()
    for use in curriculum.table():
        skipped[use.source] += use.skipped
    for name, served in by_source.items():
        source = manifest.sources[name]
        assert len(set(served)) == len(served)
        for _, length, window, row in served:
            first = source.files[length].first_rows
            assert first[window] <= row < first[window + 1]
        epochs = [epoch for epoch, *_ in served]
        assert epochs == sorted(epochs) and set(epochs) <= set(range(max(epochs) + 1))
        # A window is read in one go and, within an epoch, at one row length.
        visits = [key for key, _ in itertools.groupby(served, key=lambda place: place[:3])]
        assert len({(epoch, window) for epoch, _, window in visits}) == len(visits)
        left_out = 0
        for i, (epoch, length, window) in enumerate(visits):
            size = source.files[length].first_rows[window + 1] - source.files[length].first_rows[window]
            missing = size - sum(place[:3] == (epoch, length, window) for place in served)
            if missing and i + 1 < len(visits):
                assert visits[i + 1][1] != length, "only a change of row length leaves rows out"
                left_out += missing
        assert left_out == skipped[name]
        for epoch in range(max(epochs)):
            assert {window for e, _, window in visits if e == epoch} == set(range(source.windows))


@given(curricula())
@settings(max_examples=40, deadline=None)
def test_steps_rows_and_shares(case):
    stages, manifest, seed = case
    curriculum = Curriculum(stages, manifest, seed)
    assert curriculum.steps == sum(stage.steps for stage in stages)
    all_places = places(curriculum)
    assert curriculum.first_row(curriculum.steps) == len(all_places)
    expected = [
        (i, step) for i, stage in enumerate(stages) for step in range(stage.steps) for _ in range(stage.global_batch)
    ]
    before = 0
    for i, stage in enumerate(stages):
        mine = [place for place in all_places if place.stage == i]
        assert [(place.stage, place.step - before) for place in mine] == [pair for pair in expected if pair[0] == i]
        counts = collections.Counter()
        uses = {use.source: use for use in curriculum.table() if use.stage == stage.name}
        assert sum(use.share for use in uses.values()) == pytest.approx(1)
        for t, place in enumerate(mine, 1):
            counts[place.source] += 1
            assert all(abs(counts[name] - t * use.share) < 1 + 1e-9 for name, use in uses.items())
        assert dict(counts) == {name: use.rows for name, use in uses.items() if use.rows}
        for step in range(before, before + stage.steps):
            assert curriculum.stage_of_step(step) == i
            assert all_places[curriculum.first_row(step)].step == step
        before += stage.steps


def test_epochs_and_seeds_differ_in_order():
    manifest = toy_rows.manifest({"a": {8: [6] * 8}})
    stages = (toy_rows.stage("s", 8, 48, 3, {"a": 1}),)
    orders = [[place.row for place in places(Curriculum(stages, manifest, seed))] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    epochs = [orders[0][i : i + 48] for i in (0, 48, 96)]
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(48))
    windows = [[epoch[i] // 6 for i in range(0, 48, 6)] for epoch in epochs]
    assert windows[0] != windows[1]
    first_window = [[row for row in epoch if row < 6] for epoch in epochs]
    assert not first_window[0] == first_window[1] == first_window[2]


def test_a_source_goes_on_where_another_stage_left_it():
    manifest = toy_rows.manifest({"a": {8: [5, 5, 5], 32: [2, 2, 2]}, "b": {8: [4], 32: [1]}})
    stages = (
        toy_rows.stage("one", 8, 7, 1, {"a": 1}),
        toy_rows.stage("other", 32, 2, 1, {"b": 1}),
        toy_rows.stage("two", 8, 3, 1, {"a": 1}),
        toy_rows.stage("long", 32, 1, 1, {"a": 1}),
    )
    curriculum = Curriculum(stages, manifest, 0)
    served = [place for place in places(curriculum) if place.source == "a"]
    short = [place.row for place in served[:10]]
    assert len(set(short)) == 10 and len({place.window for place in served[:10]}) == 2
    assert served[10].window not in {place.window for place in served[:10]} and served[10].epoch == 0
    assert [use.skipped for use in curriculum.table()] == [0, 0, 0, 0]


def test_the_far_end_of_twenty_trillion_tokens():
    rng = np.random.default_rng(0)
    sizes = {name: rng.integers(1, 4000, 3000) for name in "ab"}
    manifest = toy_rows.manifest(
        {name: {8192: size.tolist(), 32768: (size // 4 + 1).tolist()} for name, size in sizes.items()}
    )
    stages = (
        toy_rows.stage("1", 8192, 2048, 12 * 10**12 // 2**24, {"a": 0.7, "b": 0.3}),
        toy_rows.stage("2", 8192, 2048, 6 * 10**12 // 2**24, {"a": 0.5, "b": 0.5}),
        toy_rows.stage("3", 32768, 512, 2 * 10**12 // 2**24, {"a": 0.1, "b": 0.9}),
    )
    curriculum = Curriculum(stages, manifest, 0)
    last = curriculum.first_row(curriculum.steps) - 1
    begun = time.perf_counter()
    tail = [curriculum.locate(row) for row in range(last - 5000, last + 1)]
    assert time.perf_counter() - begun < 2
    assert tail[-1].step == curriculum.steps - 1 and tail[-1].stage == 2
    end = {use.source: use.end for use in curriculum.table()}
    for name in "ab":
        mine = [(place.epoch, place.row) for place in tail if place.source == name]
        assert len(set(mine)) == len(mine) and mine[-1][0] == end[name].epoch
    assert sum(place.source == "b" for place in tail) == pytest.approx(0.9 * 5001, abs=2)


def test_bad_mixtures_and_rows():
    manifest = toy_rows.manifest({"a": {8: [4]}, "b": {8: [4]}}, domains={"b": "medical"})

    def build(mixture, row_length=8):
        return Curriculum((toy_rows.stage("easy", row_length, 2, 2, mixture),), manifest, 0)

    known = "there are a, b and domain:general, domain:medical"
    for key in ("c", "domain:law", "medical", "domain:a"):
        with pytest.raises(UserError, match=f"stage 'easy': mixture key '{key}' matches no source: {known}"):
            build({key: 1.0})
    for mixture in ({"a": 0.0}, {}, {"a": 0, "domain:medical": 0}):
        with pytest.raises(UserError, match="no weight above 0"):
            build(mixture)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="weight"):
            build({"a": weight, "b": 1.0})
    with pytest.raises(UserError, match="share of source 'b' is 1e-07, below one row in 65536"):
        build({"a": 1.0, "b": 1e-7})
    with pytest.raises(UserError, match="rows of 16 tokens, but rows of 8 are packed"):
        build({"a": 1.0}, row_length=16)
    curriculum = build({"a": 1.0})
    for row in (-1, 4):
        with pytest.raises(UserError, match="has 4 rows"):
            curriculum.locate(row)
    for step in (-1, 2):
        with pytest.raises(UserError, match="steps 0 to 1"):
            curriculum.stage_of_step(step)


MANIFEST = toy_rows.manifest({"a": {8: [9, 9], 32: [3, 3]}, "b": {8: [4], 32: [2]}, "c": {8: [1], 32: [1]}})
STAGES = (
    toy_rows.stage("one", 8, 2, 5, {"a": 1.0}),
    toy_rows.stage("two", 8, 4, 5, {"a": 0.5, "b": 0.5}),
    toy_rows.stage("three", 32, 4, 5, {"b": 1.0}),
)


def changed_source(name, length):
    files = dict(MANIFEST.sources[name].files)
    files[length] = dataclasses.replace(files[length], sha256="other")
    source = dataclasses.replace(MANIFEST.sources[name], files=files)
    return dataclasses.replace(MANIFEST, sources={**MANIFEST.sources, name: source})


def changed_stage(index, **changes):
    return (*STAGES[:index], dataclasses.replace(STAGES[index], **changes), *STAGES[index + 1 :])


def check(stages=STAGES, manifest=MANIFEST, seed=0, step=None):
    saved = json.loads(json.dumps(Curriculum(STAGES, MANIFEST, 0).record()))
    Curriculum(stages, manifest, seed).check(saved, step)


def test_the_same_curriculum_is_accepted():
    for step in (None, 0, 7, 15):
        check(step=step)
        check(manifest=changed_source("c", 8), step=step)
        check(manifest=changed_source("a", 32), step=step)
        check(changed_stage(0, rope_base=5.0), step=step)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"manifest": dataclasses.replace(MANIFEST, tokenizer="new")}, "tokenizer was toy, is new"),
        ({"manifest": changed_source("a", 8)}, "the rows of 8 tokens of source 'a' have changed"),
        ({"manifest": changed_source("b", 8)}, "the rows of 8 tokens of source 'b' have changed"),
        ({"stages": changed_stage(0, global_batch=1)}, "stage 'one': global_batch was 2, is 1"),
        ({"stages": changed_stage(1, row_length=32)}, "stage 'two': row_length was 8, is 32"),
        ({"stages": changed_stage(1, mixture={"a": 0.25, "b": 0.75})}, "stage 'two': the sources' rows in a period"),
        ({"stages": changed_stage(0, tokens=8 * 2 * 6)}, "stage 'one': steps was 5, is 6"),
        ({"stages": changed_stage(1, tokens=8 * 4)}, "stage 'two': steps was 5, is 1"),
        ({"stages": STAGES[:1]}, "stage 'two' is gone"),
    ],
)
def test_a_changed_past_is_refused(change, difference):
    for step in (7, None):
        with pytest.raises(UserError, match="has read other data") as refused:
            check(**change, step=step)
        assert difference in str(refused.value)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"stages": changed_stage(2, global_batch=8)}, "stage 'three': global_batch was 4, is 8"),
        ({"stages": changed_stage(1, tokens=8 * 4 * 9)}, "stage 'two': steps was 5, is 9"),
        ({"stages": changed_stage(1, tokens=8 * 4 * 2)}, "stage 'two': steps was 5, is 2"),
        ({"stages": STAGES[:2]}, "stage 'three' is gone"),
        ({"stages": (*STAGES, toy_rows.stage("more", 8, 1, 1, {"c": 1}))}, "stage 'more' was added"),
        ({"manifest": changed_source("b", 32)}, "the rows of 32 tokens of source 'b' have changed"),
    ],
)
def test_a_change_ahead_is_told_apart(change, difference):
    with pytest.raises(UserError, match="ahead of the checkpoint at step 7") as refused:
        check(**change, step=7)
    assert difference in str(refused.value)


def test_a_source_that_is_gone():
    sources = {name: source for name, source in MANIFEST.sources.items() if name != "b"}
    stages = (STAGES[0], toy_rows.stage("two", 8, 4, 5, {"a": 1.0}))
    with pytest.raises(UserError, match="source 'b' is gone"):
        check(stages, dataclasses.replace(MANIFEST, sources=sources), step=7)
