"""`m1 corpus` on folders as people have them: settings for their fields, and what makes it read them again."""

import json

import pyarrow.parquet as pq
import pytest

from m1jax import artefact
from m1jax.verbs import corpus, main
from tests.verbs.conftest import TINY


@pytest.fixture(autouse=True)
def no_packages(tmp_path, monkeypatch):
    """No evaluation items of an earlier run are at hand."""
    monkeypatch.setenv("M1JAX_CACHE", str(tmp_path / "packages"))


def run(folder, text, *settings):
    """Exit status of `m1 corpus`."""
    sets = [part for setting in (f"folder={folder}", *settings) for part in ("--set", setting)]
    return main(["corpus", "--config", TINY, *sets, "--text", str(text)])


def sources(folder):
    return {name: source["domain"] for name, source in artefact.stamp(folder / "corpus")["sources"].items()}


@pytest.fixture
def web(tmp_path):
    """Pages of three sites, whose fields have names and values of the web."""
    (tmp_path / "web").mkdir()
    records = [
        {"id": number, "body": f"page {number} of {site}", "domain": site, "source": f"https://{site}/{number}"}
        for site in ("example.org", "Medical", "example.net")
        for number in range(90)
    ]
    (tmp_path / "web" / "crawl.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path / "web"


def test_fields_of_the_web_are_settings(web, tmp_path, capsys):
    assert run(tmp_path, web) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "every document was set aside (no field text or content: 270)" in error and "data.fields" in error
    assert run(tmp_path, web, "data.fields.text=body") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "domain 'example.org' is not in data.domains: 90" in error and "data.domain_names" in error
    fields = "data.fields={'text': 'body', 'source': ''}"
    assert run(tmp_path, web, fields, "data.fields.domain=") == 0
    assert sources(tmp_path) == {"web": "general"}
    assert run(tmp_path, web, fields, "data.domain_names={'Medical': 'medical', 'example.org': ''}") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "set aside: 90 for domain 'example.net' is not in data.domains" in out
    assert "config key data.domain_names; data.fields.domain = '' ignores the field" in out
    assert sources(tmp_path) == {"web": "general", "web-medical": "medical"}
    assert run(tmp_path, web, "data.fields.text=body", "data.domain_names={'*': 'general'}") == 2
    assert "over 200 sources (such as 'https-example.org-0'" in " ".join(capsys.readouterr().err.split())


def test_a_changed_text_behind_a_link_and_an_earlier_format_are_made_again(tmp_path, capsys, monkeypatch):
    for folder in ("far", "text"):
        (tmp_path / folder).mkdir()
    (tmp_path / "far" / "a.txt").write_text("what lies there")
    (tmp_path / "text" / "notes").symlink_to(tmp_path / "far")
    assert run(tmp_path, tmp_path / "text") == 0
    assert run(tmp_path, tmp_path / "text") == 0
    assert "is already complete" in capsys.readouterr().out
    (tmp_path / "far" / "b.txt").write_text("and more")
    assert run(tmp_path, tmp_path / "text") == 0
    assert len(pq.read_table(tmp_path / "corpus" / "documents" / "notes.parquet")) == 1  # the other is held out
    assert len(pq.read_table(tmp_path / "corpus" / "heldout" / "notes.parquet")) == 1
    (tmp_path / "text").rename(tmp_path / "medical")
    assert run(tmp_path, tmp_path / "medical") == 0 and sources(tmp_path) == {"notes-medical": "medical"}
    (tmp_path / "medical").rename(tmp_path / "text")
    assert run(tmp_path, tmp_path / "text") == 0
    capsys.readouterr()
    monkeypatch.setattr(corpus, "FORMAT", corpus.FORMAT + 1)
    assert run(tmp_path, tmp_path / "text") == 0
    assert "is already complete" not in capsys.readouterr().out
