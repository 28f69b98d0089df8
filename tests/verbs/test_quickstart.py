import pytest

from m1jax import artefact
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.verbs import quickstart
from m1jax.verbs.quickstart import ADAPTED, adapted

QUICKSTART = config_file.load("quickstart")


def mixtures(sources):
    return [dict(stage.mixture) for stage in adapted(QUICKSTART, sources).stages]


def test_a_whole_corpus_needs_no_other_config():
    assert adapted(QUICKSTART, {"wordnet": "general", "gcide": "general", "mondo": "medical"}) == QUICKSTART


def test_what_is_missing_is_left_out_and_a_stage_left_with_nothing_reads_all():
    # No apt-get (no wordnet), and a folder of one's own text without a medical part.
    assert mixtures({"poetry": "general", "mondo": "medical"})[0] == {"domain:general": 0.5}
    assert mixtures({"letters": "general"}) == [
        {"domain:general": 0.5},
        {"domain:general": 0.25},
        {"domain:general": 1.0},
    ]


def test_a_saved_config_is_read_as_the_same_run(tmp_path):
    config = config_file.load("quickstart", ["stages.0.mixture={'a.b \\'c\\'': 0.1, '骨科': 3}", "optimizer.eps=1e-7"])
    config_file.save(config, tmp_path / "new" / "saved.py", "A test.")
    assert config_file.load(tmp_path / "new" / "saved.py") == config
    assert config_file.load(tmp_path / "new" / "saved.py", ["seed=3"]).seed == 3
    assert all(len(line) < 140 for line in (tmp_path / "new" / "saved.py").read_text().splitlines())


@pytest.mark.parametrize("sources", [{"letters": "general"}, {"wordnet": "general", "mondo": "medical"}])
def test_the_commands_name_a_config_in_the_runs_folder_and_no_nested_quotes(sources, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(quickstart, "main", lambda arguments: called.append(arguments) or 0)
    entries = {name: {"domain": domain} for name, domain in sources.items()}
    monkeypatch.setattr(artefact, "require", lambda *_: {"sources": entries})
    folder = tmp_path / "run"
    overrides = [f"folder={folder}", "train.log_every=3"]
    assert quickstart.walk("quickstart", overrides, "my text") == 0
    said = capsys.readouterr().out
    assert "mixture=" not in said and '"' not in said
    runs = [arguments for arguments in called if "--config" in arguments]
    configs = {arguments[arguments.index("--config") + 1] for arguments in runs if arguments[0] != "corpus"}
    if "letters" not in sources:
        assert configs == {"quickstart"} and not (folder / ADAPTED).exists()
        return
    assert configs == {str(folder / ADAPTED)} and said.count(str(folder / ADAPTED)) == len(runs)
    assert not any("--set" in arguments for arguments in runs if arguments[0] != "corpus")
    written = config_file.load(folder / ADAPTED)
    assert written == adapted(config_file.load("quickstart", overrides), sources)


def test_fine_tuning_starts_from_the_model_and_is_compared_with_it(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(quickstart, "main", lambda arguments: called.append(arguments) or 0)
    monkeypatch.setattr(artefact, "require", lambda *_: {"sources": {"mondo": {"domain": "medical"}}})
    folder = str(tmp_path / "run")
    assert quickstart.walk("quickstart", [f"folder={folder}"], None, "sft_quickstart") == 0
    made, tuned, asked = called[-3:]
    questions = made[made.index("--out") + 1]
    assert made[0] == "synthesize"
    config = config_file.load(tuned[2], [tuned[i + 1] for i, part in enumerate(tuned) if part == "--set"])
    assert tuned[0] == "sft" and config.train.initial == folder and config.model == QUICKSTART.model
    assert tuned[-1].startswith(f"{questions}/") and asked[asked.index("--questions") + 1].startswith(f"{questions}/")
    assert asked[asked.index("--model") + 1] == config.folder and asked[asked.index("--against") + 1] == folder


@pytest.mark.parametrize(
    ("sft", "overrides", "words"),
    [("nowhere.py", [], "nowhere.py"), ("sft_quickstart", ["model.hidden=96"], "another model than the run")],
)
def test_a_fine_tuning_that_cannot_follow_is_refused_before_anything_runs(sft, overrides, words, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "main", lambda arguments: pytest.fail(f"m1 {arguments[0]} was run"))
    with pytest.raises(UserError, match=words):
        quickstart.walk("quickstart", [f"folder={tmp_path}", *overrides], None, sft)
