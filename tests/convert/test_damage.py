"""Damaged checkpoints: one sentence that names tensor and file, and nothing written."""

import json
import os
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import m1jax
from m1jax.convert import parameters
from m1jax.convert.source import Checkpoint
from m1jax.errors import UserError
from m1jax.verbs.importing import import_checkpoint
from tests.convert import checkpoints
from tests.model import small

CONFIG = small.config(num_layers=2)
INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
GATE = "model.layers.1.mlp.gate_proj.weight"


def refused(folder, out, *words, dtype=None):
    """`m1 import` refuses in one sentence with the words, and leaves nothing, not even hidden."""
    before = set(out.parent.iterdir())
    with pytest.raises(UserError) as error:
        import_checkpoint(str(folder), str(out), dtype, False, None)
    assert set(out.parent.iterdir()) == before
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


@pytest.fixture
def source(tmp_path):
    """A whole checkpoint of two files."""
    return checkpoints.write(tmp_path / "hf", CONFIG, checkpoints.tensors(CONFIG), 2)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "ours"


def home(folder, name):
    """The file of a tensor."""
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def change(path, **tensors):
    """Replaces tensors of a file; None takes one out."""
    found = load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path)


def edit_index(folder, edit):
    content = json.loads((folder / INDEX).read_text())
    edit(content)
    (folder / INDEX).write_text(json.dumps(content))


def test_the_whole_one_passes(source, out):
    import_checkpoint(str(source), str(out), None, True, None)
    assert m1jax.load(out)[0].config.layer_kinds == ("global", "window")


@pytest.mark.parametrize("keep", [-1, -100, 200, 8, 3, 0])
def test_a_truncated_file(keep, source, out):
    path = source / SECOND
    path.write_bytes(path.read_bytes()[:keep])
    refused(source, out, path, "is damaged")


def test_a_wrong_shape(source, out):
    path = home(source, GATE)
    change(path, **{GATE: np.ones((16, 24), np.float32)})
    refused(source, out, path, GATE, "(16, 24)", "(24, 16)")


def test_a_missing_and_an_extra_tensor(source, out):
    path = home(source, GATE)
    change(path, **{GATE: None})
    refused(source, out, path, GATE, "lacks", INDEX)
    edit_index(source, lambda content: content["weight_map"].pop(GATE))
    refused(source, out, INDEX, "lacks", GATE, "config.json")
    change(path, **{GATE: np.ones((24, 16), np.float32), "model.more": np.ones(1, np.float32)})
    refused(source, out, path, "also holds", "model.more")
    edit_index(source, lambda content: content["weight_map"].update({GATE: path.name, "model.more": path.name}))
    refused(source, out, path, "more than config.json describes", "model.more")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [GATE, "lm_head.weight", "model.layers.0.self_attn.conv_v"])
def test_a_number_that_is_none(name, value, source, out):
    path = home(source, name)
    broken = load_file(path)[name].copy()
    broken.reshape(-1)[-1] = value
    change(path, **{name: broken})
    refused(source, out, path, name, "NaN or infinity")
    with pytest.raises(UserError, match="NaN or infinity"):
        m1jax.load(source)


def test_a_number_too_large_for_the_dtype_asked_for(source, out):
    path = home(source, GATE)
    broken = load_file(path)[GATE].copy()
    broken[3, 3] = np.finfo(np.float32).max  # finite, and rounded up to infinity in bfloat16
    change(path, **{GATE: broken})
    refused(source, out, path, GATE, "too large for bfloat16", dtype="bfloat16")
    import_checkpoint(str(source), str(out), None, True, None)


@pytest.mark.parametrize(
    "kind",
    [np.float64, np.int8, ml_dtypes.float8_e4m3fn, np.float16],
    ids=lambda kind: kind.__name__,
)
def test_a_dtype_that_is_not_trained(kind, source, out):
    path = home(source, GATE)
    change(path, **{GATE: np.ones((24, 16), kind)})
    refused(source, out, path, GATE, "float32 and bfloat16")


@pytest.mark.parametrize("place", ["../stolen.safetensors", "{absolute}", "sub/stolen.safetensors", "..", ""])
def test_an_index_that_points_outside(place, source, out, tmp_path):
    stolen = tmp_path / "stolen.safetensors"
    (source / "sub").mkdir()
    for target in (stolen, source / "sub" / "stolen.safetensors"):
        target.write_bytes((source / FIRST).read_bytes())
    place = place.format(absolute=stolen)
    edit_index(source, lambda content: content["weight_map"].update({GATE: place}))
    refused(source, out, INDEX, repr(place), "outside")


def test_links_are_followed_as_the_cache_of_hugging_face_has_them(source, out, tmp_path):
    """Every file is a link to one without an ending, and the folder itself is reached through a link."""
    cache = tmp_path / "models--m1"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    revision = source.rename(cache / "snapshots" / "4f")
    for number, path in enumerate(sorted(path for path in revision.iterdir() if path.is_file())):
        os.replace(path, cache / "blobs" / f"0a1b{number}")
        path.symlink_to(f"../../blobs/0a1b{number}")
    source.symlink_to(revision)
    first = (revision / FIRST).resolve()
    away = first.rename(tmp_path / "pruned")
    refused(source, out, FIRST, "is a broken link", "fetch")
    away.rename(first)
    import_checkpoint(str(source), str(out), None, True, None)


