#!/usr/bin/env bash
# On a host: mounts the bucket and makes a virtual environment of the commit with the constraints that were tested.
# May be repeated; what is there already is kept. M1_PYTHON, where set, names an interpreter that has every dependency
# (a container image, a module of a cluster): then nothing is installed, and its versions are compared instead.
if [ "${1:-}" = --help ]; then
  sed -n '2,4s/^# //p' "$0"
  exit
fi
# shellcheck source=launch/remote/common.sh
. "$(dirname "$0")/common.sh"

fail() {
  echo "m1: host $host: $*" >&2
  report broken
  exit 1
}

for key in M1_NAME M1_COMMIT M1_BUCKET M1_CONFIG M1_SET M1_AMEND M1_VERB M1_INITIAL M1_CONVERSATIONS M1_BUCKET_DIR M1_PYTHON; do
  printf '%s=%q\n' "$key" "${!key:-}"
done >"$state/environment"

if [ -z "${M1_BUCKET_DIR:-}" ] && ! mountpoint --quiet "$bucket" && [ ! -d "$bucket/$M1_NAME" ]; then
  if ! command -v gcsfuse >/dev/null; then
    # Google's own package source is on every TPU VM; gcsfuse lies in the same archive, under its own suite.
    line=$(grep -rhE '^deb .*(cloud-sdk|google-cloud|google-compute)[^ ]* main' /etc/apt/sources.list.d | head -n 1)
    # shellcheck disable=SC2001 # two groups: a parameter expansion cannot
    sed "s/ [^ ]* main\$/ gcsfuse-$(lsb_release --codename --short) main/" <<<"$line" \
      | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install --yes gcsfuse >/dev/null \
      || fail "gcsfuse is not here and could not be installed: install it, or mount the bucket and set M1_BUCKET_DIR."
  fi
  mkdir -p "$bucket"
  gcsfuse --implicit-dirs "$M1_BUCKET" "$bucket" || fail "the bucket $M1_BUCKET could not be mounted on $bucket."
fi
mkdir -p "$bucket/$M1_NAME" || fail "$bucket/$M1_NAME cannot be written."

if [ ! -x "$m1" ]; then
  mkdir -p "$(dirname "$m1")"
  if [ -n "${M1_PYTHON:-}" ]; then
    "$M1_PYTHON" "$code/launch/remote/versions.py" "$code" || fail "$M1_PYTHON lacks what the constraints name."
    python=$M1_PYTHON
    search=$code
  else
    venv=$M1_ROOT/venv-$M1_COMMIT
    newest=$code/constraints/newest_python
    if ! found=$("$newest" 3.13 2>/dev/null || "$newest" 3.12 2>/dev/null); then
      # The images of TPU VMs have an older Python.
      python3 -m pip install --quiet --user uv
      python3 -m uv python install --quiet 3.13
      found=$(python3 -m uv python find --managed-python 3.13) || fail "no Python 3.13 or 3.12 is here, and uv could not bring one."
    fi
    "$found" -m venv "$venv" || fail "$venv could not be made."
    version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$venv/bin/python" -m pip install --quiet --constraint "$code/constraints/$version.txt" "${code}[${M1_EXTRA:-tpu}]" \
      || fail "m1jax could not be installed: see above."
    python=$venv/bin/python
    search=
  fi
  printf '#!/bin/sh\nPYTHONPATH=%q exec %q -P -c "import sys; from m1jax.verbs import main; sys.exit(main())" "$@"\n' \
    "$search" "$python" >"$m1.new"
  chmod +x "$m1.new"
  mv "$m1.new" "$m1"
fi
report ready
