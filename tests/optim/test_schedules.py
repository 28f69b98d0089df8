import math

import numpy as np
import pytest

from m1jax.config import LearningRateConfig
from m1jax.config import file as config_file
from m1jax.optim.schedules import learning_rate, segment


def test_warm_up_starts_above_zero_and_reaches_the_peak():
    rate = segment(LearningRateConfig(start=1.0, end=1.0, warmup_steps=4), 10)
    assert np.allclose([rate(i) for i in range(6)], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_is_half_a_cosine():
    rate = segment(LearningRateConfig(start=4e-4, end=2e-5, shape="cosine"), 100)
    for step in (0, 13, 50, 99, 100):
        expected = 2e-5 + (4e-4 - 2e-5) * (1 + math.cos(math.pi * step / 100)) / 2
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)


def test_the_14b_schedule_is_the_reports():
    config = config_file.load("m1_14b")
    rate = learning_rate(config)
    annealing = config.stages[0].steps + config.stages[1].steps
    assert float(rate(1999)) < 4e-4
    assert float(rate(2000)) == pytest.approx(4e-4)
    assert float(rate(annealing)) == pytest.approx(4e-4)
    assert float(rate(config.total_steps)) == pytest.approx(2e-5)
