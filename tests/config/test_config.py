import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.config import MeshConfig, ModelConfig, domains, to_dict
from m1jax.config import file as config_file
from m1jax.errors import UserError

SHIPPED = (
    "quickstart", "sft_quickstart", "prefer_quickstart", "rl_quickstart", "sft_rounds", "m1_1b5", "m1_14b",
    "m1_14b_sft", "m1_14b_lora", "m1_14b_prefer", "m1_14b_rl",
)  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_loads_and_survives_json(name):
    config = config_file.load(name)
    assert config_file.from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.total_steps == sum(stage.steps for stage in config.stages)


def test_the_14b_has_the_released_number_of_parameters():
    assert config_file.load("m1_14b").model.num_parameters == 14_470_764_320


def test_the_14b_geometry_is_the_released_one():
    model = config_file.load("m1_14b").model
    assert model.heads("global") == (20, 2, 256)
    assert model.heads("window") == (40, 8, 128)
    assert model.layer_kinds == ("global", "window") * 20


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.hiden=64", ["model.hiden", "did you mean model.hidden?"]),
        ("data.window_documents=64", ["data.window_documents", "did you mean data.packing_window?"]),
        ("modle.hidden=64", ["unknown config key modle", "model"]),
        ("model.window=0", ["model.window", "at least 1"]),
        ("model.num_heads=3", ["model.num_heads = 3", "does not divide"]),
        ("model.window_num_kv_heads=4", ["model.window_num_kv_heads = 4", "divisor"]),
        ("model.hidden='wide'", ["model.hidden", "type int"]),
        ("model.hidden=True", ["model.hidden", "type int"]),
        ("model.norm_eps=float", ["model.norm_eps", "type float"]),
        ("model.compute_dtype=float16", ["float32, bfloat16", "float16"]),
        ("model.pattern=('global','local')", ["model.pattern", "local"]),
        ("model.pattern=()", ["model.pattern", "non-empty"]),
        ("optimizer.b1=1.0", ["optimizer.b1", "below 1"]),
        ("optimizer.muon_momentum=1.0", ["optimizer.muon_momentum", "below 1"]),
        ("stages.1.name=general", ["'general' is used twice"]),
        ("stages.0.row_length=100", ["row_length = 100", "data.row_lengths"]),
        ("model.max_positions=512", ["row_length = 2048", "max_positions"]),
        ("stages.0.mixture={'wordnet': 0}", ["mixture", "above 0"]),
        ("stages.0.mixture={'wordnet': -1}", ["mixture.wordnet", "at least 0"]),
        ("stages.0.learning_rate.end=1.0", ["constant", "not end"]),
        ("stages.0.learning_rate.warmup_steps=100000", ["warmup_steps", "shorten"]),
        ("stages.9.tokens=1", ["stages.9.tokens", "by number"]),
        ("data.vocab_size=9000", ["data.vocab_size = 9000", "model.vocab_size"]),
        ("seed", ["no '='"]),
        ("data.domains=()", ["data.domains", "non-empty"]),
        ("data.domains=('general','medical','')", ["data.domains.2 = ''", "1 to 40 letters"]),
        ("data.domains=('general','medical','a:b')", ["data.domains.2 = 'a:b'", "letters"]),
        ("data.domains=('general','medical','general')", ["data.domains.2 = 'general'", "twice"]),
        ("data.domains=('general',)", ["stages.1.mixture.domain:medical", "'medical', which is not in data.domains"]),
        ("stages.0.mixture={'domain:medcal': 1}", ["stages.0.mixture.domain:medcal", "did you mean 'medical'?"]),
        ("data.max_epochs={'domain:genral': 1}", ["data.max_epochs.domain:genral", "did you mean 'general'?"]),
        ("data.tasks={'notes': 'Medical'}", ["data.tasks.notes", "'Medical'", "did you mean 'medical'?"]),
        ("data.vocab_parts=[{'domain': 'law'}]", ["data.vocab_parts.0.domain", "'law'"]),
        ("data.vocab_parts=[{'domain': 'general', 'ids': 9000}]", ["9,000 ids", "too many", "8,192"]),
        ("data.vocab_parts=[{'domain': 'general', 'ids': 8192}, {'domain': 'medical'}]", ["8,192 ids", "too many"]),
        ("data.vocab_parts=[{'domain': 'general', 'ids': 6000}]", ["6,000 ids", "fewer", "leave out the last"]),
        ("data.vocab_parts=[{'domain': 'general'}, {'domain': 'general'}]", ["vocab_parts.1.domain", "twice"]),
        ("data.fields={'txt': 'body'}", ["data.fields.txt", "did you mean 'text'?"]),
        ("data.fields.text=", ["data.fields.text is empty", "name the field"]),
        ("data.fields.answer=", ["data.fields.answer is empty", "name the field"]),
        ("data.fields.answer=reply", ["data.fields.answer needs data.fields.question", "name both"]),
        ("data.fields={'text': 3}", ["data.fields.text", "type str"]),
        ("data.domain_names={'*': 'medcal'}", ["data.domain_names.*", "did you mean 'medical'?"]),
        ("data.general_vocab_size=6000", ["general_vocab_size", "did you mean data.vocab_parts?"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(override, words):
    with pytest.raises(UserError) as error:
        config_file.load("quickstart", [override])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(max_size=45), st.sampled_from([":", "/", "\\", "\n", "\0", "\x7f", "\u2028", "[", "*", "="]), st.data())
def test_a_name_of_a_domain_holds_nothing_that_means_something_elsewhere(text, sign, data):
    place = data.draw(st.integers(0, len(text)))
    assert not domains.is_name(text[:place] + sign + text[place:])
    assert not domains.is_name("") and not domains.is_name(f" {text}") and not domains.is_name("x" * 41)
    if domains.is_name(text):
        assert 0 < len(text) <= 40 and text == text.strip() and text.isprintable()


@pytest.mark.parametrize("name", ["radiology", "interventional radiology", "影像", "q-a_2.1", "x", "médecine générale"])
def test_names_in_any_script_are_domains(name):
    config = config_file.load("quickstart", [f"data.domains=('general','medical',{name!r})"])
    assert config.data.domains[-1] == name and domains.is_name(name)


def test_domains_come_in_the_order_of_the_config():
    assert domains.ordered({"b", "law", "a", "c"}, ("c", "missing", "b")) == ["c", "b", "a", "law"]


def test_a_missing_required_key_is_named(tmp_path):
    path = tmp_path / "short.py"
    path.write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'name': 'x'})\n")
    with pytest.raises(UserError, match="config key folder is missing"):
        config_file.load(path)


