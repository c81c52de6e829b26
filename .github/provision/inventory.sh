#!/usr/bin/env bash
# Writes what Ansible needs for this server: inventory.ini with the group [target], vars.json, and the
# key it logs in with. Into the directory given.
set -euo pipefail
umask 077

directory=$1
mkdir -p "$directory"
# An address and nothing else: it becomes a line of the inventory.
[[ $SERVER_IP =~ ^[0-9a-fA-F.:]+$ ]] || {
  echo "the server has no address"
  exit 1
}
printf '%s\n' "$AGENT_SSH_PRIVATE_KEY" >"$directory/key"
printf '[target]\n%s ansible_user=root ansible_ssh_private_key_file="%s"\n' "$SERVER_IP" "$directory/key" \
  >"$directory/inventory.ini"
jq -n '{node_id: $ENV.MILEPOST_AGENT_ID, node_hostname: $ENV.SERVER_NAME, node_public_ip: $ENV.SERVER_IP}' \
  >"$directory/vars.json"
