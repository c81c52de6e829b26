#!/usr/bin/env bash
# Runs a command and keeps what it prints for the callback that tells of a failure.
#
#   words.sh FILE COMMAND…
set -uo pipefail

file=$1
shift
"$@" 2>&1 | tee "$file"
exit "${PIPESTATUS[0]}"
