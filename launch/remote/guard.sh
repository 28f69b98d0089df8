#!/usr/bin/env bash
# The budget guard: the start-up script of every TPU VM that m1launch creates. It waits until the deadline that `up`
# wrote into the VM's metadata and then deletes the queued resource, slices and all, with the VM's own service account.
# It needs no terminal, no ssh and no set-up; a slice that comes after its deadline is deleted at once.
set -uo pipefail

if [ "${1:-}" = --help ]; then
  sed -n '2,4s/^# //p' "$0"
  exit
fi

attribute() {
  curl --silent --fail --max-time 10 --header "Metadata-Flavor: Google" \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

until deadline=$(attribute m1-deadline) && name=$(attribute m1-name) && zone=$(attribute m1-zone) \
  && project=$(attribute m1-project); do
  sleep 5
done
while [ "$(date +%s)" -lt "$deadline" ]; do
  left=$((deadline - $(date +%s)))
  sleep "$((left < 60 ? (left > 0 ? left : 1) : 60))"
done
echo "m1: the deadline of $name has passed: deleting it."
# Every host tries, so that one broken host cannot keep the others; the service deletes once.
until gcloud compute tpus queued-resources delete "$name" --project="$project" --zone="$zone" --force --async --quiet; do
  sleep 30
done
