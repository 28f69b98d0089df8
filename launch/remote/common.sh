# shellcheck shell=bash
# shellcheck disable=SC2034 # used by those who source this
# Sourced by the scripts of this folder: where things lie on a host, what it is called, and the one line it says of
# itself. M1_ROOT is the only place that a run writes to beside the bucket.
set -uo pipefail

M1_ROOT=${M1_ROOT:-$HOME/m1}
state=$M1_ROOT/state
mkdir -p "$state" "$M1_ROOT/logs"
# What setup.sh was given: the scripts can then also be run by hand on a host.
if [ -z "${M1_NAME:-}" ] && [ -f "$state/environment" ]; then
  set -a
  # shellcheck source=/dev/null
  . "$state/environment"
  set +a
fi
: "${M1_NAME:?run launch/m1launch up first}" "${M1_COMMIT:?}" "${M1_BUCKET:?}" "${M1_CONFIG:?}"
code=$M1_ROOT/code/$M1_COMMIT
bucket=${M1_BUCKET_DIR:-$M1_ROOT/bucket}
shared=$bucket/$M1_NAME/launch
m1=$M1_ROOT/bin-$M1_COMMIT/m1

attribute() {
  curl --silent --fail --max-time 10 --header "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# slice-worker, as m1launch counts them; GKE and SLURM set M1_HOST themselves.
host=${M1_HOST:-}
if [ -z "$host" ] && [ -s "$state/host" ]; then
  host=$(<"$state/host")
fi
if [ -z "$host" ]; then
  worker=$(attribute agent-worker-number) || worker=0
  number=$(attribute tpu-env | sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]*\).*/\1/p")
  host=${number:-0}-${worker:-0}
  echo "$host" >"$state/host"
fi

# report STATE [run] [attempt] [status] [ended]: kept here and in the bucket, where m1launch reads it.
report() {
  local line
  line="m1-host host=$host state=$1 run=${2:-${M1_RUN:-}} attempt=${3:-0} status=${4:-0} ended=${5:-0} at=$(date +%s.%N)"
  echo "$line" >"$state/report"
  echo "$line"
  if [ -d "$bucket/$M1_NAME" ]; then
    mkdir -p "$shared/state" "$shared/logs"
    cp "$state/report" "$shared/state/$host"
    if [ -f "$M1_ROOT/logs/$host.log" ]; then
      cp "$M1_ROOT/logs/$host.log" "$shared/logs/$host.log"
    fi
  fi
}

# The arguments that `m1 train` and `m1 doctor` share. M1_SET holds KEY=VALUE words with shell quoting.
arguments=(--config "$M1_CONFIG")
while IFS= read -r word; do
  arguments+=(--set "$word")
done < <(xargs -r -n1 printf '%s\n' <<<"${M1_SET:-}")
arguments+=(--set "folder=$bucket/$M1_NAME")
