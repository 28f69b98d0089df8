"""Checkpoint to Orbax and back: every tensor's every bit, whatever the model, the files and the dtypes."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

import m1jax
from m1jax import convert, loading, model
from m1jax.config import MeshConfig
from m1jax.convert import model_folder, parameters, table
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.verbs import main
from tests.convert import checkpoints
from tests.convert.checkpoints import BF16, F32
from tests.model import small


def run(*words):
    return main([str(word) for word in words])


@st.composite
def models(draw):
    heads, window_heads = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    layers = draw(st.integers(1, 6))
    return small.config(
        hidden=16,
        ffn=draw(st.sampled_from([1, 24, 40])),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        window_num_heads=window_heads,
        window_num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if window_heads % n == 0])),
        pattern=tuple(draw(st.lists(st.sampled_from(["global", "window"]), min_size=layers, max_size=layers))),
        normalize_head=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
    )


@settings(max_examples=15, deadline=None)
@given(models(), st.integers(1, 4), st.sampled_from(["float32", "bfloat16", "convolutions", "any"]), st.randoms())
def test_every_bit_survives(tmp_path_factory, config, files, kind, random):
    """Layers of one kind may even differ in dtype from each other: a stacked parameter holds the wider one."""
    tmp_path = tmp_path_factory.mktemp("trip")
    dtype_of = {
        "float32": lambda name: F32,
        "bfloat16": lambda name: BF16,
        "convolutions": lambda name: F32 if "conv_" in name else BF16,
        "any": lambda name: random.choice([F32, BF16]),
    }[kind]
    wanted = checkpoints.tensors(config, dtype_of)
    source = checkpoints.write(tmp_path / "hf", config, wanted, files)
    assert run("import", "--from", source, "--out", tmp_path / "ours", "--verify") == 0
    size = f"{random.choice([1, 4000, 30_000, 10**9])}"
    assert run("export", "--model", tmp_path / "ours", "--out", tmp_path / "back", "--shard-size", size) == 0
    checkpoints.same_bits(checkpoints.read(tmp_path / "back"), wanted)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    assert {key: after.get(key) for key in before} == before
    if (index := tmp_path / "back" / "model.safetensors.index.json").exists():
        content = json.loads(index.read_text())
        assert content["weight_map"].keys() == wanted.keys()
        assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in wanted.values())
    assert convert.read(source)[0].layer_kinds == config.layer_kinds
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(folder of a checkpoint of three files, its import, its config, its tensors)."""
    folder = tmp_path_factory.mktemp("tiny")
    config = small.config(vocab_size=264, num_layers=5, pattern=("global", "window", "window"))
    _, params = model.create(config, 0)
    plain = folder / "plain"
    plain.mkdir()
    convert.export(params, config, 1e4, None, plain)
    found = checkpoints.read(plain)
    source = checkpoints.write(folder / "hf", config, found, 3)
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    assert run("import", "--from", source, "--out", folder / "ours") == 0
    return source, folder / "ours", config, found


def test_any_orbax_restores_an_import(tiny):
    _, ours, config, _ = tiny
    _, params = model.create(config, 0)
    restored = ocp.StandardCheckpointer().restore(ours / "parameters")
    jax.tree.map(np.testing.assert_array_equal, restored, {"params": params})


