import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.config import RampConfig
from m1jax.curriculum.curriculum import Curriculum
from m1jax.errors import UserError
from m1jax.rows.packing import pack
from m1jax.text.documents import Part
from tests.rows import toy_rows

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
        ({"manifest": dataclasses.replace(MANIFEST, chat_format="ChatML 1")}, "chat_format was none, is ChatML 1"),
        ({"manifest": changed_source("a", 8)}, "the rows of 8 tokens of source 'a' have changed"),
        ({"manifest": changed_source("b", 8)}, "the rows of 8 tokens of source 'b' have changed"),
        ({"stages": changed_stage(0, global_batch=1)}, "stage 'one': global_batch was 2, is 1"),
        ({"stages": changed_stage(1, row_length=32)}, "stage 'two': row_length was 8, is 32"),
        ({"stages": changed_stage(1, mixture={"a": 0.25, "b": 0.75})}, "stage 'two': the sources' rows in a period"),
        ({"stages": changed_stage(0, tokens=8 * 2 * 6)}, "stage 'one': steps was 5, is 6"),
        ({"stages": changed_stage(1, tokens=8 * 4)}, "stage 'two': steps was 5, is 1"),
        ({"stages": STAGES[:1]}, "stage 'two' is gone"),
        (
            {"stages": changed_stage(1, ramp=RampConfig(1, 1, 8))},
            "the batch ramp was none, is 1 steps of 1, 1 steps of 2",
        ),
    ],
)
def test_a_changed_past_is_refused(change, difference):
    for step in (7, None):
        with pytest.raises(UserError, match="was trained on other data") as refused:
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
    with pytest.raises(UserError, match="after the checkpoint of step 7") as refused:
        check(**change, step=7)
    assert difference in str(refused.value)


def test_a_change_ahead_can_be_accepted_and_is_named():
    saved = Curriculum(STAGES, MANIFEST, 0).record()
    longer = Curriculum(changed_stage(1, tokens=8 * 4 * 9), MANIFEST, 0)
    assert longer.check(saved, 7, amend=True) == ["stage 'two': steps was 5, is 9"]
    assert Curriculum(STAGES, MANIFEST, 0).check(saved, 7, amend=True) == []
    with pytest.raises(UserError, match="was trained on other data"):
        Curriculum(changed_stage(0, global_batch=1), MANIFEST, 0).check(saved, 7, amend=True)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 3), st.integers(0, 3), st.integers(0, 14))
@settings(max_examples=80, deadline=None)
def test_the_past_is_what_was_really_read(old_steps, new_steps, old_ramp, new_ramp, taken):
    """By brute force: a change of steps or ramp is past where a row of a step that was taken would be another one."""

    def build(steps, ramp):
        rest = {"ramp": RampConfig(ramp, 1, 8 * 6)} if ramp else {}
        tokens = 8 * 4 * steps + (8 * 24 if ramp else 0)
        stages = (toy_rows.stage("one", 8, 4, 1, {"a": 0.5, "b": 0.5}, **{**rest, "tokens": tokens}), STAGES[2])
        return Curriculum(stages, MANIFEST, 0)

    old, new = build(old_steps, old_ramp), build(new_steps, new_ramp)
    taken = min(taken, old.timeline.steps)

    def read(curriculum):
        rows = curriculum.timeline.rows_before(min(taken, curriculum.timeline.steps))
        places = [curriculum.locate(row) for row in range(rows)]
        return [(place.stage, place.step, place.source, place.row) for place in places]

    same = taken <= new.timeline.steps and read(old) == read(new)
    try:
        new.check(old.record(), taken, amend=True)
        assert same
    except UserError:
        assert not same


def test_a_source_that_is_gone():
    sources = {name: source for name, source in MANIFEST.sources.items() if name != "b"}
    stages = (STAGES[0], toy_rows.stage("two", 8, 4, 5, {"a": 1.0}))
    with pytest.raises(UserError, match="source 'b' is gone"):
        check(stages, dataclasses.replace(MANIFEST, sources=sources), step=7)


def test_other_weights_of_the_same_tokens_are_other_data(tmp_path):
    """A run that has read a span with one weight does not go on with another one."""

    def packed(weight):
        plain = [toy_rows.document(i, 6) for i in range(8)]
        parts = Part("prompt", weight=0.0), Part("answer", weight=weight)
        documents = [toy_rows.with_parts(document, *parts) for document in plain]
        folder = tmp_path / str(weight)
        folder.mkdir(exist_ok=True)
        manifest = pack({"a": lambda: iter(documents)}, toy_rows.ToyTokenizer(), folder, [16], 8, 0)
        return Curriculum((toy_rows.stage("one", 16, 2, 4, {"a": 1.0}),), manifest, 0)

    saved = packed(1.0).record()
    assert packed(1.0).check(saved, 2) == []
    with pytest.raises(UserError, match="the rows of 16 tokens of source 'a' have changed"):
        packed(0.5).check(saved, 2)
