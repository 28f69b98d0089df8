"""The loop compiles one program a row length, and never waits for a step before the next one is on its way."""

import dataclasses

import jax
import pytest
from jax._src.array import ArrayImpl

from m1jax.train import program as programs
from tests.train import test_loop


class Watch:
    """Counts the steps that a run dispatches, and those whose results are read before the next is dispatched."""

    def __init__(self, monkeypatch, seeded=None):
        self.dispatched, self.read_early, self.programs = 0, [], []
        self._newest = []
        build, value = programs.build, ArrayImpl._value

        def watched_build(*args, **settings):
            program = build(*args, **settings)
            self.programs.append(program.step)

            def step(*arguments):
                state, metrics = program.step(*arguments)
                self.dispatched += 1
                self._newest = jax.tree.leaves((state, metrics))
                if self.dispatched == seeded:
                    float(metrics["loss"])
                return state, metrics

            return dataclasses.replace(program, step=step)

        def watched_value(array):
            if any(array is leaf for leaf in self._newest) and self.dispatched not in self.read_early:
                self.read_early.append(self.dispatched)
            return value.fget(array)

        monkeypatch.setattr(programs, "build", watched_build)
        monkeypatch.setattr(ArrayImpl, "_value", property(watched_value))


def test_no_step_is_waited_for_and_each_shape_compiles_once(tmp_path, monkeypatch):
    watch = Watch(monkeypatch)
    reports = []
    test_loop.run(test_loop.small_config(tmp_path, checkpoint_every=100), on_report=reports.append)
    assert watch.dispatched == len(reports) == 15
    assert watch.read_early == [15]  # the last is reported and saved
    # Three stages, of which the first two have rows of one length and as many.
    assert [step._cache_size() for step in watch.programs] == [2]


@pytest.mark.parametrize("seeded", [4, 12])
def test_a_read_in_the_loop_is_caught(tmp_path, monkeypatch, seeded):
    watch = Watch(monkeypatch, seeded)
    test_loop.run(test_loop.small_config(tmp_path, checkpoint_every=100))
    assert watch.read_early == [seeded, 15]
