"""What the stand-in's commands do: queued resources, ssh, buckets, Cloud Scheduler, GKE clusters and JobSets."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

from tests.launch import standin
from tests.launch.standin import ORDER, ROOT, RefusedError, cloud

FOUR_A_HOST = {"v5p": 2, "v5litepod": 1, "v6e": 1}


def _hosts(accelerator):
    name, _, number = accelerator.rpartition("-")
    chips = int(number) // FOUR_A_HOST[name]
    return 1 if chips <= (4 if name == "v5p" else 8) else chips // 4


def _missing(kind, name):
    return RefusedError(f"ERROR: (gcloud.{kind}) NOT_FOUND: Resource '{name}' was not found")


def create(flags, positionals, struck):
    name = positionals[0]
    one = {flag: values[-1] for flag, values in flags.items()}
    accelerator = one["--accelerator-type"]
    if not re.fullmatch(r"(v5p|v5litepod|v6e)-\d+", accelerator):
        raise RefusedError(f"ERROR: INVALID_ARGUMENT: accelerator type {accelerator!r} is unknown")
    metadata = dict(word.split("=", 1) for word in one.get("--metadata", "").split(",") if word)
    for word in flags.get("--metadata-from-file", []):
        key, file = word.split("=", 1)
        metadata[key] = pathlib.Path(file).read_text()
    count = int(one.get("--node-count", 1))
    nodes = [one["--node-id"]] if count == 1 else [f"{one['--node-prefix']}-{i}" for i in range(count)]
    with cloud() as state:
        if name in state["queued"]:
            raise RefusedError(f"ERROR: (gcloud) ALREADY_EXISTS: Resource '{name}' already exists")
        state["queued"][name] = {
            "states": list(struck.get("states", ORDER)),
            "reason": struck.get("says", ""),
            "metadata": metadata,
            "nodes": {node: _hosts(accelerator) for node in nodes},
            "spot": "--spot" in flags,
            "project": one["--project"],
            "zone": one["--zone"],
            "booted": False,
        }
    return 0


def describe(flags, positionals, struck):
    name = positionals[0]
    with cloud() as state:
        queued = state["queued"].get(name)
        if queued is None:
            raise _missing("queued-resources.describe", name)
        now = queued["states"][0]
        if now == "GONE":
            del state["queued"][name]
            raise _missing("queued-resources.describe", name)
        boot = now == "ACTIVE" and not queued["booted"]
        queued["booted"] = queued["booted"] or boot
        if len(queued["states"]) > 1:
            queued["states"].pop(0)
    if boot:
        _boot(name, queued)
    data = {"failedData": {"error": {"code": 8, "message": queued["reason"]}}} if now == "FAILED" else {}
    node = {"metadata": queued["metadata"]}
    told = {"name": name, "state": {"state": now, **data}, "tpu": {"nodeSpec": [{"node": node}]}}
    print(json.dumps(told))
    return 0


def _boot(name, queued):
    """Makes the hosts and starts their start-up script."""
    image = json.loads((ROOT / "image.json").read_text())
    total = sum(queued["nodes"].values())
    port, rank = 20000 + int(time.time() * 1000) % 20000, 0
    for slice_id, (node, workers) in enumerate(queued["nodes"].items()):
        for worker in range(workers):
            folder = ROOT / "hosts" / node / str(worker)
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "home").mkdir(parents=True)
            (folder / "metadata").mkdir()
            for key, value in queued["metadata"].items():
                (folder / "metadata" / key).write_text(value)
            (folder / "metadata" / "agent-worker-number").write_text(str(worker))
            slices = f"MEGASCALE_SLICE_ID: '{slice_id}'\n" if len(queued["nodes"]) > 1 else ""
            (folder / "metadata" / "tpu-env").write_text(f"WORKER_ID: '{worker}'\n{slices}")
            if total > 1 and image.get("STANDIN_JOIN"):
                # jax finds the other processes of a CPU run as it does under Slurm.
                own = {"SLURM_JOB_ID": str(port), "SLURM_NTASKS": str(total), "SLURM_PROCID": str(rank)}
                own |= {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": str(total)}
                (folder / "environment.json").write_text(json.dumps(own))
            rank += 1
            script = folder / "startup.sh"
            script.write_text(queued["metadata"].get("startup-script", "#!/bin/sh\n"))
            standin.start_on(folder, ["bash", str(script)], folder / "startup.txt")


def delete(flags, positionals, struck):
    name = positionals[0]
    with cloud() as state:
        queued = state["queued"].get(name)
        if queued is None:
            raise _missing("queued-resources.delete", name)
        if queued["booted"] and "--force" not in flags and queued["states"][0] not in ("SUSPENDED", "FAILED"):
            raise RefusedError("ERROR: FAILED_PRECONDITION: the queued resource has nodes; use --force")
        queued["states"] = ["DELETING", "GONE"]
        nodes = list(queued["nodes"])
    for node in nodes:
        standin.kill_vm(ROOT / "hosts" / node)
    return 0


def preempt(name):
    """What Google does to a spot slice; not a command."""
    with cloud() as state:
        queued = state["queued"][name]
        queued["states"] = ["SUSPENDING", "SUSPENDED"]
        nodes = list(queued["nodes"])
    for node in nodes:
        standin.kill_vm(ROOT / "hosts" / node)


def describe_node(flags, positionals, struck):
    with cloud() as state:
        for queued in state["queued"].values():
            if positionals[0] in queued["nodes"] and queued["booted"] and queued["states"][0] != "GONE":
                print("READY" if queued["states"][0] == "ACTIVE" else "DELETING")
                return 0
    raise _missing("tpu-vm.describe", positionals[0])


def ssh(flags, positionals, struck):
    """Runs the command on the hosts at once; like gcloud, mixes their output and loses count of failures."""
    with cloud() as state:
        queued = state["queued"].get(positionals[0])
        unreachable = state.get("unreachable", [])
    if queued is None:
        raise _missing("queued-resources.ssh", positionals[0])
    if queued["states"][0] != "ACTIVE":
        raise RefusedError("ERROR: (gcloud) the TPU is in an unusable state")
    if (flags.get("--node"), flags.get("--worker")) != (["all"], ["all"]):
        raise RefusedError("the stand-in reaches all hosts at once only")
    nodes = [node for node in queued["nodes"] if node not in struck.get("leave_out", [])]
    statuses, threads = {}, []
    for node in nodes:
        for worker in range(queued["nodes"][node]):
            if f"{node}/{worker}" in unreachable:
                print(f"ssh: connect to host {node} port 22: Connection timed out", file=sys.stderr)
                statuses[worker] = 255
                continue
            folder = ROOT / "hosts" / node / str(worker)
            threads.append(threading.Thread(target=_on_host, args=(folder, flags["--command"][-1], statuses, worker)))
            threads[-1].start()
    for thread in threads:
        thread.join()
    return next((status for status in statuses.values() if status), 0)


def _on_host(folder, command, statuses, worker):
    done = subprocess.run(
        ["bash", "-c", command],
        env=standin.host_environment(folder),
        cwd=folder / "home",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    os.write(1, done.stdout)
    os.write(2, done.stderr)
    statuses[worker] = statuses.get(worker) or done.returncode


def storage_cp(flags, positionals, struck):
    *sources, target = positionals
    for source in [file for address in sources for file in standin.matching(address)]:
        if target.startswith("gs://"):
            place = standin.bucket_path(target)
        else:
            place = pathlib.Path(target) / source.name if pathlib.Path(target).is_dir() else pathlib.Path(target)
        if not ("--no-clobber" in flags and place.exists()):
            standin.copy(source, place)
    return 0


def storage_cat(flags, positionals, struck):
    for file in standin.matching(positionals[0]):
        sys.stdout.buffer.write(file.read_bytes())
    sys.stdout.flush()
    return 0


def guard_create(flags, positionals, struck):
    with cloud() as state:
        if positionals[0] in state["jobs"]:
            raise RefusedError("ERROR: (gcloud.scheduler.jobs.create.http) ALREADY_EXISTS: Job already exists")
        if flags.get("--http-method") != ["DELETE"] or not flags["--uri"][0].startswith(
            "https://container.googleapis.com/"
        ):
            raise RefusedError("ERROR: INVALID_ARGUMENT")
        if len(flags["--schedule"][0].split()) != 5:
            raise RefusedError("ERROR: INVALID_ARGUMENT: schedule")
        state["jobs"][positionals[0]] = {"uri": flags["--uri"][0], "schedule": flags["--schedule"][0]}
    return 0


def guard_delete(flags, positionals, struck):
    with cloud() as state:
        if state["jobs"].pop(positionals[0], None) is None:
            raise _missing("scheduler.jobs.delete", positionals[0])
    return 0


def strike(name):
    """What Cloud Scheduler does when a job's time has come; not a command."""
    with cloud() as state:
        cluster = state["jobs"][name]["uri"].rpartition("/")[2]
    _remove_cluster(cluster)


