"""Pallas's TPU interpreter catches what the tests of the kernels rely on it to catch."""

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SHAPE = (8, 128)


def test_a_copy_that_nobody_awaits_is_a_race():
    def kernel(source, out, scratch, done, *, early):
        copy = pltpu.make_async_copy(source, scratch, done)
        copy.start()
        if not early:
            copy.wait()
        out[...] = scratch[...]
        if early:
            copy.wait()

    def run(early):
        return pl.pallas_call(
            lambda *refs: kernel(*refs, early=early),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32),
            scratch_shapes=[pltpu.VMEM(SHAPE, jnp.float32), pltpu.SemaphoreType.DMA],
            interpret=pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager"),
        )(jnp.ones(SHAPE)).block_until_ready()

    run(early=False)
    assert not interpreter.races.races_found
    try:
        run(early=True)
    except jax.errors.JaxRuntimeError as error:  # newer versions of jax raise at once
        assert "RACE DETECTED" in str(error)
    else:
        assert interpreter.races.races_found


def test_memory_that_nobody_wrote_reads_as_nan():
    def kernel(out, scratch, *, written):
        if written:
            scratch[...] = jnp.zeros(SHAPE)
        out[...] = scratch[...]

    def run(written):
        return pl.pallas_call(
            lambda *refs: kernel(*refs, written=written),
            out_shape=jax.ShapeDtypeStruct(SHAPE, jnp.float32),
            scratch_shapes=[pltpu.VMEM(SHAPE, jnp.float32)],
            interpret=pltpu.InterpretParams(uninitialized_memory="nan"),
        )()

    assert np.all(np.asarray(run(written=True)) == 0)
    assert np.all(np.isnan(run(written=False)))
