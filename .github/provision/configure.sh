#!/usr/bin/env bash
# Configures the server with Ansible. The callback plugin tells Milepost of its tasks, live.
set -euo pipefail

directory=$1
export ANSIBLE_CONFIG=$PWD/ansible/ansible.cfg

ansible-playbook -i "$directory/inventory.ini" -e "@$directory/vars.json" \
  --ssh-extra-args='-o StrictHostKeyChecking=accept-new' ansible/playbooks/agent-configure.yml |
  tee "$directory/output"

# Without a host there is nothing that could fail.
grep -Eq '^[^ ]+ +: ok=[1-9]' "$directory/output" || {
  echo "Ansible has configured no host"
  exit 1
}
