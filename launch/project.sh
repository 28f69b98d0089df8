#!/usr/bin/env bash
# Prepares a Google project for launches: the services, a bucket without public access, and the service account of the
# hosts with no more than it needs. May be repeated; what is there already is kept. Nothing that it makes costs anything
# while it is empty and idle.
# Usage: project.sh [--dry-run] ENVIRONMENT_FILE
set -euo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
if [ "$#" -ne 1 ] || [ "$1" = --help ]; then
  sed -n '2,5s/^# //p' "$0"
  [ "${1:-}" = --help ] && exit 0
  exit 2
fi
# shellcheck source=launch/env.example
. "$1"

# do WORDS…: runs a command, or prints it.
do_() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
# unless_there DESCRIBE… -- CREATE…: creates what the first command does not find.
unless_there() {
  local look=()
  while [ "$1" != -- ]; do
    look+=("$1")
    shift
  done
  shift
  if [ -n "$dry" ] || ! "${look[@]}" >/dev/null 2>&1; then
    do_ "$@"
  fi
}

account=${M1_SERVICE_ACCOUNT:?}
region=${M1_ZONE%-*}
in_project=(--project="${M1_PROJECT:?}")

services=(tpu.googleapis.com storage.googleapis.com)
if [ "${M1_PLATFORM:-tpu-vm}" = gke ]; then
  services+=(container.googleapis.com cloudscheduler.googleapis.com artifactregistry.googleapis.com)
fi
do_ gcloud services enable "${services[@]}" "${in_project[@]}"

# Folders of a hierarchical namespace are renamed at once: a checkpoint is whole or absent.
unless_there gcloud storage buckets describe "${M1_BUCKET:?}" "${in_project[@]}" -- \
  gcloud storage buckets create "$M1_BUCKET" "${in_project[@]}" --location="$region" \
  --uniform-bucket-level-access --public-access-prevention --enable-hierarchical-namespace

unless_there gcloud iam service-accounts describe "$account" "${in_project[@]}" -- \
  gcloud iam service-accounts create "${account%%@*}" "${in_project[@]}" --display-name="m1jax hosts"

do_ gcloud storage buckets add-iam-policy-binding "$M1_BUCKET" "${in_project[@]}" \
  --member="serviceAccount:$account" --role=roles/storage.objectUser
# The guard deletes the run's own slices.
role=roles/tpu.admin
if [ "${M1_PLATFORM:-tpu-vm}" = gke ]; then
  role=roles/container.admin
fi
do_ gcloud projects add-iam-policy-binding "$M1_PROJECT" --member="serviceAccount:$account" --role="$role" \
  --condition=None --format=none
