#!/usr/bin/env bash
# Makes the server of this attempt; what it is goes to the step's outputs as soon as it is known.
# Asking again is safe: a server that is there is taken over by its name and labels.
set -euo pipefail

tries=${MILEPOST_CREATE_TRIES:-3}
pause=${MILEPOST_CREATE_PAUSE:-20}
# EX_TEMPFAIL: it may work out when it is tried again.
try_again=75

# A variable of the repository that is not set comes as an empty text, which names no key.
[[ -n ${MILEPOST_SSH_KEYS:-} ]] || unset MILEPOST_SSH_KEYS

for ((try = 1; ; try++)); do
  code=0
  milepost vm create --job "$MILEPOST_JOB_ID" --agent "$MILEPOST_AGENT_ID" --attempt "$MILEPOST_ATTEMPT" \
    --region "$MILEPOST_REGION" --output "$GITHUB_OUTPUT" || code=$?
  ((code == try_again && try < tries)) || exit "$code"
  echo "trying again in $pause s"
  sleep "$pause"
done
