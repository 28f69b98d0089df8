import dataclasses
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.curriculum.curriculum import Curriculum
from m1jax.curriculum.mixture import MAX_PERIOD, TOLERANCE, period_table, quantise, source_shares
from m1jax.errors import UserError
from tests.rows import toy_rows

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


@pytest.mark.parametrize("quotas", [(99, 1), (1, 65_535), (7, 9), (30_000, 35_536)])
def test_two_sources_stay_within_half_a_row(quotas):
    sources, _ = period_table(quotas)
    counts = np.cumsum(sources == 0)
    assert np.abs(counts * sum(quotas) - np.arange(1, sum(quotas) + 1) * quotas[0]).max() * 2 <= sum(quotas)


def test_a_rare_source_comes_in_the_middle_and_many_rare_ones_are_spread():
    sources, _ = period_table((990, 10))
    assert np.flatnonzero(sources == 1).tolist() == [50 + 100 * i for i in range(10)]
    sources, _ = period_table((*[50] * 20, 4000))
    rare = np.flatnonzero(sources != 20)
    assert np.diff(rare).max() < 10 and len({*sources[rare[:20]].tolist()}) == 20


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
            curriculum.timeline.stage_index(step)


def by_difficulty(**tokens):
    """Source "x" in four buckets of the given tokens, and "y" undivided."""
    plain = toy_rows.manifest({**{f"x.d{i}": {8: [4]} for i in range(4)}, "y": {8: [4]}}, tokens=tokens)
    buckets = {f"x.d{i}": {"of": "x", "bucket": i, "buckets": 4} for i in range(4)}
    sources = {name: dataclasses.replace(s, **buckets.get(name, {})) for name, s in plain.sources.items()}
    return dataclasses.replace(plain, sources=sources)


def test_buckets_of_a_source_by_difficulty():
    sources = by_difficulty(**{"x.d0": 100, "x.d1": 300}).sources
    assert source_shares("s", {"x": 1}, sources, (0.0, 0.5)) == pytest.approx({"x.d0": 0.25, "x.d1": 0.75})
    assert source_shares("s", {"x": 1, "y": 1}, sources, (0.8, 1.0)) == pytest.approx({"x.d3": 0.5, "y": 0.5})
    assert source_shares("s", {"x.d2": 1}, sources) == {"x.d2": 1}
    assert len(source_shares("s", {"domain:general": 1}, sources)) == 5
    for key in ("x", "x.d3"):
        with pytest.raises(UserError, match=f"no difficulty bucket that mixture key '{key}' matches .* in 0 to 0.1"):
            source_shares("s", {key: 1}, sources, (0.0, 0.1))
    edges = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = [source_shares("s", {"x": 1}, sources, part) for part in itertools.pairwise(edges)]
    assert [list(part) for part in parts] == [["x.d0"], ["x.d1"], ["x.d2"], ["x.d3"]]


def test_a_source_read_too_often_is_refused_before_the_run():
    manifest = by_difficulty()
    stages = (toy_rows.stage("one", 8, 1, 8, {"y": 1}), toy_rows.stage("two", 8, 1, 8, {"y": 0.5, "x": 0.5}))
    for caps in ({"*": 3}, {"y": 3.0, "*": 0.1, "x": 5}, {"domain:general": 3}, {"x": 0.25}, {}):
        Curriculum(stages, manifest, 0, caps)
    numbers = r"source 'y' \(1,000 tokens\) would be read 3.00 times \(2.00 in stage 'one', 1.00 in stage 'two'\)"
    for caps in ({"y": 2.5}, {"*": 2.5}, {"domain:general": 2.5}, {"y": 2, "*": 10}):
        key = re.escape(next(iter(caps)))
        with pytest.raises(UserError, match=rf"{numbers}, more than data.max_epochs\['{key}'\]"):
            Curriculum(stages, manifest, 0, caps)
    with pytest.raises(UserError, match=r"source 'x\.d\d' .* data.max_epochs\['x'\] = 0.2 allows"):
        Curriculum(stages, manifest, 0, {"x": 0.2})
    with pytest.raises(UserError, match=r"data\.max_epochs: 'z' matches no source"):
        Curriculum(stages, manifest, 0, {"z": 1})
