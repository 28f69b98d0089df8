"""`m1 doctor`: a sound machine passes, and every kind of fault is found by its own line."""

import dataclasses
import json
import socket
import subprocess
import sys

import jax
import pytest

from m1jax import hardware, kernels
from m1jax.config import MeshConfig
from m1jax.config import file as config_file
from m1jax.parallel import measure
from m1jax.parallel.checkup import storage
from m1jax.verbs import doctor, main
from tests.verbs.conftest import PROGRAM, TINY

CONFIG = config_file.load(TINY, ["mesh.fsdp=2", "mesh.tensor=2", "mesh.replica=2"])


def diagnose(capsys, config=CONFIG, status=0, **rest):
    """The findings by check; `m1 doctor` must end with `status`."""
    assert doctor.diagnose(config, as_json=True, **rest) == status
    told = json.loads(capsys.readouterr().out)
    return {finding["check"]: finding for finding in told["findings"]}


def test_a_sound_machine_passes_and_nothing_is_left_behind(capsys, tmp_path):
    found = diagnose(capsys, bucket=str(tmp_path))
    assert set(found) == {
        *("versions", "devices", "matrix product", "mesh", "disk", "bucket", "clock: folder"),
        *("collective: replica", "collective: fsdp", "collective: tensor", "kernel: global", "kernel: window"),
    }
    assert {finding["state"] for finding in found.values()} <= {"ok", "slow"}  # a disk under other tests may be slow
    assert found["mesh"]["found"] == "replica 2, fsdp 2, tensor 2"
    assert jax.__version__ in found["versions"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_table_and_refuses_half_of_its_arguments(capsys, tmp_path):
    assert main(["doctor", "--config", TINY, "--set", "mesh.fsdp=3", "--bucket", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "m1 doctor, host 0 of 1" in out
    assert "do not make 8 devices" in " ".join(out.split()).replace("│ ", "")
    assert main(["doctor", "--set", "mesh.fsdp=2"]) == 2
    assert main(["doctor", "--processes", "2"]) == 2


def test_a_mesh_that_does_not_divide_is_broken_and_the_rest_is_still_measured(capsys, tmp_path):
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=3))
    found = diagnose(capsys, config, status=1, bucket=str(tmp_path))
    assert found["mesh"]["state"] == "broken"
    assert "do not make 8 devices" in found["mesh"]["found"]
    assert found["kernel: window"]["state"] == "ok"


def test_a_bucket_that_cannot_be_written_is_broken(capsys, tmp_path):
    (tmp_path / "file").write_text("no folder")
    found = diagnose(capsys, None, status=1, bucket=str(tmp_path / "file"))
    assert found["bucket"]["state"] == "broken"
    assert diagnose(capsys, None, bucket=f"file://{tmp_path}/new/")["bucket"]["state"] in ("ok", "slow")
    assert diagnose(capsys, None, status=1, bucket="gx://nowhere")["bucket"]["state"] == "broken"


def test_a_folder_that_cannot_be_renamed_is_broken(capsys, tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("pathlib.Path.rename", refuse)  # what a mounted bucket without a hierarchical namespace says
    found = diagnose(capsys, None, status=1, bucket=str(tmp_path))
    assert found["bucket"]["state"] == "broken"
    assert "hierarchical namespace" in found["bucket"]["advice"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["no convolution", "one key more", "not finite", "raises"])
def test_a_kernel_that_differs_from_the_reference_is_broken(capsys, tmp_path, monkeypatch, fault):
    sound = kernels.attention

    def faulty(q, k, v, layer, rows):
        if not isinstance(q, jax.core.Tracer):  # the reference, on the host
            return sound(q, k, v, layer, rows)
        if fault == "raises":
            raise RuntimeError("Mosaic failed to compile\nand so on")
        if fault == "no convolution":
            layer = dataclasses.replace(layer, conv_k=layer.conv_k.at[:, 0].set(0.0))
        if fault == "one key more" and layer.window:
            layer = dataclasses.replace(layer, window=layer.window + 1)
        out = sound(q, k, v, layer, rows)
        return out.at[0, 0, 0, 0].set(float("nan")) if fault == "not finite" else out

    monkeypatch.setattr(kernels, "attention", faulty)
    found = diagnose(capsys, status=1, bucket=str(tmp_path))
    if fault == "raises":
        assert found["kernel"]["found"] == "RuntimeError: Mosaic failed to compile"
    else:
        assert found["kernel: window"]["state"] == "broken"
        assert (found["kernel: global"]["state"] == "ok") == (fault == "one key more")


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_device_that_has_kernels_of_its_own_is_told_of_them(capsys, tmp_path, monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    found = diagnose(capsys, bucket=str(tmp_path))["kernel: global"]
    wanted = {"cpu": "", "gpu": "set model.attention to gpu", "tpu": "set model.attention to pallas_tpu"}[platform]
    assert (found["advice"], found["state"]) == (wanted, "slow" if wanted else "ok")


def test_slow_and_wrong_devices_are_told_apart(capsys, monkeypatch):
    fast = dataclasses.replace(hardware.CHIPS["h100"], flops=1e18)
    monkeypatch.setattr(hardware, "by_kind", lambda kind: fast)
    found = diagnose(capsys, None)  # slow is no failure
    assert found["matrix product"]["state"] == "slow"
    assert "published peak" in found["matrix product"]["advice"]
    wrong = iter([(1e9, True), (1e9, False)] + [(1e9, True)] * 6)
    monkeypatch.setattr(measure, "product", lambda *_: next(wrong))
    found = diagnose(capsys, None, status=1)
    assert "device(s) 1 gave wrong numbers" in found["matrix product"]["advice"]


def test_a_wrong_sum_is_broken(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "collective", lambda mesh, axis, size: (1e9, axis != "fsdp"))
    found = diagnose(capsys, status=1, bucket=str(tmp_path))
    assert [name for name, finding in found.items() if finding["state"] == "broken"] == ["collective: fsdp"]


def test_clocks_are_judged_by_their_difference():
    assert [storage.clock_skew("clock", seconds, "here").state for seconds in (0.2, 5.0, 120.0)] == [
        "ok",
        "slow",
        "broken",
    ]


@pytest.mark.slow
def test_two_processes_check_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ["doctor", "--config", TINY, "--set", "mesh.fsdp=2", "--bucket", str(tmp_path), "--json"]
    join = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process"]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }
    both = [
        subprocess.Popen([*PROGRAM, *common, *join, str(i)], stdout=subprocess.PIPE, text=True, env=environment)
        for i in range(2)
    ]
    # gloo greets on standard output; ours is the last line.
    told = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(answer["host"] for answer in told) == [0, 1]
    for answer in told:
        found = {finding["check"]: finding for finding in answer["findings"]}
        assert found["devices"]["found"].startswith("1 of 2 cpu")
        assert "between 2 hosts" in found["clock: hosts"]["found"]
        assert found["collective: fsdp"]["state"] == "ok"
