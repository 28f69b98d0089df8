"""Whole lives of runs, from `up` to nothing left: the real scripts and the real `m1 train` in a stand-in cloud."""

import os
import re
import signal

import pytest

pytestmark = pytest.mark.slow

STEPS = 400
# Long enough to be preempted in the middle on a fast machine too.
LONGER = f"stages.0.tokens={(STEPS - 12) * 512} train.checkpoint_every=10"


def trained(cloud):
    """The steps that the journal in the bucket holds, in order."""
    from m1jax.train.hooks.journal import read_journal

    return [line["step"] for line in read_journal(cloud.run_folder / "train" / "metrics.jsonl")]


def test_preempted_twice_it_comes_back_by_itself_finishes_and_leaves_nothing(make_cloud, with_rows):
    cloud = with_rows(make_cloud(M1_SET=LONGER))
    said = cloud.do("up", "--skip-plan")
    assert "WAITING_FOR_RESOURCES" in said and "are ready" in said
    watcher = cloud.operator("run", "--watch", "--then-down")
    for least in (20, 60):
        cloud.until(lambda least=least: any(step >= least for step in cloud.steps()))
        cloud.preempt()
        assert not cloud.processes()
        cloud.until(lambda: "Continuing after step" in cloud.log() and cloud.processes())
    said, _ = watcher.communicate(timeout=300)
    assert watcher.returncode == 0, said + cloud.story()
    assert said.count("was preempted") == 2
    assert "Training finished" in said
    assert trained(cloud) == list(range(1, STEPS + 1))
    continued = [int(step) for step in re.findall(r"Continuing after step (\d+) of", cloud.log())]
    assert continued and all(step >= 20 for step in continued)
    creations = cloud.calls(word="queued-resources create")
    assert len(creations) == 3
    assert len({word for call in creations for part in call for word in re.findall(r"m1-deadline=\d+", part)}) == 1
    cloud.assert_nothing_left()


def test_two_hosts_train_together_and_go_on_when_the_operators_terminal_is_lost(make_cloud, with_rows):
    cloud = with_rows(make_cloud(M1_TOPOLOGY="v5p:2x2x2", M1_SET=LONGER))
    cloud.image(STANDIN_JOIN="slurm")
    cloud.do("up", "--skip-plan")
    watcher = cloud.operator("run", "--watch")
    cloud.until(lambda: cloud.steps())
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    before = max(cloud.steps())
    cloud.until(lambda: max(cloud.steps()) > before)
    # Another terminal, another day: the same command starts nothing twice and looks on.
    said = cloud.do("run", "--watch")
    assert "Training finished on all hosts" in said
    assert trained(cloud) == list(range(1, STEPS + 1))
    assert "2 process" in cloud.log() or "on 2 cpu" in cloud.log()
    assert all(text.count("attempt 1: m1 train") == 1 for text in (cloud.log("0-0"), cloud.log("0-1")))
    assert "finished" in cloud.do("status")
    cloud.do("down")
    assert "nothing is there" in cloud.do("status")
    cloud.assert_nothing_left()


def test_a_notice_is_again_and_a_killed_process_ends_the_run_and_is_named(make_cloud, with_rows):
    cloud = with_rows(make_cloud(M1_SET=LONGER, M1_CAPACITY="on-demand"))
    cloud.do("up", "--skip-plan")
    watcher = cloud.operator("run", "--watch", "--then-down")
    child = cloud.state / "hosts" / "life" / "0" / "home" / "m1" / "state" / "child"
    cloud.until(lambda: cloud.steps())
    os.kill(int(child.read_text().split()[0]), signal.SIGTERM)  # as a maintenance does: it saves and ends with 75
    cloud.until(lambda: "attempt 2: m1 train" in cloud.log() and "Continuing after step" in cloud.log())
    os.kill(int(child.read_text().split()[0]), signal.SIGKILL)  # as the kernel does when memory is out
    said, _ = watcher.communicate(timeout=300)
    assert watcher.returncode == 1, said
    assert "host 0-0 (rank 0) failed first, with exit status 137 in attempt 2" in said
    assert "Continuing after step" in said  # the last lines of its log
    assert len(cloud.calls(word="queued-resources create")) == 1
    cloud.assert_nothing_left()
