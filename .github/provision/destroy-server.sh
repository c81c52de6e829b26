#!/usr/bin/env bash
# Undoes what this attempt made, and only that: found by the attempt's name and labels, since a step
# that was ended in the middle may not have said what it made. What is not there is undone.
set -euo pipefail

tries=${MILEPOST_DESTROY_TRIES:-3}
pause=${MILEPOST_DESTROY_PAUSE:-10}

device=()
[[ -z ${TAILSCALE_DEVICE_ID:-} ]] || device=(--tailscale-device "$TAILSCALE_DEVICE_ID")

for ((try = 1; ; try++)); do
  code=0
  milepost vm destroy --job "$MILEPOST_JOB_ID" --attempt "$MILEPOST_ATTEMPT" "${device[@]}" || code=$?
  ((code != 0 && try < tries)) || exit "$code"
  sleep "$pause"
done
