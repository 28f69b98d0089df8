"""The same lives on GKE through xpk: a JobSet that Kubernetes restarts, a cluster that Cloud Scheduler deletes."""

import re

import pytest

pytestmark = pytest.mark.slow
ON_GKE = {"M1_PLATFORM": "gke", "M1_TOPOLOGY": "v6e:2x2"}


def test_a_lost_node_restarts_the_jobset_and_training_goes_on(make_cloud, with_rows):
    cloud = with_rows(make_cloud(**ON_GKE, M1_SET="stages.0.tokens=198656 train.checkpoint_every=10"))
    cloud.do("up", "--skip-plan")
    cloud.do("up", "--skip-plan")  # again: what is there is kept, the guard's deadline too
    assert len(cloud.calls(word="scheduler jobs create")) == 2
    cloud.do("run")
    assert "RUNNING already" in cloud.do("run")
    cloud.until(lambda: any(step >= 20 for step in cloud.steps()))
    cloud.lose_pod("0-0")
    said = cloud.do("run", "--watch")
    assert "Training finished on all hosts" in said
    continued = re.findall(
        r"Continuing after step (\d+) of 400",
        (cloud.state / "hosts").joinpath("life-cluster", "life", "0-0", "home", "m1", "logs", "0-0.log").read_text(),
    )
    assert continued and int(continued[-1]) >= 20
    assert "finished" in cloud.do("status")
    cloud.do("down")
    cloud.do("down")
    cloud.assert_nothing_left()


def test_a_failed_up_is_removed_with_its_guard(make_cloud):
    cloud = make_cloud(**ON_GKE)
    cloud.fault("xpk cluster create", "half")
    said = cloud.do("up", "--skip-plan", status=1)
    assert "quota exceeded" in said and "are removed" in said
    cloud.assert_nothing_left()
    cloud.fault("gcloud scheduler jobs create", "refuse", says="ERROR: PERMISSION_DENIED: cloudscheduler is disabled")
    assert "so nothing else is" in cloud.do("up", "--skip-plan", status=1)
    assert len(cloud.calls("xpk", "cluster create")) == 1
    cloud.assert_nothing_left()


def test_a_run_that_fails_ends_and_its_host_is_named(make_cloud):
    cloud = make_cloud(**ON_GKE)  # no rows in the bucket: a user's mistake, exit status 2
    cloud.do("up", "--skip-plan")
    said = cloud.do("run", "--watch", status=1)
    assert "host 0-0 (rank 0) failed first, with exit status 2" in said
    assert "run `m1 pack`" in said
    cloud.strike()  # the guard: the cluster goes, whoever looks on
    assert not cloud.processes()
    cloud.do("up", "--skip-plan")  # a new life has a new guard
    assert len(cloud.calls(word="jobs create")) == len(cloud.calls(word="jobs delete")) == 2
    cloud.do("down")
    cloud.assert_nothing_left()
