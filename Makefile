# Everything a person or CI does with a checkout. `make setup` needs Python 3.11 to 3.14 and nothing else.
# The first of these that fits is used; PYTHON=/path/to/python chooses another.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
  "$$python" -c 'import ensurepip, venv; $(FITS)' 2>/dev/null && echo "$$python" && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup run test check bench peers neural sbom audit lock clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "foldin needs Python 3.11 or newer: install it, or say where it is with make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c '$(FITS)' || { echo "foldin needs Python 3.11 to 3.14, and $(PYTHON) is another: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

# exec: Ctrl-C goes to the stack alone, and its exit code is that of make.
run: setup
	@exec $(BIN)/foldin up $(ARGS)

test: setup check
	$(BIN)/python -m pytest -n auto $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup peers
	$(BIN)/foldin bench $(ARGS)

# What the benchmarks compare with. Where one has no wheel for this Python, its rows say that it was skipped.
peers: $(VENV)/.peers
$(VENV)/.peers: $(STAMP) requirements/bench.txt
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

# The neural engine and its tests; torch is 0.2 to 3 GB, so it is in no lock.
neural: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.6'
	FOLDIN_TEST_NEURAL=1 $(BIN)/python -m pytest tests/neural $(ARGS)

# What a release is made of, as CycloneDX, and what is known against it: by tools in an environment of their own.
SUPPLY := $(VENV)/supply
$(SUPPLY)/.installed: requirements/supply.txt $(STAMP)
	$(BIN)/python -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/supply.txt
	@touch $@

sbom: $(SUPPLY)/.installed
	$(SUPPLY)/bin/python .ci/supply.py sbom dist/foldin.cdx.json

audit: $(SUPPLY)/.installed
	$(SUPPLY)/bin/python .ci/supply.py audit $(AUDIT)

# The locks carry hashes and no registry addresses; numpy and scipy fork by Python version.
lock:
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --extra evaluate --extra fast --group dev pyproject.toml requirements/build.in -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --group bench --constraints requirements/dev.txt -o requirements/bench.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --no-header \
	  --group supply -o requirements/supply.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
