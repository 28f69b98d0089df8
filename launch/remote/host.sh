#!/usr/bin/env bash
# On a host, what m1launch asks for over ssh:
#   doctor      measure the host (m1 doctor), and say "ready" or "broken"
#   start RUN   start the supervisor, unless it runs already
#   stop        let training save and end
#   report      the host's own line
if [ "${1:---help}" = --help ]; then
  sed -n '2,6s/^# //p' "$0"
  exit
fi
# shellcheck source=launch/remote/common.sh
. "$(dirname "$0")/common.sh"

supervised() {
  [ -s "$state/supervisor" ] && kill -0 "$(<"$state/supervisor")" 2>/dev/null
}

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
    if ! supervised; then
      report running "${2:?}"
      setsid nohup bash "$code/launch/remote/supervise.sh" "$2" >>"$M1_ROOT/logs/supervisor.txt" 2>&1 </dev/null &
      echo "$!" >"$state/supervisor"
    else
      cat "$state/report"
    fi
    ;;
  stop)
    if supervised; then
      kill -TERM "$(<"$state/supervisor")"
      while supervised; do
        sleep 0.2
      done
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
