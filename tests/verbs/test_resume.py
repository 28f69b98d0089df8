"""`m1 train` on a folder that is in use, and on one whose run was made with other settings."""

import os

from m1jax.train.run.lease import Lease
from tests.verbs.test_bad_input import refused, verb


def test_a_second_training_on_a_live_folder_is_refused_before_it_touches_anything(capsys, tmp_path):
    with Lease(tmp_path / "train"):
        before = [(path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()]
        refused(capsys, verb("train", tmp_path), tmp_path, f"process {os.getpid()} on {os.uname().nodename}")
        assert [(path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()] == before
