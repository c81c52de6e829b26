#!/usr/bin/env bash
# shellcheck disable=SC2016
# Says one thing to Milepost: started, step, done, failed or heartbeat.
#
# jq makes the body, so nothing in a job's id or a tool's words is ever code; openssl signs it as
# Standard Webhooks, with the secret on nobody's command line; curl posts it. A message keeps its id
# over all tries, so that one which was taken and not answered is known again.
#
#   started     tried for minutes. Fails unless it is taken: at 409 this attempt is over, and
#               without an answer nothing may be created.
#   step, heartbeat
#               tried once. Never fails: the next one implies it.
#   done        tried for minutes, and well below the time after which a silent attempt has failed.
#               Never fails: the server runs, whether or not anybody hears of it, and Milepost asks
#               GitHub how the run ended.
#   failed      tried for minutes, within what GitHub leaves to a run that was cancelled.
#
# What is told, heartbeats apart, is answered with a receipt: the event's hash and the latest signed
# checkpoint of the log. Printed here they are kept where nobody who changes the log gets at them.
#
# What looks like a variable in single quotes is one of jq's.
set -euo pipefail

: "${MILEPOST_CALLBACK_URL:?}" "${MILEPOST_CALLBACK_SECRET:?}" "${MILEPOST_JOB_ID:?}" "${MILEPOST_ATTEMPT:?}"

# In seconds: for one answer; between two tries, from the first to the longest; for all of them.
answer_timeout=${MILEPOST_ANSWER_TIMEOUT:-15}
pause_first=${MILEPOST_PAUSE_FIRST:-1}
pause_max=${MILEPOST_PAUSE_MAX:-30}
started_for=${MILEPOST_STARTED_FOR:-300}
done_for=${MILEPOST_DONE_FOR:-240}
failed_for=${MILEPOST_FAILED_FOR:-180}

# What Milepost keeps of an error.
words_bytes_max=10240

# What the answer is asked to carry.
prefer=

main() {
  local says=$1 body
  body=$(body_of "$says")
  [[ $says == heartbeat ]] || prefer=receipt
  case $says in
    started) { insist "$started_for" "$body" && is_applied; } || refuse_to_go_on ;;
    step | heartbeat) insist 0 "$body" || complain "the $says callback was not taken; the run goes on" ;;
    done)
      insist "$done_for" "$body" ||
        complain "the server runs, but Milepost has not heard of it; it will ask for the outcome of this run"
      note_whether_superseded
      ;;
    failed) insist "$failed_for" "$body" || complain "the failed callback was not taken; Milepost will ask for the outcome of this run" ;;
  esac
}

# --- what is said ------------------------------------------------------------------------------------

body_of() {
  case $1 in
    started) message '{status: "provisioning"}' ;;
    step) message '{status: "provisioning", step: $ENV.STEP}' ;;
    heartbeat) message '{type: "heartbeat"}' ;;
    done)
      message '{status: "running"} + ({server_id: $ENV.SERVER_ID, server_ip: $ENV.SERVER_IP, tailscale_ip: $ENV.TAILSCALE_IP} | given)'
      ;;
    failed)
      # The last words are the ones that tell. A file that is not there has none.
      { tail -c "$words_bytes_max" "${WORDS:-/dev/null}" 2>/dev/null || true; } |
        message '{status: "failed"} + ({error: ([$ENV.EXCUSE, $words] | map(select(. != "" and . != null)) | join("\n")), failed_step: $ENV.FAILED_STEP, step: $ENV.STEP, server_id: $ENV.SERVER_ID} | given)' \
          --rawfile words /dev/stdin
      ;;
    *)
      echo "callback.sh: $1 is nothing that can be said" >&2
      exit 2
      ;;
  esac
}

message() {
  local filter=$1
  shift
  jq -nc "$@" --arg run "${GITHUB_RUN_ID:-}" \
    'def given: with_entries(select(.value != null and .value != ""));
     {job_id: $ENV.MILEPOST_JOB_ID, attempt: $ENV.MILEPOST_ATTEMPT}
     + ({workflow_run_id: $run} | given) + '"$filter"
}

# --- how it is posted --------------------------------------------------------------------------------

