import json

import pytest

from m1jax import artefact
from m1jax.errors import UserError


def test_a_result_is_whole_or_absent(tmp_path):
    out = tmp_path / "a" / "rows"
    with pytest.raises(RuntimeError), artefact.building(out, "rows", "k1") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not out.exists()
    assert list(out.parent.iterdir()) == []
    details = {}
    with artefact.building(out, "rows", "k1", details) as folder:
        (folder / "part").write_text("x")
        details["count"] = 3
    assert artefact.is_whole(out, "rows", "k1")
    assert not artefact.is_whole(out, "rows", "k2")
    assert not artefact.is_whole(out, "corpus", "k1")
    assert artefact.stamp(out)["count"] == 3


def test_changed_inputs_rebuild_and_a_failed_rebuild_keeps_the_old(tmp_path):
    out = tmp_path / "rows"
    with artefact.building(out, "rows", "k1") as folder:
        (folder / "old").write_text("x")
    with pytest.raises(RuntimeError), artefact.building(out, "rows", "k2"):
        raise RuntimeError
    assert artefact.is_whole(out, "rows", "k1")
    with artefact.building(out, "rows", "k2") as folder:
        (folder / "new").write_text("x")
    assert sorted(p.name for p in out.iterdir()) == [artefact.STAMP, "new"]


def test_what_a_killed_process_left_is_not_whole_and_is_cleared(tmp_path):
    out = tmp_path / "rows"
    (tmp_path / ".rows.partial").mkdir()
    (tmp_path / ".rows.partial" / "half").write_text("x")
    assert artefact.stamp(out) is None
    with artefact.building(out, "rows", "k1") as folder:
        assert list(folder.iterdir()) == []


def test_a_folder_of_somebody_else_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UserError, match="exists and is not an m1jax rows"), artefact.building(tmp_path, "rows", "k"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


def test_errors_name_the_verb(tmp_path):
    with pytest.raises(UserError, match="run `m1 pack` first"):
        artefact.require(tmp_path, "rows", "pack")
    (tmp_path / artefact.STAMP).write_text(json.dumps({"kind": "corpus", "key": "k"}))
    with pytest.raises(UserError, match="is of kind 'corpus', but 'rows' is needed"):
        artefact.require(tmp_path, "rows", "pack")
    (tmp_path / artefact.STAMP).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        artefact.require(tmp_path, "rows", "pack")


def test_a_place_that_is_a_link_stays_one(tmp_path):
    """To a larger disk, say: the result is written there, and rebuilt there."""
    out, disk = tmp_path / "rows", tmp_path / "disk"
    disk.mkdir()
    out.symlink_to(disk / "rows")
    for key in ("k1", "k2"):
        with artefact.building(out, "rows", key) as folder:
            assert folder.parent == disk
            (folder / key).write_text("x")
        assert artefact.is_whole(out, "rows", key) and out.is_symlink()
    assert sorted(path.name for path in disk.rglob("*")) == ["k2", artefact.STAMP, "rows"]
