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
  # Whoever reads meanwhile must find the line before or this one, not an empty file.
  echo "$line" >"$state/.report.$BASHPID"
  mv "$state/.report.$BASHPID" "$state/report"
  echo "$line"
  if [ -d "$bucket/$M1_NAME" ]; then
    mkdir -p "$shared/state" "$shared/logs"
    echo "$line" >"$shared/.report-$host.$BASHPID"
    mv "$shared/.report-$host.$BASHPID" "$shared/state/$host"
    if [ -f "$M1_ROOT/logs/$host.log" ]; then
      cp "$M1_ROOT/logs/$host.log" "$shared/logs/$host.log"
    fi
  fi
}

# The arguments that `m1 train`, `m1 sft` and `m1 doctor` share. M1_SET holds KEY=VALUE words with shell quoting.
arguments=(--config "$M1_CONFIG")
while IFS= read -r word; do
  arguments+=(--set "$word")
done < <(xargs -r -n1 printf '%s\n' <<<"${M1_SET:-}")
arguments+=(--set "folder=$bucket/$M1_NAME")
if [ -n "${M1_INITIAL:-}" ]; then
  arguments+=(--set "train.initial=$bucket/$M1_NAME/$M1_INITIAL")
fi

# born PID: when a process began, in the kernel's ticks since the machine started; nothing where it has ended.
born() {
  local line
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # shellcheck disable=SC2086 # split into fields, after the name, which may hold anything
  set -- ${line##*) }
  [ "$1" != Z ] && echo "${20}"
}

# note WHAT PID: writes down that a process is this host's supervisor or child.
note() {
  echo "$2 $(born "$2")" >"$state/$1"
}

# alive WHAT: prints the process that was noted where it still runs. Its number alone says little: after a restart of
# the machine it may be another's.
alive() {
  local pid='' was=''
  [ -s "$state/$1" ] && read -r pid was <"$state/$1"
  [ -n "$was" ] && [ "$(born "$pid")" = "$was" ] && echo "$pid"
}

# end_orphan: lets a training that lost its supervisor save and end, and returns when it is gone.
end_orphan() {
  local pid until
  pid=$(alive child) || return 0
  echo "m1: host $host: m1 train (process $pid) lost its supervisor: it is told to save and end." | tee -a "$M1_ROOT/logs/$host.log" >&2
  kill -TERM "$pid"
  until=$((SECONDS + ${M1_STOP_SECONDS:-900}))
  while alive child >/dev/null; do
    if [ "$SECONDS" -ge "$until" ]; then
      echo "m1: host $host: process $pid does not end: it is killed." >&2
      kill -KILL "$pid"
    fi
    sleep 0.2
  done
}
