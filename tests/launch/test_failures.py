"""Lives that go wrong before training: each ends in the state it should, with nothing left, and says why.

No host trains here, so these clouds' image has an `m1` whose doctor only says yes: set-up, guard and ssh are real.
"""

import json
import os
import signal
import time

import pytest

pytestmark = pytest.mark.slow
CREATE = "gcloud compute tpus queued-resources create"
DESCRIBE = "gcloud compute tpus queued-resources describe"
SSH = "gcloud compute tpus queued-resources ssh"
EIGHT_HOSTS = "v6e:4x8"


@pytest.fixture
def quick(make_cloud):
    """A cloud whose hosts set up in a moment: their interpreter answers for m1."""

    def make(train="exit 0", **settings):
        cloud = make_cloud(**settings)
        python = cloud.folder / "python"
        python.write_text(f'#!/bin/sh\ncase "$*" in *" train "*) {train};; esac\n')
        python.chmod(0o755)
        cloud.environment["M1_PYTHON"] = str(python)
        cloud.file.write_text("".join(f"{key}='{value}'\n" for key, value in cloud.environment.items()))
        return cloud

    return make


def test_a_quota_that_is_refused_at_once_or_later_leaves_nothing(quick):
    cloud = quick()
    says = "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' exhausted."
    cloud.fault(CREATE, "refuse", says=says)
    said = cloud.do("up", "--skip-plan", status=1)
    assert "Quota 'TPUV5sPreemptibleLitepod" in said
    assert "nothing of it is left" in said
    cloud.assert_nothing_left()
    cloud.fault(CREATE, "fail-later", states=["ACCEPTED", "FAILED"], says="There is no more capacity in the zone.")
    said = cloud.do("up", "--skip-plan", status=1)
    assert "FAILED: There is no more capacity in the zone" in said
    assert "life that it created is removed" in said
    cloud.assert_nothing_left()


def test_one_host_of_eight_that_cannot_be_reached_is_named_and_all_is_removed(quick):
    cloud = quick(M1_TOPOLOGY=EIGHT_HOSTS)
    cloud.unreachable("life/5")
    said = cloud.do("up", "--skip-plan", status=1)
    assert "host 0-5 of 8 cannot be reached" in said
    assert said.count("No answer from host 0-5 of 8") == 2
    cloud.assert_nothing_left()
    cloud.unreachable()
    assert "All 8 host(s) are ready" in cloud.do("up", "--skip-plan")
    # What was there before a failed `up` is left alone.
    cloud.unreachable("life/2")
    said = cloud.do("up", "--skip-plan", status=1)
    assert "was there before and is left" in said
    assert "ACTIVE" in cloud.do("status")
    cloud.do("down")
    cloud.assert_nothing_left()


def test_a_slice_that_gcloud_leaves_out_without_a_word_is_noticed(quick):
    cloud = quick(M1_SLICES="2", M1_TOPOLOGY="v5p:2x2x2")
    cloud.fault(SSH, "leave out", leave_out=["life-1"])
    said = cloud.do("up", "--skip-plan")
    assert "No answer from hosts 1-0, 1-1 of 4: asking again" in said
    assert "All 4 host(s) are ready" in said
    cloud.fault(SSH, "leave out", leave_out=["life-0"])
    assert "could not be started on hosts 0-0, 0-1 of 4" in cloud.do("run", status=1)
    cloud.do("down")
    cloud.assert_nothing_left()


def test_lost_answers_and_silence_change_nothing(quick):
    cloud = quick()
    cloud.fault(CREATE, "lose")
    cloud.fault(DESCRIBE, "refuse", says="ERROR: (gcloud) UNAVAILABLE: try later", after=1)
    cloud.fault(DESCRIBE, "hang", after=2)
    cloud.fault("gcloud storage cp", "hang")
    said = cloud.do("up", "--skip-plan", M1_CALL_SECONDS="4")
    assert "are ready" in said
    assert "did not go through" in said and "timed out" in said
    assert len(cloud.calls(word="queued-resources create")) == 2
    cloud.fault("gcloud compute tpus queued-resources delete", "lose")
    cloud.do("down")
    cloud.do("down")  # again: nothing to do, and no error
    cloud.assert_nothing_left()
    # An error that is not "there is none" is never taken for it.
    cloud.do("up", "--skip-plan")
    cloud.fault(DESCRIBE, "refuse", says="ERROR: (gcloud) PERMISSION_DENIED: no")
    assert "PERMISSION_DENIED" in cloud.do("down", status=1)
    assert "ACTIVE" in cloud.do("status")
    cloud.do("down")
    cloud.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_an_operator_who_leaves_while_slices_are_waited_for_leaves_nothing(quick, number):
    cloud = quick()
    cloud.fault(CREATE, "wait", states=["WAITING_FOR_RESOURCES"])
    process = cloud.operator("up", "--skip-plan")
    cloud.until(lambda: (cloud.state / "calls.jsonl").exists() and len(cloud.calls(word="describe")) > 2)
    process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "is removed" in said
    cloud.assert_nothing_left()


