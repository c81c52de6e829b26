#!/usr/bin/env bash
# Makes the server of this attempt; what it is goes to the step's outputs as soon as it is known.
# Asking again is safe: a server that is there is taken over by its name and labels.
set -euo pipefail

tries=${MILEPOST_CREATE_TRIES:-3}
pause=${MILEPOST_CREATE_PAUSE:-20}
# EX_TEMPFAIL: it may work out when it is tried again.
try_again=75

for ((try = 1; ; try++)); do
  code=0
  milepost vm create --job "$MILEPOST_JOB_ID" --agent "$MILEPOST_AGENT_ID" --attempt "$MILEPOST_ATTEMPT" \
    --region "$MILEPOST_REGION" --output "$GITHUB_OUTPUT" || code=$?
  ((code == try_again && try < tries)) || exit "$code"
  echo "trying again in $pause s"
  sleep "$pause"
done
