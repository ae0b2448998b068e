# Two commands set everything up: `make run` and `make test`. Both need only Python >= 3.11 and make.
# PYTHON=/path/to/python chooses the interpreter; ARGS="..." goes to `ziphius run`.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CANDIDATES := $(PYTHON) python3.11 python3 python3.12 python3.13 python3.14 python
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
TESTS := tests/house tests/unit tests/numerics tests/e2e

.DEFAULT_GOAL := help
.PHONY: help setup run test bench-engine bench-train bench-rl bench-gpu bench-learning fmt lint type house unit numerics e2e sanitize docs size clean

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

setup: $(STAMP) ## Only install, into .venv
	@echo "Installed: $(BIN)/ziphius --help"

run: $(STAMP) ## Do the main job (ARGS="..." for its options)
	$(BIN)/ziphius run $(ARGS)

# One file stays on one process, so that what a file sets up is set up once. A process that a hanging
# test ended is not started again: it would begin with the same test.
test: lint type ## Lint, check types and run all tests
	$(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0 $(TESTS)

bench-learning: $(STAMP) ## Do the main job over five seeds (ARGS="--page docs/lab/PAGE.md")
	$(BIN)/python bench/learning.py $(ARGS)

bench-gpu: $(STAMP) ## Measure training, decoding and GRPO on one NVIDIA GPU
	$(BIN)/python bench/gpu.py $(ARGS)

bench-rl: $(STAMP) ## Measure a GRPO step against TRL (ARGS="--trl PYTHON")
	$(BIN)/python bench/rl.py $(ARGS)

bench-engine: $(STAMP) ## Measure the engine against its peers (ARGS="--vllm PYTHON --llama-cpp PYTHON")
	$(BIN)/python bench/engine.py $(ARGS)

bench-train: $(STAMP) ## Measure training speed against the peers (ARGS="--nanochat FOLDER")
	$(BIN)/python bench/train.py $(ARGS)

fmt: $(STAMP) ## Format the code and mend what lint can mend
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

lint: $(STAMP) ## Check format and style
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench

type: $(STAMP) ## Check types, strictly
	$(BIN)/mypy

house unit numerics e2e: $(STAMP)
	$(BIN)/python -m pytest tests/$@

house: ## Run the tests of the house rules
unit: ## Run the tests of single modules
numerics: ## Run the tests against references
e2e: ## Run the tests of whole commands

# ASan must be there before anything else, and libstdc++ before it looks for what it wraps. Memory
# begins as NaN, so that a number that no kernel wrote is seen. A report goes to the terminal.
SANITIZED := ZIPHIUS_NATIVE=sanitize ZIPHIUS_FUZZ_EXAMPLES=100 UBSAN_OPTIONS=print_stacktrace=1 \
	ASAN_OPTIONS=detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=16777216

sanitize: $(STAMP) ## Run the kernels on random sizes under ASan and UBSan (g++)
	$(SANITIZED) LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
		$(BIN)/python -m pytest --capture=no tests/unit/ops/native $(ARGS)

docs: $(STAMP) ## Write docs/cli.md from the commands' own help
	$(BIN)/python -m ziphius.cli.reference docs/cli.md

size: ## Show the longest files
	@find src tests -name '*.py' -exec wc -l {} + | sort -rn | head -20

clean: ## Remove .venv and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache src/*.egg-info

# torch goes first: with it in place nothing that comes after can pull in another build of it.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '$(USABLE)' 2>/dev/null; then \
		for python in $(CANDIDATES); do \
			if $$python -c '$(USABLE)' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "Ziphius needs Python >= 3.11 with venv (on Debian: apt install python3-venv)." >&2; \
			echo "If yours has another name: make PYTHON=/path/to/python ..." >&2; exit 1; \
		fi; \
		echo "Making $(VENV) with $$($$found --version)"; \
		$$found -m venv --clear $(VENV); \
	fi
	@echo "Installing into $(VENV): a few minutes, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	@touch $@
