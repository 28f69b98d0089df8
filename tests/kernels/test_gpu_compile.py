"""The GPU kernels through the real GPU compiler (XLA, Triton, ptxas), for chips that are not there."""

import functools
import re
import subprocess

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from m1jax import kernels
from m1jax.config import MeshConfig
from m1jax.kernels.gpu import blocks
from m1jax.kernels.gpu.attention import attention
from m1jax.parallel import mesh as meshes
from m1jax.parallel.attention import partitioned
from tests import gpu
from tests.kernels.test_gpu import GLOBAL, WINDOW, program_of, shapes_of

KERNELS = {"m1_attention_forward": "forward", "m1_attention_dq": "dq", "m1_attention_dkv": "dkv"}
LAYERS = {"global": GLOBAL, "window": WINDOW, "head_dim 64": (8, 4, 64, None)}
MATRIX_INSTRUCTIONS = {"8.0": "mma.sync", "9.0": "wgmma.mma_async"}
"""What each generation's matrix units are driven by."""


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("chip", gpu.CHIPS)
def test_kernels_compile_within_registers_and_shared_memory(chip, layer, tmp_path):
    found = compiled(chip, LAYERS[layer], tmp_path)
    assert set(found) == {"forward", "dq", "dkv"}
    head_dim = LAYERS[layer][2]
    for name, (shared, spilled, text) in found.items():
        tile = getattr(blocks.tiles(chip, head_dim), name)
        assert 0 < shared <= blocks.shared_bytes(name, tile, head_dim), name
        assert spilled == 0, name
        assert MATRIX_INSTRUCTIONS[chip] in text, name


def compiled(chip, kind, folder):
    """Of each kernel: bytes of shared memory, bytes that ptxas spills, and its PTX."""
    sharding = jax.sharding.SingleDeviceSharding(gpu.devices(chip)[0])
    options = {"xla_dump_to": str(folder), "xla_gpu_cuda_data_dir": str(gpu.ptxas().parents[1])}
    program = jax.jit(program_of(kind, backward=True, chip=chip))
    program.lower(*shapes_of(kind, 4096, sharding)).compile(compiler_options=options)
    (listing,) = folder.glob("*thunk_sequence.txt")
    launches = listing.read_text().splitlines()
    found = {}
    for path in folder.glob("*.ptx"):
        text = path.read_text()
        for entry in re.findall(r"\.entry (m1_\w+)", text):
            target = re.search(r"\.target (\w+)", text).group(1)
            command = [gpu.ptxas(), "-v", "-arch", target, path, "-o", folder / "assembled"]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            (launch,) = (line for line in launches if re.search(rf"\b{entry}\b", line))
            shared = int(re.search(r"shared_memory: (\d+) bytes", launch).group(1))
            found[KERNELS[entry]] = shared, sum(map(int, re.findall(r"(\d+) bytes spill", report))), text
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "layer"), [({"fsdp": 2, "tensor": 2}, "global"), ({"context": 2, "tensor": 2}, "window")]
)
def test_every_device_of_a_mesh_runs_each_kernel_once(sizes, layer):
    H, K, D, window = LAYERS[layer]
    mesh = meshes.make(MeshConfig(data=1, **sizes), gpu.devices("9.0", 4))
    attend = partitioned(mesh, functools.partial(attention, chip="9.0"))

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def gradient(q, k, v, conv, inv_freq, ids):
        settings = {"conv_k": conv, "conv_v": conv, "inv_freq": inv_freq, "window": window and 1024, "scale": D**-0.5}
        layer, rows = kernels.AttentionLayer(**settings), kernels.Rows(positions=ids, segment_ids=ids)

        def loss(q, k, v):
            out = attend(q, k, v, layer, rows)
            return jnp.sum(out.astype(jnp.float32) ** 2)

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    given = [array((2, 4096, heads, D), jnp.bfloat16) for heads in (H, K, K)]
    given += [array((K, 2), jnp.float32), array((D // 2,), jnp.float32), array((2, 4096), jnp.int32)]
    options = {"xla_gpu_cuda_data_dir": str(gpu.ptxas().parents[1])}
    text = jax.jit(gradient).lower(*given).compile(compiler_options=options).as_text()
    called = re.findall(r'custom_call_target="__gpu\$xla.gpu.triton".*?name = "(m1_\w+)"', text)
    assert sorted(called) == sorted(KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["global", "window"])
def test_a_decoding_step_writes_the_cache_in_place_and_copies_none_of_it(layer):
    H, K, D, window = LAYERS[layer]
    B, T = 8, 8192
    sharding = jax.sharding.SingleDeviceSharding(gpu.devices("9.0")[0])

    def array(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def step(q, k, v, cache, conv, inv_freq, lengths, real):
        settings = {"conv_k": conv, "conv_v": conv, "inv_freq": inv_freq, "window": window, "scale": D**-0.5}
        layer, new = kernels.AttentionLayer(**settings, impl="gpu"), kernels.NewTokens(lengths=lengths, real=real)
        return kernels.decode_attention(q, k, v, cache, layer, new)

    new = [array((B, 1, heads, D)) for heads in (H, K, K)]
    cache = kernels.LayerCache(*[array((B, K, T, D))] * 2, *[array((B, K, D))] * 2)
    small = array((K, 2), jnp.float32), array((D // 2,), jnp.float32), array((B,), jnp.int32), array((B, 1), jnp.bool_)
    options = {"xla_gpu_cuda_data_dir": str(gpu.ptxas().parents[1])}
    program = jax.jit(step, donate_argnums=3).lower(*new, cache, *small).compile(compiler_options=options)
    size, memory = 2 * 2 * B * K * T * D, program.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.1 * size  # the scores


def test_the_limits_are_what_the_chips_say():
    assert {chip: known["shared_memory_per_block_optin"] for chip, known in gpu.CHIPS.items()} == blocks.SHARED_MEMORY