def test_on_disk_one_layer_is_one_chunk(tiny):
    """As plain tensorstore sees it."""
    _, ours, config, _ = tiny
    shapes = model.abstract(config).shapes
    for path in ("periods/0/attention/q_proj", "periods/0/mlp/down_proj", "prefix/0/mlp/up_proj", "embed/weight"):
        shape = table.find(shapes, path).shape
        store = {"driver": "ocdbt", "base": f"file://{ours}/parameters/", "path": f"params.{path.replace('/', '.')}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
        assert array.shape == shape
        wanted = (1, *shape[1:]) if path.startswith("periods") else shape
        assert tuple(array.chunk_layout.read_chunk.shape) == wanted


def test_an_import_is_restored_onto_a_mesh_where_each_device_holds_its_share(tiny):
    _, ours, config, _ = tiny
    _, params = model.create(config, 0)
    mesh = meshes.make(MeshConfig(fsdp=4, tensor=2))
    found = parameters.restore(ours / "parameters", loading.target_of(config, mesh))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    head = found["head"]["weight"]
    assert {shard.data.shape for shard in head.addressable_shards} == {(132, 4)}
    gate = found["periods"]["0"]["mlp"]["gate_proj"]
    assert gate.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")


def test_every_kind_of_folder_loads_and_computes_the_same(tiny, tmp_path):
    source, ours, _, found = tiny
    assert run("export", "--model", ours, "--out", tmp_path / "bin", "--format", "torch", "--shard-size", "20KB") == 0
    assert len(list((tmp_path / "bin").glob("pytorch_model-*.bin"))) > 1 and not list(tmp_path.rglob("*.safetensors"))
    assert run("import", "--from", tmp_path / "bin", "--out", tmp_path / "again", "--verify") == 0
    tokens = np.asarray(small.tokens(0, 2, 30))
    expected = None
    for folder in (source, ours, tmp_path / "bin", tmp_path / "again"):
        language_model, tokenizer = m1jax.load(folder)
        assert tokenizer is None
        logits = np.asarray(language_model(tokens))
        expected = logits if expected is None else expected
        np.testing.assert_array_equal(logits, expected)
    assert run("export", "--model", tmp_path / "again", "--out", tmp_path / "back") == 0
    checkpoints.same_bits(checkpoints.read(tmp_path / "back"), found)


def test_what_torch_users_read_is_what_torch_saved(tiny, tmp_path):
    torch = pytest.importorskip("torch")
    _, ours, _, found = tiny
    assert run("export", "--model", ours, "--out", tmp_path / "one", "--format", "torch", "--dtype", "bfloat16") == 0
    state = torch.load(tmp_path / "one" / "pytorch_model.bin", weights_only=True)
    assert state.keys() == found.keys()
    for name, tensor in state.items():
        assert tensor.equal(torch.from_numpy(found[name]).to(torch.bfloat16)), name


def test_generation_settings_and_token_ids_come_along(tiny, tmp_path):
    source, ours, _, _ = tiny
    assert run("export", "--model", ours, "--out", tmp_path / "back") == 0
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == {"temperature": 0.5}
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == [2, 3]
    assert model_folder.read(ours).token_ids == {"eos_token_id": [2, 3]}
    assert {path.name for path in source.iterdir()} >= {"config.json", "model.safetensors.index.json"}


@pytest.mark.parametrize("verb", ["import", "export"])
def test_dtypes_are_converted_rounding_to_even(verb, tiny, tmp_path):
    source, ours, _, found = tiny
    if verb == "import":
        assert run("import", "--from", source, "--out", tmp_path / "narrow", "--dtype", "bfloat16", "--verify") == 0
        assert run("export", "--model", tmp_path / "narrow", "--out", tmp_path / "out") == 0
    else:
        assert run("export", "--model", ours, "--out", tmp_path / "out", "--dtype", "bfloat16") == 0
    for name, tensor in checkpoints.read(tmp_path / "out").items():
        # Round half to even on the upper 16 bits, by integers.
        bits = found[name].view(np.uint32).astype(np.uint64)
        wanted = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        np.testing.assert_array_equal(tensor.view(np.uint16), wanted)
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["torch_dtype"] == "bfloat16"


def test_float16_is_read_where_a_dtype_is_asked_for(tmp_path):
    config = small.config(num_layers=1)
    found = {name: np.clip(tensor, -9, 9).astype(np.float16) for name, tensor in checkpoints.tensors(config).items()}
    source = checkpoints.write(tmp_path / "hf", config, found)
    with pytest.raises(UserError, match=r"float16, m1jax reads float32 and bfloat16 without --dtype"):
        convert.read(source)
    assert run("import", "--from", source, "--out", tmp_path / "ours", "--dtype", "float32", "--verify") == 0
    assert run("export", "--model", tmp_path / "ours", "--out", tmp_path / "back") == 0
    wanted = {name: tensor.astype(np.float32) for name, tensor in found.items()}
    checkpoints.same_bits(checkpoints.read(tmp_path / "back"), wanted)


def test_a_dtype_can_be_chosen_on_loading(tiny):
    source, ours, _, _ = tiny
    tokens = np.asarray(small.tokens(0, 30))
    for folder in (source, ours):
        narrow, _ = m1jax.load(folder, dtype="bfloat16")
        assert narrow.config.param_dtype == narrow.config.compute_dtype == "bfloat16"
        wide, _ = m1jax.load(folder, dtype="float32")
        difference = np.abs(np.asarray(narrow(tokens)) - np.asarray(wide(tokens))).max()
        assert 0 < difference < 0.2
    with pytest.raises(UserError, match="dtype must be one of float32, bfloat16"):
        m1jax.load(ours, dtype="float64")


def test_a_model_of_two_dtypes_keeps_both_when_it_is_loaded(tmp_path):
    """Convolutions in float32 beside matrices in bfloat16."""
    config = small.config(num_layers=2)
    _, params = model.create(config, 0)
    plain = tmp_path / "plain"
    plain.mkdir()
    convert.export(params, config, 1e4, None, plain)
    found = {
        name: tensor if "conv_" in name else tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in checkpoints.read(plain).items()
    }
    source = checkpoints.write(tmp_path / "hf", config, found)
    assert run("import", "--from", source, "--out", tmp_path / "ours") == 0
    tokens = np.asarray(small.tokens(0, 30))
    here, there = (m1jax.load(folder)[0] for folder in (source, tmp_path / "ours"))
    assert here.config.compute_dtype == there.config.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(here(tokens), there(tokens))
    coarse = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in found.items()}
    rounded, _ = m1jax.load(checkpoints.write(tmp_path / "coarse", config, coarse))
    assert np.abs(np.asarray(rounded(tokens)) - np.asarray(here(tokens))).max() > 0
