#!/usr/bin/env bash
# On a host: runs `m1 train` until it ends, starting it again where its status says "again" (75: interrupted after
# saving, or another rank died). Any other status ends the run here, and on the other hosts as soon as they see it.
# With M1_VERB=sft (or prefer) host 0-0 runs `m1 sft --prepare` first, and the others wait until it has.
# Usage: supervise.sh RUN, RUN being the number that m1launch gave to this start. Ends with the status of `m1 train`.
if [ "${1:---help}" = --help ]; then
  sed -n '2,5s/^# //p' "$0"
  exit
fi
# shellcheck source=launch/remote/common.sh
. "$(dirname "$0")/common.sh"
run=$1
log=$M1_ROOT/logs/$host.log
again=75
attempt=0
status=0
ended=0
stopping=
child=

# shellcheck disable=SC2329 # called by the trap
stop() {
  stopping=yes
  [ -n "$child" ] && kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

others_failed() {
  grep -lsE "state=failed run=$run " "$shared"/state/* 2>/dev/null | grep -qv "/$host\$"
}

# run_m1 ARGUMENTS…: runs m1 as the child of this host; its exit status is in `status`.
run_m1() {
  echo "== $(date -u +%FT%TZ) host $host, attempt $attempt: m1 $*" >>"$log"
  # It notes itself before it begins, so that no supervisor that is killed leaves a child that nobody knows of.
  (
    note child "$BASHPID"
    exec "$m1" "$@"
  ) >>"$log" 2>&1 &
  child=$!
  # Told to stop in the moment before there was a child.
  [ -n "$stopping" ] && kill -TERM "$child"
  wait "$child"
  status=$?
  # A trapped signal ends `wait` before the child has saved and ended.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    status=$?
  done
  child=
  ended=$(date +%s.%N)
  echo "== $(date -u +%FT%TZ) host $host, attempt $attempt: ended with status $status" >>"$log"
}

# prepare: makes rows of the conversations or preferences on the first host, once for each start; the others wait. Its result is in
# `status`: "again" where waiting was ended.
prepare() {
  local prepared=$shared/prepared folder=$bucket/$M1_NAME/${M1_CONVERSATIONS:-} what=conversations
  [ "$M1_VERB" = prefer ] && what=preferences
  until [ "$(cat "$prepared" 2>/dev/null)" = "$run" ]; do
    if [ "$host" = 0-0 ]; then
      run_m1 "$M1_VERB" "${arguments[@]}" --prepare ${M1_CONVERSATIONS:+--$what "$folder"}
      [ "$status" -eq 0 ] && echo "$run" >"$prepared"
      return
    fi
    if [ -n "$stopping" ] || others_failed; then
      status=$again
      return
    fi
    sleep "${M1_PAUSE_SECONDS:-5}"
  done
}

heartbeat() {
  # Of a supervisor that was killed in the meantime nothing is said: the next one may speak already. A plain `kill -0`
  # would find the killed one for ever where process 1 reaps no orphans, as in many containers.
  while sleep "${M1_HEARTBEAT_SECONDS:-30}" && [ "$(alive supervisor)" = "$$" ]; do
    # Written only while training runs, so that it never overwrites the last word of the loop below.
    if [ -e "$state/training" ]; then
      report running "$run" "$attempt" "$status" "$ended" >/dev/null
    fi
  done
}

# A setting that was changed on purpose: an attempt that finds nothing changed takes no notice of it.
[ "${M1_AMEND:-}" = yes ] && arguments+=(--amend)
cd "$code" || exit 1
if other=$(alive supervisor) && [ "$other" != "$$" ]; then
  echo "m1: host $host: another supervisor (process $other) runs here: see host.sh stop." >&2
  exit 2
fi
note supervisor "$$"
if alive child >/dev/null; then
  # Two trainings would fight for the devices and for the run's folder. This one saves, and goes on under supervision.
  touch "$state/training"
  heartbeat &
  beat=$!
  end_orphan
  kill "$beat" 2>/dev/null
fi
while :; do
  attempt=$((attempt + 1))
  touch "$state/training"
  report running "$run" "$attempt" "$status" "$ended" >/dev/null
  heartbeat &
  beat=$!
  status=0
  [ "${M1_VERB:-train}" != train ] && prepare
  [ "$status" -eq 0 ] && run_m1 train "${arguments[@]}"
  rm -f "$state/training"
  kill "$beat" 2>/dev/null
  wait "$beat" 2>/dev/null
  if [ "$status" -eq 0 ]; then
    report finished "$run" "$attempt" "$status" "$ended" >/dev/null
    break
  fi
  # Told to stop while it was still starting, it has nothing to save and dies of the signal (143).
  if [ -n "$stopping" ] && [ "$status" -eq 143 ]; then
    status=$again
  fi
  if [ "$status" -ne "$again" ]; then
    report failed "$run" "$attempt" "$status" "$ended" >/dev/null
    break
  fi
  if [ -n "$stopping" ] || others_failed; then
    report stopped "$run" "$attempt" "$status" "$ended" >/dev/null
    break
  fi
  report running "$run" "$attempt" "$status" "$ended" >/dev/null
  sleep "${M1_PAUSE_SECONDS:-5}"
  if [ -n "$stopping" ]; then
    report stopped "$run" "$attempt" "$status" "$ended" >/dev/null
    break
  fi
done
exit "$status"
