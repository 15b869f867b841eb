# Two commands do everything: `make chat` talks to a model, `make test` runs every test.
# FEATURES picks what llama.cpp is built with, for example `make chat FEATURES=cuda`.

SHELL := /bin/bash
# Rust's installer puts cargo where a shell that was open before does not look.
export PATH := $(HOME)/.cargo/bin:$(PATH)

FEATURES ?=
CARGO_FLAGS := --release $(if $(FEATURES),--features $(FEATURES))

.DEFAULT_GOAL := help
.PHONY: help setup build model chat test test-long coverage lint fmt clean

help: ## Show these targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: ## Check for the build tools and install those that are missing
	@scripts/setup

build: setup ## Build the offramp program
	@cargo build $(CARGO_FLAGS) --workspace

model: setup ## Fetch the default model into the user's cache folder
	@scripts/fetch-model > /dev/null

chat: build model ## Build all, fetch the default model and open a chat
	@cargo run --quiet $(CARGO_FLAGS) --bin offramp -- chat

test: setup model ## Build and run every test
	@python3 -m unittest discover --quiet --start-directory scripts
	@cargo test $(CARGO_FLAGS) --workspace

test-long: setup model ## Run what takes minutes to hours: crashes, ARM, valgrind, a busy server, fuzzing
	@scripts/test-long

# Children that a test gives too small a disk leave broken profiles, which are passed over.
coverage: setup model ## Line coverage of every test, file by file
	@rustup component add llvm-tools
	@cargo llvm-cov --version > /dev/null || cargo install --locked cargo-llvm-cov
	@LLVM_PROFDATA_FLAGS=--failure-mode=all cargo llvm-cov test $(CARGO_FLAGS) --workspace --summary-only

lint: setup ## Check format and lints; warnings are errors
	@cargo fmt --all --check
	@cargo clippy $(CARGO_FLAGS) --all-targets --workspace -- -D warnings
	@cargo check --quiet --manifest-path fuzz/Cargo.toml

fmt: ## Format the source
	@cargo fmt --all

clean: ## Remove what was built here; fetched models stay
	@cargo clean
