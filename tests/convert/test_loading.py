"""`m1jax.load`: what the documentation shows, and float32 that is float32."""

import json
import pathlib
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx

import m1jax
from m1jax import convert, model
from m1jax.convert import agreement, model_folder
from m1jax.errors import UserError
from m1jax.verbs import main
from tests.convert import checkpoints
from tests.model import small
from tests.oracle import checkpoint, torch_m1

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "conversion.md"
CONFIG = small.config(pattern=("global", "window", "window"), num_layers=5, init_std=0.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same bfloat16 weights as a checkpoint and as an import."""
    folder = tmp_path_factory.mktemp("load")
    _, params = model.create(CONFIG, 0)
    (folder / "downloaded").mkdir()
    params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    convert.export(params, CONFIG, 1e4, None, folder / "downloaded")
    ours = folder / "models" / "m1"
    assert main(["import", "--from", str(folder / "downloaded"), "--out", str(ours), "--verify"]) == 0
    return folder


@pytest.mark.parametrize("name", ["downloaded", "models/m1"])
def test_float32_is_float32(name, folders):
    """Against PyTorch in float64 on the same numbers, documents packed in a row and padding behind them."""
    found, tokenizer = m1jax.load(folders / name, dtype="float32")
    assert tokenizer is None
    tokens = np.array(small.tokens(0, 2, 33))
    segments = np.array([[1] * 20 + [2] * 13, [1] * 30 + [0] * 3])
    tensors = {
        name: torch.from_numpy(tensor.astype(np.float64))
        for name, tensor in checkpoints.read(folders / "downloaded").items()
    }
    rows = torch.from_numpy(tokens), torch.from_numpy(segments)
    exact = torch_m1.logits(checkpoint.settings(CONFIG, 1e4), tensors, *rows)
    difference = np.abs(np.asarray(found(tokens, segments)) - exact.numpy())[segments > 0].max()
    assert difference < 1e-5 * float(exact.abs().max())
    coarse, _ = m1jax.load(folders / name)
    assert np.abs(np.asarray(coarse(tokens, segments)) - exact.numpy())[segments > 0].max() > 100 * difference


CASES = {
    "rounded": ({}, ["--dtype", "bfloat16"], "mlx-lm"),
    "exact": ({}, [], "mlx-lm"),
    "tied": ({"tie_embeddings": True}, [], "The PyTorch model"),
    "plain": ({"normalize_head": False}, ["--dtype", "bfloat16"], "The PyTorch model"),
    "torch": ({}, ["--format", "torch"], "The PyTorch model"),
}


@pytest.mark.parametrize("name", CASES)
def test_an_export_is_verified_by_a_program_that_knows_its_kind(name, tmp_path):
    changes, words, program = CASES[name]
    config = small.config(num_layers=2, init_std=0.1, **changes)
    _, params = model.create(config, 0)
    (tmp_path / "hf").mkdir()
    convert.export(params, config, 1e4, None, tmp_path / "hf")
    assert main(["import", "--from", str(tmp_path / "hf"), "--out", str(tmp_path / "ours")]) == 0
    command = ["export", "--model", str(tmp_path / "ours"), "--out", str(tmp_path / "out"), "--verify", *words]
    assert main(command) == 0
    found = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert found["agrees"] and found["sentence"].startswith(program) and found["longest"] > config.window
    assert found["relative_difference"] < (1e-2 if name == "rounded" else 1e-5)
    assert found["tensors"] == 21 - config.tie_embeddings
    # The comparison is not blind: a model of another RoPE base is told apart.
    content = json.loads((tmp_path / "ours" / "model.json").read_text())
    (tmp_path / "ours" / "model.json").write_text(json.dumps({**content, "rope_base": 30.0}))
    compared = agreement.compare_logits(
        tmp_path / "out", config, [[1, 2, 3] * 20], m1jax.load(tmp_path / "out", dtype="float32")[0]
    )
    assert compared["agrees"]
    with pytest.raises(UserError, match="differ from ours"):
        agreement.compare_logits(
            tmp_path / "out", config, [[1, 2, 3] * 20], m1jax.load(tmp_path / "ours", dtype="float32")[0]
        )


def products(jaxpr):
    """Every matrix product of a traced function, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_no_product_of_float32_is_left_to_a_lower_precision(folders):
    """Accelerators round the factors of a float32 product unless they are told not to; a CPU would not show it."""
    found, _ = m1jax.load(folders / "models" / "m1", dtype="float32")
    abstract = model.abstract(found.config)

    def logits(params, tokens):
        return nnx.merge(abstract.graphdef, params)(tokens, rope_base=1e4)

    jaxpr = jax.make_jaxpr(logits)(abstract.shapes, jax.ShapeDtypeStruct((1, 8), np.int32)).jaxpr
    seen = [equation.params["precision"] for equation in products(jaxpr)]
    assert len(seen) >= 8
    assert all(precision is not None and set(precision) == {jax.lax.Precision.HIGHEST} for precision in seen)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_of_the_documentation_runs(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    (example,) = blocks("python")
    exec(compile(example, str(DOCS), "exec"), {})
    assert "(1, 4, 260) float32" in capsys.readouterr().out


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a run's folder"):
        m1jax.load(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="no finished model: run `m1 import` first"):
        m1jax.load(tmp_path)


@pytest.mark.parametrize("attention", ["pallas_tpu", "gpu"])
def test_what_other_devices_trained_is_used_here(attention, folders, tmp_path, caplog):
    ours = tmp_path / "m1"
    shutil.copytree(folders / "models" / "m1", ours)
    record = json.loads((ours / model_folder.RECORD).read_text())
    record["config"]["attention"] = attention
    (ours / model_folder.RECORD).write_text(json.dumps(record))
    expected = m1jax.load(folders / "models" / "m1")[0].generate([5, 6, 7], max_new_tokens=4)
    assert not caplog.messages
    assert m1jax.load(ours)[0].generate([5, 6, 7], max_new_tokens=4) == expected
    assert caplog.messages == [f"attention: reference on cpu, where {attention} does not run."]