def cluster_describe(flags, positionals, struck):
    with cloud() as state:
        if positionals[0] not in state["clusters"]:
            raise RefusedError("ERROR: (gcloud.container.clusters.describe) ResponseError: code=404, message=Not found")
    print("RUNNING")
    return 0


def cluster_create(flags, positionals, struck):
    one = {flag: values[-1] for flag, values in flags.items()}
    with cloud() as state:
        cluster = state["clusters"].setdefault(one["--cluster"], {"workloads": {}, "storages": {}})
        cluster |= {"type": one["--tpu-type"], "slices": int(one["--num-slices"])}
    if struck.get("do") == "half":
        raise RefusedError("[XPK] Task: `NodepoolCreate` terminated with code `1`\nERROR: quota exceeded")
    return 0


def _remove_cluster(name):
    with cloud() as state:
        state["clusters"].pop(name, None)
    standin.kill_vm(ROOT / "hosts" / name)


def cluster_delete(flags, positionals, struck):
    _remove_cluster(flags["--cluster"][-1])
    return 0


def storage_attach(flags, positionals, struck):
    with cloud() as state:
        cluster = state["clusters"][flags["--cluster"][-1]]
        cluster["storages"][positionals[0]] = [flags["--bucket"][-1], flags["--mount-point"][-1]]
    return 0


