#!/usr/bin/env bash
# Begins heartbeats in the background, or ends them. The runner ends what is left when a run is over.
set -euo pipefail

every=${MILEPOST_HEARTBEAT_EVERY:-60}
# A run takes an hour at most.
beats_max=120
pid_file=${RUNNER_TEMP:?}/milepost-heartbeats.pid

case $1 in
  heartbeats)
    # In a session of its own, with nothing of the step's: a step ends when nobody holds its output.
    setsid "$0" beat </dev/null >/dev/null 2>&1 &
    echo $! >"$pid_file"
    ;;
  beat)
    for ((beat = 0; beat < beats_max; beat++)); do
      sleep "$every"
      "${0%/*}/callback.sh" heartbeat || true
    done
    ;;
  silence)
    if [[ -s $pid_file ]]; then
      # The whole session: a heartbeat may be under way.
      kill -- "-$(<"$pid_file")" 2>/dev/null || true
      rm -f "$pid_file"
    fi
    ;;
esac