# Posts until it is taken, or refused for good, or the time is over; at least once. The last status
# and answer are left in $status and $answer.
insist() {
  local seconds=$1 body=$2 id pause=$pause_first
  id=msg_$(openssl rand -hex 16)
  local until=$((SECONDS + seconds))
  while true; do
    post "$id" "$body"
    case $status in
      2??)
        print_receipt
        return 0
        ;;
      400 | 401 | 409 | 413 | 415 | 422) return 1 ;;
    esac
    ((SECONDS < until)) || return 1
    echo "callback.sh: answer ${status}; trying again in ${pause} s" >&2
    sleep "$pause"
    pause=$(awk -v pause="$pause" -v max="$pause_max" 'BEGIN { print (2 * pause < max) ? 2 * pause : max }')
  done
}

# Each try is signed anew: a timestamp is good for five minutes.
post() {
  local id=$1 body=$2 timestamp signature printed
  timestamp=$(date +%s)
  signature=$(printf '%s.%s.%s' "$id" "$timestamp" "$body" | hmac_sha256 | base64 -w0)
  printed=$(printf '%s' "$body" |
    curl --disable --globoff --silent --show-error --proto '=http,https' \
      --connect-timeout "$answer_timeout" --max-time "$answer_timeout" \
      --header 'Content-Type: application/json' \
      --header "webhook-id: $id" --header "webhook-timestamp: $timestamp" \
      --header "webhook-signature: v1,$signature" ${prefer:+--header "Prefer: $prefer"} \
      --data-binary @- --write-out '\n%{http_code}' --url "$MILEPOST_CALLBACK_URL") || true
  status=${printed##*$'\n'}
  answer=${printed%$'\n'*}
}

# HMAC-SHA256 of what is on standard input. As RFC 2104 writes it, since openssl takes a key on its
# command line only, where everybody may read it.
hmac_sha256() {
  local key inner='' outer='' byte index
  key=$(key_bytes | hex)
  if ((${#key} > 128)); then
    key=$(key_bytes | openssl dgst -sha256 -binary | hex)
  fi
  for ((index = 0; index < 128; index += 2)); do
    # A key that is shorter than a block counts as filled up with zeros.
    byte=$((16#0${key:index:2}))
    printf -v inner '%s\\x%02x' "$inner" $((byte ^ 0x36))
    printf -v outer '%s\\x%02x' "$outer" $((byte ^ 0x5c))
  done
  { printf '%b' "$inner" && cat; } | openssl dgst -sha256 -binary |
    { printf '%b' "$outer" && cat; } | openssl dgst -sha256 -binary
}

# The bytes of the secret: base64 after whsec_, else the text as it stands.
key_bytes() {
  case $MILEPOST_CALLBACK_SECRET in
    whsec_*) printf '%s' "${MILEPOST_CALLBACK_SECRET#whsec_}" | base64 -d ;;
    *) printf '%s' "$MILEPOST_CALLBACK_SECRET" ;;
  esac
}

hex() {
  od -An -v -tx1 | tr -d ' \n'
}

# A line that begins with a word of its own is no command to the runner, whatever it says.
print_receipt() {
  jq -r '.receipt? // empty
    | "position \(.position), leaf \(.leaf_hash)\n\(.checkpoint // "no checkpoint yet")"
    | split("\n")[] | "receipt: \(.)"' <<<"${answer:-null}" 2>/dev/null || true
}

# --- what it comes to --------------------------------------------------------------------------------

# A job that Milepost does not know, or not any more, has nobody who would use a server.
is_applied() {
  [[ $(jq -r '.applied == false' <<<"${answer:-null}" 2>/dev/null) != true ]]
}

refuse_to_go_on() {
  if [[ $status == 2?? ]]; then
    echo "::error::Milepost took the started callback and did not apply it: nothing is created"
  elif [[ $status == 409 ]]; then
    echo "::notice::this attempt is over: nothing is created"
  else
    echo "::error::Milepost did not take the started callback (answer $status): nothing is created"
  fi
  exit 1
}

complain() {
  echo "::warning::$1 (answer $status)"
}

# Another attempt builds another server. Of a job that has ended nothing can be told here: Milepost
# itself knows whose server this is.
note_whether_superseded() {
  if [[ $(jq -r '.reason? // ""' <<<"${answer:-null}" 2>/dev/null) == attempt_superseded ]]; then
    echo 'superseded=true' >>"$GITHUB_OUTPUT"
  fi
}

main "$@"
