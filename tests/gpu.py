"""NVIDIA GPUs that nobody holds, for tests that compile with the real compiler (XLA, Triton, ptxas)."""

import pathlib

import pytest

CHIPS = {
    "8.0": {
        "name": "NVIDIA A100-SXM4-40GB",
        "major": 8,
        "core_count": 108,
        "fpus_per_core": 64,
        "shared_memory_per_core": 167936,
        "shared_memory_per_block_optin": 166912,
        "l2_cache_size": 41943040,
        "memory_bandwidth": 1555200000000,
        "device_memory_size": 42331013120,
    },
    "9.0": {
        "name": "NVIDIA H100 80GB HBM3",
        "major": 9,
        "core_count": 132,
        "fpus_per_core": 128,
        "shared_memory_per_core": 233472,
        "shared_memory_per_block_optin": 232448,
        "l2_cache_size": 52428800,
        "memory_bandwidth": 3352320000000,
        "device_memory_size": 84929347584,
    },
}
"""What XLA asks a driver about a device (stream_executor's GpuDeviceInfoProto), by compute capability."""


def devices(chip, number=1):
    """Devices of one host to compile for; skips the test where jax's CUDA plugin is not installed."""
    pytest.importorskip("jax_plugins.xla_cuda12", reason="needs the GPU compiler: pip install 'm1jax[gpu]'")
    from jax.experimental import topologies

    found = dict(CHIPS[chip])
    name, major = found.pop("name"), found.pop("major")
    numbers = " ".join(f"{key}: {value}" for key, value in found.items())
    config = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 shared_memory_per_block: 49152
          registers_per_core_limit: 65536 registers_per_block_limit: 65536 clock_rate_ghz: 1.5 block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535 block_dim_limit_z: 65535 cuda_compute_capability {{ major: {major} }} {numbers}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 9 patch: 0 }}
        device_description_str: "{name}"
    """  # noqa: E501
    topology = f"1x1x{number}"
    found = topologies.get_topology_desc(platform="cuda", topology_name="", topology=topology, target_config=config)
    return found.devices


def ptxas():
    """The assembler of jax's CUDA plugin; skips the test where it is not installed."""
    compiler = pytest.importorskip("nvidia.cuda_nvcc", reason="needs ptxas: pip install 'm1jax[gpu]'")
    return pathlib.Path(next(iter(compiler.__path__))) / "bin" / "ptxas"