def test_a_single_file_that_is_a_link_to_nothing(tmp_path, out):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "pruned")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors is a broken link"):
        Checkpoint(tmp_path)


def test_an_index_that_disagrees_with_its_files(source, out):
    (source / SECOND).rename(source / "gone")
    refused(source, out, source / SECOND, "is missing", INDEX)
    (source / "gone").rename(source / SECOND)
    edit_index(source, lambda content: content["weight_map"].update({GATE: FIRST, "lm_head.weight": SECOND}))
    refused(source, out, source, INDEX, "lacks")
    for text in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": [1]}', "\x00"):
        (source / INDEX).write_text(text)
        refused(source, out, INDEX, "is damaged")


def test_a_tensor_in_two_files(source, out):
    path, other = home(source, GATE), source / FIRST
    other = source / SECOND if path == other else other
    change(other, **{GATE: np.ones((24, 16), np.float32)})
    refused(source, out, other, "also holds", GATE, INDEX)


def lie(path, edit):
    """Rewrites a file's header, leaving its data."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def offsets(name, start, stop):
    def edit(header):
        first, last = header[name]["data_offsets"]
        header[name]["data_offsets"] = [first + start, last + stop]

    return edit


LIES = {
    "longer": offsets(GATE, 0, 64),
    "shorter": offsets(GATE, 0, -64),
    "overlapping": offsets(GATE, -64, -64),
    "backwards": lambda header: header[GATE]["data_offsets"].reverse(),
    "beyond": offsets(GATE, 10**12, 10**12),
    "negative": offsets(GATE, -(10**12), 0),
    "larger shape": lambda header: header[GATE].update(shape=[24, 32]),
    "overflowing shape": lambda header: header[GATE].update(shape=[2**33, 2**33]),
    "unknown dtype": lambda header: header[GATE].update(dtype="F7"),
    "no offsets": lambda header: header[GATE].pop("data_offsets"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_header_that_lies(what, source, out):
    path = home(source, GATE)
    lie(path, LIES[what])
    refused(source, out, path, "is damaged")


@pytest.mark.parametrize("size", [2**63, 2**40, 2**27, 10**6, 0])
def test_a_header_of_a_false_length(size, source, out):
    path = source / FIRST
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(source, out, path, "is damaged")


def test_a_head_beside_a_tied_embedding_must_be_equal(tmp_path, out):
    config = small.config(num_layers=2, tie_embeddings=True, normalize_head=False)
    found = checkpoints.tensors(config)
    same = found | {"lm_head.weight": found["model.embed_tokens.weight"].copy()}
    import_checkpoint(str(checkpoints.write(tmp_path / "same", config, same)), str(out), None, True, None)
    same["lm_head.weight"][5, 5] = 7
    folder = checkpoints.write(tmp_path / "other", config, same)
    refused(folder, tmp_path / "theirs", folder / "model.safetensors", "lm_head.weight", "tie_word_embeddings = true")


def test_a_full_disk_is_found_out_before_anything_is_written(source, out, monkeypatch):
    usage = os.statvfs(source)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    refused(source, out, "is full", "free some space")
    assert usage.f_bavail * usage.f_frsize > 1000


class Trap:
    """What a pickle can do: make a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_torch_file_never_runs_code(source, out, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in checkpoints.tensors(CONFIG).items()}
    for path in (INDEX, FIRST, SECOND):
        (source / path).unlink()
    weights = source / "pytorch_model.bin"
    # Away from the folder that is watched for leftovers, and proven to be sprung by a free reading.
    sprung = tmp_path / "hf" / "sprung"
    for state in ({**tensors, "trap": Trap(sprung)}, Trap(sprung)):
        torch.save(state, weights)
        refused(source, out, weights, "not unpickled")
        assert not sprung.exists()
    torch.load(weights, weights_only=False)
    assert sprung.is_dir()
    weights.write_bytes(pickle.dumps(Trap(sprung / "raw")))
    refused(source, out, weights)
    assert not (sprung / "raw").exists()


def test_damaged_torch_files(source, out):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in checkpoints.tensors(CONFIG).items()}
    for path in (INDEX, FIRST, SECOND):
        (source / path).unlink()
    weights = source / "pytorch_model.bin"
    torch.save([*tensors.values()], weights)
    refused(source, out, weights, "no state dict")
    torch.save(tensors, weights, _use_new_zipfile_serialization=False)
    refused(source, out, weights, "save it again")
    torch.save(tensors, weights)
    weights.write_bytes(weights.read_bytes()[:-200])
    refused(source, out, weights)
    torch.save(tensors | {GATE: torch.ones(16, 24)}, weights)
    refused(source, out, weights, GATE, "(16, 24)", "(24, 16)")
    torch.save(tensors | {GATE: tensors[GATE].T.clone().T}, weights)  # not contiguous: still the same tensor
    import_checkpoint(str(source), str(out), None, True, None)
    gate = parameters.OnDisk(out / "parameters").read("prefix/1/mlp/gate_proj", None)
    np.testing.assert_array_equal(gate, tensors[GATE].numpy().T)


def test_torch_that_is_not_installed(source, out, monkeypatch):
    torch = pytest.importorskip("torch")
    for path in (INDEX, FIRST, SECOND):
        (source / path).unlink()
    torch.save({}, source / "pytorch_model.bin")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    refused(source, out, "pytorch_model.bin", "pip install torch")
