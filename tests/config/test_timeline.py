"""Steps, rows and tokens of stages, against every step written out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.config import LearningRateConfig, RampConfig, StageConfig, Timeline
from m1jax.errors import UserError


@st.composite
def stages(draw):
    batch, row_length = draw(st.integers(1, 9)), draw(st.integers(2, 7))
    start = draw(st.integers(0, batch - 1))
    # A ramp may need all tokens of the stage: it has no step of the full batch then.
    ramp = RampConfig(start, draw(st.integers(1, 3)), draw(st.integers(1, 200))) if start else RampConfig()
    return StageConfig(
        name=str(draw(st.integers(0, 9))), mixture={"a": 1.0}, learning_rate=LearningRateConfig(1e-3, 1e-4), ramp=ramp,
        tokens=draw(st.integers(1, 300)), row_length=row_length, global_batch=batch, rope_base=1e4,
    )  # fmt: skip


@given(st.lists(stages(), min_size=1, max_size=4))
@settings(deadline=None)
def test_every_step_and_row(stages):
    timeline = Timeline(stages)
    step = row = token = 0
    for index, stage in enumerate(stages):
        assert timeline.first_steps[index] == step
        for size, count in stage.batches:
            for _ in range(count):
                assert (timeline.stage_index(step), timeline.stage(step), timeline.batch_of(step)) == (
                    index,
                    stage,
                    size,
                )
                assert (timeline.rows_before(step), timeline.tokens_before(step)) == (row, token)
                assert {timeline.step_of_row(row + i) for i in range(size)} == {step}
                step, row, token = step + 1, row + size, token + size * stage.row_length
    assert (timeline.steps, timeline.rows, timeline.tokens) == (step, row, token)
    assert timeline.first_steps[-1] == step
    assert (timeline.rows_before(step), timeline.tokens_before(step)) == (row, token)
    assert sum(stage.rows for stage in stages) == row and sum(stage.steps for stage in stages) == step
    for ask, wrong in ((timeline.stage, step), (timeline.batch_of, -1), (timeline.step_of_row, row)):
        with pytest.raises(UserError, match="is not in the curriculum, which has"):
            ask(wrong)
    with pytest.raises(UserError):
        timeline.rows_before(step + 1)
