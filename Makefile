# All of these work from a fresh clone, as root or as anybody else, with or without a terminal.

# rustup's directory is not on every PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin

RUNNING := postgresql jq openssl curl
TESTING := $(RUNNING) chromium chromium-driver python3-yaml
MEASURING := $(RUNNING) nginx libnginx-mod-nchan

.PHONY: run test bench lint fmt

## Builds Milepost and runs it, with its data in ./data.
run:
	@.ci/packages $(RUNNING)
	cargo build --release
	$${CARGO_TARGET_DIR:-./target}/release/milepost dev

test:
	@.ci/packages $(TESTING)
	cargo test --workspace

bench:
	@.ci/packages $(MEASURING)
	benches/run

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all
