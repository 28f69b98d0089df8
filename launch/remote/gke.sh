#!/usr/bin/env bash
# In a container of the JobSet that m1launch creates: sets up, measures the host, then trains under the supervisor.
# Its exit status decides what Kubernetes does: 75 (again) and the loss of a node restart the JobSet, another ends it.
if [ "${1:-}" = --help ]; then
  sed -n '2,3s/^# //p' "$0"
  exit
fi
export M1_ROOT=${M1_ROOT:-$HOME/m1}
export M1_HOST=${MEGASCALE_SLICE_ID:-0}-${TPU_WORKER_ID:-0}
mkdir -p "$M1_ROOT/code"
ln -sfn "$PWD" "$M1_ROOT/code/${M1_COMMIT:?}"
here=$PWD/launch/remote
bash "$here/setup.sh" || exit 1
# A host that is broken ends the JobSet here, before a step, with the table in its log.
told=$(bash "$here/host.sh" doctor)
echo "$told"
case $told in
  *"state=ready"*) ;;
  *) exit 1 ;;
esac
exec bash "$here/supervise.sh" "${M1_RUN:?}"
