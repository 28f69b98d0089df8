"""Checkpoints that were damaged, that belong elsewhere, that find no room; and on other meshes."""

import dataclasses
import json
import shutil
import subprocess
import threading
import time
import zlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from m1jax.train.checkpoint.checksums import checksums, names
from m1jax.train.checkpoint.folder import existing
from tests.train.test_loop import run, same, small_config

# The text of `Meta` is one line in Orbax's JSON file; arrays lie in files of OCDBT.
DAMAGES = (
    "cut the arrays",
    "empty the arrays",
    "flip a bit of an array",
    "flip a digit of the description",
    "no meta",
    "an empty folder",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 15 steps with checkpoints 5, 10, 15, and its state."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(folder, checkpoint_every=5, keep_checkpoints=3)
    return config, run(config)


def copy_of(trained, tmp_path):
    config, state = trained
    shutil.copytree(config.folder, tmp_path / "copy")
    return dataclasses.replace(config, folder=str(tmp_path / "copy")), state


def damage(folder, how):
    if how == "an empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
        return
    files = [path for path in (folder / "state").rglob("*") if path.is_file() and path.parent.name == "d"]
    largest = max(files, key=lambda path: path.stat().st_size)
    meta = next(path for path in (folder / "meta").iterdir() if path.name == "metadata")
    if how == "cut the arrays":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif how == "empty the arrays":
        largest.write_bytes(b"")
    elif how == "flip a bit of an array":
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 8
        largest.write_bytes(data)
    elif how == "flip a digit of the description":
        text = meta.read_text()
        assert "curriculum" in text
        meta.write_text(text.replace("5", "6", 1))
    else:
        shutil.rmtree(folder / "meta")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_is_told_of_and_the_one_before_taken(trained, tmp_path, how):
    config, whole = copy_of(trained, tmp_path)
    damage(config.checkpoints / "15", how)
    said, starts = [], []

    def on_report(report):
        starts.append(report.step)

    state = run(config, on_report=on_report, say=said.append)
    assert starts == [11, 12, 13, 14, 15]
    (sentence,) = said
    assert "15 cannot be read (" in sentence
    assert sentence.endswith("it is now called 15.damaged, and training continues after step 10.")
    assert same(whole, state)
    assert (config.checkpoints / "15.damaged").is_dir()
    checkpoints = existing(config.checkpoints)
    assert checkpoints.steps() == [5, 10, 15]
    checkpoints.close()
    assert run(config, say=said.append) is not None
    assert len(said) == 1


def test_where_every_checkpoint_is_damaged_nothing_begins_anew(trained, tmp_path):
    config, _ = copy_of(trained, tmp_path)
    for step in ("5", "10", "15"):
        damage(config.checkpoints / step, "cut the arrays")
    with pytest.raises(UserError, match=r"15 cannot be read .*remove that folder"):
        run(config)
    assert sorted(path.name for path in config.checkpoints.iterdir()) == ["10", "15", "5"]


def test_one_that_belongs_to_another_run_is_refused_and_not_put_aside(trained, tmp_path):
    config, _ = copy_of(trained, tmp_path)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, ffn=12))
    with pytest.raises(UserError, match="a model with ffn = 48, the config says 12"):
        run(other)
    clip = dataclasses.replace(config.optimizer.clip, history=20)
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clip=clip))
    with pytest.raises(UserError, match=r"history\.norms of shape \(8,\) and float32, .* of shape \(20,\)"):
        run(other)
    assert sorted(path.name for path in config.checkpoints.iterdir()) == ["10", "15", "5"]


def test_what_a_checkpoint_says_of_itself(trained):
    config, state = trained
    checkpoints = existing(config.checkpoints)
    meta = checkpoints.meta(10)
    assert meta.row == 5 * 4 + 5 * 4
    assert meta.run["seed"] == config.seed
    assert set(meta.arrays) == set(checksums(state))
    assert meta.arrays["opt_state.history.norms"][0] == [8]
    checkpoints.close()


def test_the_newest_and_those_of_every_so_many_steps_are_kept(tmp_path):
    config = small_config(tmp_path, checkpoint_every=1, keep_checkpoints=2, keep_every=6)
    run(config)
    checkpoints = existing(config.checkpoints)
    assert checkpoints.steps() == [6, 12, 14, 15]
    checkpoints.close()


def test_a_partial_checkpoint_is_never_taken_for_whole(trained, tmp_path):
    config, _ = copy_of(trained, tmp_path)
    whole = config.checkpoints / "15"
    partial = config.checkpoints / "20.orbax-checkpoint-tmp-1"
    shutil.copytree(whole, partial)
    checkpoints = existing(config.checkpoints)
    assert checkpoints.latest_step() == 15
    checkpoints.close()
    run(config)
    assert not partial.exists()


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 4}, {"fsdp": 2, "context": 2}, {"tensor": 2}])
def test_another_mesh_restores_the_same_bits_and_goes_on(trained, tmp_path, sizes):
    config, whole = copy_of(trained, tmp_path)
    shutil.rmtree(config.checkpoints / "15")
    mesh_config = dataclasses.replace(config.mesh, **sizes)
    mesh = meshes.make(mesh_config, jax.devices()[: int(np.prod([*sizes.values()]))])
    state = run(dataclasses.replace(config, mesh=mesh_config), mesh=mesh)
    assert int(state.step) == 15
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