@pytest.mark.parametrize(
    "text", ["x = 1\n", "def get_config(:\n", "import nothing_like_it\n", "def get_config():\n  return 3\n"]
)
def test_a_broken_config_file_is_named(tmp_path, text):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.py|must be a group"):
        config_file.load(path)


def test_a_key_with_a_dot_needs_a_plain_dict(tmp_path):
    """Names of sources and of web sites have dots, which ml_collections refuses."""
    shipped = to_dict(config_file.load("quickstart"))
    shipped["data"]["domain_names"] = {"example.org": "general"}
    path = tmp_path / "dots.py"
    head = "from ml_collections import ConfigDict\ndef get_config():\n    return "
    path.write_text(f"{head}ConfigDict({shipped!r})\n")
    with pytest.raises(UserError, match=r"dots\.py.*example\.org.*get_config\(\) may return a plain dict") as error:
        config_file.load(path)
    assert "\n" not in str(error.value)
    path.write_text(f"{head}{shipped!r}\n")
    assert config_file.load(path).data.domain_names == {"example.org": "general"}


def test_a_missing_config_file_names_the_shipped_ones():
    with pytest.raises(UserError, match="quickstart"):
        config_file.load("nothing.py")


def test_overrides_reach_lists_and_mappings():
    config = config_file.load("quickstart", ["stages.2.tokens=4096", "stages.0.mixture={'a': 1, 'b': 3}", "name=other"])
    assert config.stages[2].tokens == 4096
    assert dict(config.stages[0].mixture) == {"a": 1.0, "b": 3.0}
    assert config.name == "other"


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_the_mesh_takes_what_is_left(data, fsdp, tensor, context):
    mesh = MeshConfig(fsdp=fsdp, tensor=tensor, context=context)
    assert mesh.shape(data * fsdp * tensor * context) == (1, data, fsdp, tensor, context)
    if fsdp > 1:
        with pytest.raises(UserError, match="do not make"):
            mesh.shape(data * fsdp * tensor * context + 1)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["global", "window"]), min_size=1, max_size=4), st.integers(1, 9))
def test_parameters_are_counted_layer_by_layer(pattern, num_layers):
    model = ModelConfig(
        vocab_size=300, hidden=24, ffn=40, num_layers=num_layers, num_heads=2, num_kv_heads=1, window_num_heads=4,
        window_num_kv_heads=2, window=3, norm_eps=1e-6, init_std=0.02, max_positions=8, pattern=tuple(pattern),
    )  # fmt: skip
    kinds = [pattern[i % len(pattern)] for i in range(num_layers)]
    # Global: q and o 24x24, k and v 24x12, 4 convolution scalars; window: k and v 24x(2*6), 8 scalars.
    by_hand = {"global": 2 * 576 + 2 * 288 + 4, "window": 2 * 576 + 2 * 288 + 8}
    expected = 2 * 300 * 24 + 24 + sum(by_hand[kind] + 3 * 24 * 40 + 2 * 24 for kind in kinds)
    assert model.num_parameters == expected
