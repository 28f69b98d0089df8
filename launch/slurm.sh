#!/usr/bin/env bash
#SBATCH --job-name=m1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=m1-%j.log
#SBATCH --signal=B:TERM@300
# Trains on a GPU cluster under Slurm, one process a node. m1 finds the other processes in Slurm's own variables.
# Usage: sbatch [--nodes=N …] launch/slurm.sh --config FILE [--set KEY=VALUE …]
# M1_VENV names the virtual environment (default: .venv); it and the run's folder lie on a disk that all nodes share.
# A job that ends with "again" (75), by --time or by a maintenance, is put back into the queue and goes on from its last
# checkpoint; any other status ends it. docs/slurm.md says more.
set -uo pipefail

if [ "$#" -eq 0 ] || [ "$1" = --help ]; then
  sed -n '12,16s/^# //p' "$0"
  exit $(($# == 0 ? 2 : 0))
fi
m1=${M1_VENV:-.venv}/bin/m1
[ -x "$m1" ] || {
  echo "slurm.sh: $m1 is not there: set M1_VENV to a virtual environment with m1jax[gpu]." >&2
  exit 2
}

child=
ending=
# Slurm tells this script alone (B:) of the end of --time; srun hands the signal on, and m1 saves.
trap 'ending=yes; [ -n "$child" ] && kill -TERM "$child"' TERM

# step VERB ARGUMENTS…: one process on every node, its lines marked with its rank; the worst status of them.
step() {
  srun --ntasks-per-node=1 --kill-on-bad-exit=0 --label "$m1" "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
  done
  child=
}

step doctor "$@"
if [ "$status" -ne 0 ]; then
  echo "slurm.sh: m1 doctor found a node broken (see above): nothing was trained." >&2
  exit 1
fi
while :; do
  step train "$@"
  echo "slurm.sh: m1 train ended with status $status."
  if [ "$status" -ne 75 ]; then
    exit "$status"
  fi
  if [ -n "$ending" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 75
  fi
  sleep "${M1_PAUSE_SECONDS:-10}"
done