def workload_create(flags, positionals, struck):
    """Copies the script's folder into a container for each host, and leaves a JobSet to run there."""
    one = {flag: values[-1] for flag, values in flags.items()}
    name, cluster_name = one["--workload"], one["--cluster"]
    with cloud() as state:
        cluster = state["clusters"].get(cluster_name)
        if cluster is None:
            raise RefusedError(f"[XPK] cluster {cluster_name} not found")
        if name in cluster["workloads"]:
            raise RefusedError(f"[XPK] {name} already exists, XPK will not create this workload.")
        cluster["workloads"][name] = "RUNNING"
        bucket, mount = cluster["storages"][one["--storage"]]
    shape = [int(size) for size in cluster["type"].rpartition("-")[2].split("x")]
    chips = 1
    for size in shape:
        chips *= size
    folders = []
    for slice_id in range(cluster["slices"]):
        for worker in range(max(1, chips // 4)):
            folder = ROOT / "hosts" / cluster_name / name / f"{slice_id}-{worker}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(one["--script-dir"], folder / "home")
            given = dict(word.split("=", 1) for word in flags["--env"])
            # The stand-in cannot mount: it puts the bucket's folder where the mount point is named.
            given = {key: value.replace(mount, str(ROOT / "buckets" / bucket)) for key, value in given.items()}
            given |= {"TPU_WORKER_ID": str(worker), "MEGASCALE_SLICE_ID": str(slice_id)}
            (folder / "environment.json").write_text(json.dumps(given))
            folders.append(str(folder))
    codes = [int(code) for code in one["--restart-on-exit-codes"].split(",")]
    job = {"folders": folders, "command": one["--command"], "codes": codes, "restarts": int(one["--max-restarts"])}
    job |= {"cluster": cluster_name, "name": name, "grace": int(one["--termination-grace-period-seconds"])}
    owner = pathlib.Path(folders[0]).parent
    (owner / "home").mkdir(exist_ok=True)
    program = [sys.executable, "-m", "tests.launch.services", json.dumps(job)]
    environment = {**standin.host_environment(owner), "PYTHONPATH": str(standin.HERE.parents[1])}
    with open(owner / "jobset.txt", "ab") as output:
        subprocess.Popen(program, env=environment, stdout=output, stderr=output, start_new_session=True)
    return 0


def jobset(job):
    """Runs the containers; starts all of them again where one ends with a code that allows it."""
    while True:
        pods = [
            standin.start_on(pathlib.Path(folder), ["bash", "-c", job["command"]], pathlib.Path(folder) / "pod.txt")
            for folder in job["folders"]
        ]
        while all(pod.poll() in (None, 0) for pod in pods) and any(pod.poll() is None for pod in pods):
            time.sleep(0.1)
        # A pod that a lost node took counts with the codes of signals, as Kubernetes reports them.
        codes = [code if code >= 0 else 128 - code for code in (pod.poll() for pod in pods) if code is not None]
        bad = [code for code in codes if code]
        for pod in pods:
            if pod.poll() is None:
                pod.terminate()
        for pod in pods:
            pod.wait(job["grace"])
        again = all(code in (42, *job["codes"]) or 127 <= code <= 255 for code in bad)
        if not bad or not again or job["restarts"] == 0:
            with cloud() as state:
                workloads = state["clusters"].get(job["cluster"], {"workloads": {}})["workloads"]
                workloads[job["name"]] = "FAILED" if bad else "SUCCESSFUL"
            return
        job["restarts"] -= 1


def workload_list(flags, positionals, struck):
    wanted = flags.get("--filter-by-status", ["EVERYTHING"])[-1]
    with cloud() as state:
        workloads = state["clusters"].get(flags["--cluster"][-1], {"workloads": {}})["workloads"]
    print("Jobset Name    Status")
    for name, status in workloads.items():
        if wanted in ("EVERYTHING", status) and re.search(flags.get("--filter-by-job", [""])[-1], name):
            print(f"{name}    {status}")
    return 0


def workload_delete(flags, positionals, struck):
    cluster = flags["--cluster"][-1]
    with cloud() as state:
        state["clusters"].get(cluster, {"workloads": {}})["workloads"].pop(flags["--workload"][-1], None)
    standin.kill_vm(ROOT / "hosts" / cluster / flags["--workload"][-1])
    return 0


COMMANDS = {
    "gcloud compute tpus queued-resources create": create,
    "gcloud compute tpus queued-resources describe": describe,
    "gcloud compute tpus queued-resources delete": delete,
    "gcloud compute tpus queued-resources ssh": ssh,
    "gcloud compute tpus tpu-vm describe": describe_node,
    "gcloud container clusters describe": cluster_describe,
    "gcloud scheduler jobs create http": guard_create,
    "gcloud scheduler jobs delete": guard_delete,
    "gcloud storage cat": storage_cat,
    "gcloud storage cp": storage_cp,
    "xpk cluster create": cluster_create,
    "xpk cluster delete": cluster_delete,
    "xpk storage attach": storage_attach,
    "xpk workload create": workload_create,
    "xpk workload delete": workload_delete,
    "xpk workload list": workload_list,
}


if __name__ == "__main__":
    jobset(json.loads(sys.argv[1]))
