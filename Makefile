# All of these work from a fresh clone, as root or as anybody else, with or without a terminal.

# rustup's directory is not on every PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin

RUNNING := postgresql jq openssl curl
TESTING := $(RUNNING) chromium chromium-driver python3-yaml npm
# The rules for accessible pages come by npm, from .ci/axe.
# What needs Ansible and the linters beside Rust gets them from .ci/python-tools.
PYTHON := python3 python3-venv
MEASURING := $(RUNNING) nginx libnginx-mod-nchan time

.PHONY: run test test-playbooks test-hosts bench lint fmt

## Builds Milepost and runs it, with its data in ./data.
run:
	@.ci/packages $(RUNNING)
	cargo build --release
	"$${CARGO_TARGET_DIR:-./target}/release/milepost" dev

test:
	@.ci/packages $(TESTING) $(PYTHON)
	@.ci/python-tools >/dev/null
	@.ci/axe >/dev/null
	cargo test --workspace
	$(MAKE) test-playbooks

## The callback plugin, and as root one machine that a playbook is run on.
test-playbooks:
	@.ci/packages $(PYTHON)
	PYTHONDONTWRITEBYTECODE=1 "$$(.ci/python-tools)/python" ansible/tests/test_milepost.py
	.ci/host-tests fast

## Every playbook on machines of their own. As root, about eight minutes.
test-hosts:
	@.ci/packages $(PYTHON)
	.ci/host-tests

bench:
	@.ci/packages $(MEASURING)
	benches/run

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@.ci/packages $(PYTHON)
	.ci/lint-playbooks-and-workflows

fmt:
	cargo fmt --all
