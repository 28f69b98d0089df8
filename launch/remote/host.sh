#!/usr/bin/env bash
# On a host, what m1launch asks for over ssh:
#   doctor      measure the host (m1 doctor), and say "ready" or "broken"
#   start RUN   start the supervisor, unless it runs already
#   stop        let training save and end, also one that lost its supervisor
#   report      the host's own line
if [ "${1:---help}" = --help ]; then
  sed -n '2,6s/^# //p' "$0"
  exit
fi
# shellcheck source=launch/remote/common.sh
. "$(dirname "$0")/common.sh"

case $1 in
  doctor)
    cd "$code" || exit 1
    if "$m1" doctor "${arguments[@]}" --bucket "$bucket/$M1_NAME" >"$M1_ROOT/logs/doctor.txt" 2>&1; then
      report ready
    else
      report broken
    fi
    sed "s/^/$host: /" "$M1_ROOT/logs/doctor.txt"
    ;;
  start)
    exec 8>"$state/lock"
    flock 8 # another start may be on its way
    if ! alive supervisor >/dev/null; then
      report running "${2:?}"
      setsid nohup bash "$code/launch/remote/supervise.sh" "$2" >>"$M1_ROOT/logs/supervisor.txt" 2>&1 </dev/null 8>&- &
      note supervisor "$!"
    else
      cat "$state/report"
    fi
    ;;
  stop)
    if pid=$(alive supervisor); then
      kill -TERM "$pid"
      while alive supervisor >/dev/null; do
        sleep 0.2
      done
    fi
    if alive child >/dev/null; then
      end_orphan
      read -r run attempt < <(sed -n 's/.* run=\([^ ]*\) attempt=\([^ ]*\) .*/\1 \2/p' "$state/report")
      report stopped "${run:-}" "${attempt:-0}" 75 "$(date +%s.%N)" >/dev/null
    fi
    cat "$state/report"
    ;;
  report)
    cat "$state/report"
    ;;
  *)
    echo "host.sh: $1 is none of doctor, start, stop, report." >&2
    exit 2
    ;;
esac