def test_slices_that_do_not_come_in_time_are_given_up(quick):
    cloud = quick(M1_WAIT_HOURS="0.0003")
    cloud.fault(CREATE, "wait", states=["WAITING_FOR_RESOURCES"])
    assert "was still WAITING_FOR_RESOURCES" in cloud.do("up", "--skip-plan", status=1)
    cloud.assert_nothing_left()


def test_the_guard_deletes_by_itself_when_nobody_looks_on(quick):
    cloud = quick()
    process = cloud.operator("up", "--skip-plan", "--max-hours", "0.003")  # 11 s
    cloud.until(lambda: (cloud.state / "calls.jsonl").exists() and cloud.calls(word="queued-resources ssh"))
    os.killpg(process.pid, signal.SIGKILL)  # the operator's machine dies in the middle
    process.wait()
    assert cloud.processes()
    cloud.until(lambda: cloud.calls(word="queued-resources delete") and not cloud.processes())
    lines = [json.loads(line) for line in (cloud.state / "calls.jsonl").read_text().splitlines()]
    assert all(call["vm"] for call in lines if "delete" in call["argv"])  # a host did it, not this machine
    cloud.until(lambda: "nothing is there" in cloud.do("status"))
    cloud.assert_nothing_left()


def test_slices_that_come_after_their_deadline_are_deleted_at_once(quick):
    cloud = quick(M1_MAX_HOURS="0.001", M1_WAIT_HOURS="1")
    cloud.fault(CREATE, "wait", states=["WAITING_FOR_RESOURCES"])
    process = cloud.operator("up", "--skip-plan")
    cloud.until(lambda: (cloud.state / "calls.jsonl").exists() and len(cloud.calls(word="describe")) > 2)
    process.kill()
    process.wait()
    time.sleep(4)
    with cloud._changed() as state:
        state["queued"]["life"]["states"] = ["ACTIVE"]
    cloud.do("status")
    cloud.until(lambda: not cloud.processes() and "nothing is there" in cloud.do("status"))
    cloud.assert_nothing_left()


def test_a_run_that_is_stopped_by_hand_ends_its_watcher(quick):
    cloud = quick(train="sleep 0.2; exit 75")
    cloud.do("up", "--skip-plan")
    watcher = cloud.operator("run", "--watch")
    cloud.until(lambda: "attempt 3: m1 train" in cloud.log())
    os.kill(int((cloud.state / "hosts/life/0/home/m1/state/supervisor").read_text().split()[0]), signal.SIGTERM)
    said, _ = watcher.communicate(timeout=300)
    assert watcher.returncode == 1
    assert "was stopped; `resume` goes on" in said
    cloud.do("logs", "--last", "1")
    cloud.do("down")
    cloud.assert_nothing_left()


def test_silent_hosts_are_replaced_and_given_up_in_the_end(quick):
    cloud = quick(train="sleep 60", M1_STALE_SECONDS="3", M1_RECREATIONS="1")
    cloud.image(M1_HEARTBEAT_SECONDS="1000")  # a host that hangs: no heart beats
    cloud.do("up", "--skip-plan")
    said = cloud.do("run", "--watch", status=1)
    assert "host 0-0 said nothing for 3 s: bringing life back" in said
    assert "2 times (M1_RECREATIONS): it is given up" in said
    assert len(cloud.calls(word="queued-resources create")) == 2
    cloud.assert_nothing_left()


def test_another_mans_queued_resource_is_left_alone(quick):
    cloud = quick()
    cloud.do("up", "--skip-plan")
    with cloud._changed() as state:
        state["queued"]["life"]["metadata"] = {}
    assert "did not create" in cloud.do("up", "--skip-plan", status=2)
    assert "did not create" in cloud.do("down", status=2)
    assert "ACTIVE" in cloud.do("status")


def test_what_does_not_fit_is_not_rented_unless_told_so(quick):
    cloud = quick()
    plan = cloud.folder / "plan"
    # As m1 plan writes it (m1jax/verbs/plan.py): one entry for each program of the run.
    plan.write_text(f'#!/bin/sh\nfor file; do :; done\ncp {cloud.folder}/answer.json "$file"\n')
    plan.chmod(0o755)
    answer = cloud.folder / "answer.json"
    answer.write_text(json.dumps([{"fits": True, "stages": []}, {"fits": False}]))
    assert "does not fit 1 x v5e:2x2" in cloud.do("up", status=2, M1=str(plan))
    assert not (cloud.state / "calls.jsonl").exists()  # not a single call
    assert "going on all the same" in cloud.do("up", "--even-if-it-does-not-fit", M1=str(plan))
    cloud.do("down")
    answer.write_text(json.dumps([{"fits": True, "stages": [{"chip_hours": 12000.5}, {"chip_hours": 345.1}]}]))
    assert "at least 12,346 chip-hours" in cloud.do("up", M1=str(plan))
    cloud.do("down")
    cloud.assert_nothing_left()
