"""Probes of the loop: reads of device arrays by the host, and compilations.

On a CPU `jax.transfer_guard` lets reads from the device pass, so they are caught where Python asks for a value.
"""

import contextlib
import traceback
from collections import Counter

import jax
import jax.monitoring
import numpy as np
from jax._src.array import ArrayImpl

# Every way from an array to a host value ends in one of these, or on a CPU, past all methods, in NumPy's constructors.
READS = ("__array__", "__float__", "__int__", "__bool__", "__index__", "item", "tolist", "block_until_ready", "_value")


@contextlib.contextmanager
def host_reads(note):
    """Calls `note(stack)` before every read of an array by the host; `stack` names the functions, innermost last."""
    kept = {name: ArrayImpl.__dict__[name] for name in READS if name in ArrayImpl.__dict__}
    device_get = jax.device_get

    def stack():
        return [frame.name for frame in traceback.extract_stack()[:-2]]

    def watched(original):
        if isinstance(original, property):
            return property(lambda self: (note(stack()), original.fget(self))[1])

        def read(self, *args, **kwargs):
            note(stack())
            return original(self, *args, **kwargs)

        return read

    def get(tree):
        note(stack())
        return device_get(tree)

    def built(original):
        def make(value, *args, **kwargs):
            if isinstance(value, ArrayImpl):
                note(stack())
            return original(value, *args, **kwargs)

        return make

    for name, original in kept.items():
        setattr(ArrayImpl, name, watched(original))
    jax.device_get = get
    makers = {name: getattr(np, name) for name in ("asarray", "array", "ascontiguousarray")}
    for name, original in makers.items():
        setattr(np, name, built(original))
    try:
        yield
    finally:
        jax.device_get = device_get
        for name, original in makers.items():
            setattr(np, name, original)
        for name, original in kept.items():
            setattr(ArrayImpl, name, original)


@contextlib.contextmanager
def compilations():
    """Counts lowerings to a program by the name of the jitted function."""
    counts = Counter()

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            counts[details.get("fun_name", "")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