ARRAYS = st.sampled_from(["float32", "int32", "bfloat16", "bool", "uint8"])


@settings(deadline=None, max_examples=25)
@given(ARRAYS, st.lists(st.integers(1, 5), max_size=3), st.integers(0, 2**32 - 1))
def test_a_checksum_sees_every_changed_element_and_no_layout(dtype, shape, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * 100
    x = np.asarray(jax.numpy.asarray(values).astype(dtype))
    mesh = meshes.make(small_config("x").mesh, jax.devices()[:1])
    place = rules.replicated(mesh)

    def of(array):
        return checksums({"x": jax.device_put(array, place)})["x"]

    bits = x.reshape(-1).view(f"uint{8 * x.itemsize}").astype(object)
    assert of(x) == sum(int(b) * (2 * i + 1) for i, b in enumerate(bits)) % 2**32
    changed = x.copy().reshape(-1)
    where = rng.integers(changed.size)
    changed[where] = ~changed[where] if dtype == "bool" else changed[where] + changed.dtype.type(1)
    if changed[where] != x.reshape(-1)[where]:
        assert of(changed.reshape(x.shape)) != of(x)


def test_a_checksum_is_that_of_the_global_array_on_any_mesh():
    config = small_config("x")
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    one = meshes.make(config.mesh, jax.devices()[:1])
    eight = meshes.make(dataclasses.replace(config.mesh, fsdp=4, tensor=2), jax.devices())
    spread = jax.sharding.NamedSharding(eight, jax.sharding.PartitionSpec("fsdp", "tensor"))
    assert checksums({"x": jax.device_put(x, rules.replicated(one))}) == checksums({"x": jax.device_put(x, spread)})


@pytest.fixture()
def disk(tmp_path):
    """A disk of 3 MB, which only root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def until(folder):
    """A checkpoint is written behind the steps."""
    while not folder.is_dir():
        time.sleep(0.01)


def free_again(config, filler):
    filler.unlink()
    return run(config)


def test_a_disk_that_fills_while_a_checkpoint_is_written(disk, monkeypatch, trained):
    """The room is there when it is asked for, and gone when the arrays are written."""
    config = small_config(disk / "run", checkpoint_every=5, keep_checkpoints=3)
    filler = disk / "filler"
    ask = shutil.disk_usage

    def fill(report):
        if report.step == 9:
            until(config.checkpoints / "5")
            filler.write_bytes(bytes(max(0, ask(disk).free - 20_000)))

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1 << 30})())
    with pytest.raises(UserError, match="is full: free some space"):
        run(config, on_report=fill)
    monkeypatch.undo()
    checkpoints = existing(config.checkpoints)
    assert checkpoints.steps() == [5]
    checkpoints.close()
    assert same(free_again(config, filler), trained[1])


def test_a_folder_that_becomes_read_only(disk, trained):
    config = small_config(disk / "run", checkpoint_every=5, keep_checkpoints=3)

    def freeze(report):
        if report.step == 9:
            until(config.checkpoints / "5")
            subprocess.run(["mount", "-o", "remount,ro", disk / "run" / "checkpoints"], check=True)

    (disk / "run" / "checkpoints").mkdir(parents=True)
    place = disk / "run" / "checkpoints"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], check=True)
    before = threading.active_count()
    try:
        with pytest.raises(UserError, match="is read-only: make it writable"):
            run(config, on_report=freeze)
        assert threading.active_count() <= before  # none that waits in vain and holds the process
        with pytest.raises(UserError, match="is read-only: make it writable"):
            run(config)
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        checkpoints = existing(config.checkpoints)
        assert checkpoints.steps() == [5]
        checkpoints.close()
        assert same(run(config), trained[1])
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_the_description_is_json_with_a_checksum(trained):
    config, _ = trained
    found = json.loads((config.checkpoints / "15" / "meta" / "metadata").read_text())
    assert set(found) == {"text", "crc32"}
    assert json.loads(found["text"])["row"] == 20 + 20 + 10


def test_a_checkpoint_of_an_earlier_format_gets_one_sentence(trained, tmp_path):
    config, _ = copy_of(trained, tmp_path)
    file = config.checkpoints / "15" / "meta" / "metadata"
    text = json.loads(json.loads(file.read_text())["text"])
    assert text.pop("format") == 2
    old = json.dumps(text)
    file.write_text(json.dumps({"text": old, "crc32": zlib.crc32(old.encode())}))
    with pytest.raises(UserError, match=r"15 has format 1, this m1jax reads 2: export it with the m1jax that made it"):
        run(config)
    assert (config.checkpoints / "15").is_dir()


def test_two_arrays_of_one_name_are_refused():
    """Orbax would keep one of them without a word."""
    assert names({"a": {"b": 1, "c": 2}, "b": 3}) == ["a.b", "a.c", "b"]
    with pytest.raises(ValueError, match=r"two arrays of the state are called a\.b"):
        names({"a": {"b": 1}, "a.b": 2})
