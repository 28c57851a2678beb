# Every target works as the first command in a fresh clone: python3 (3.11 to 3.14) and make are
# all it needs. A stamp in .venv records what is installed, so a second call installs nothing.

PYTHON ?= python3
BIN := .venv/bin
# Without --no-compile half of the time goes into bytecode of modules that nobody imports. Of those
# that every process imports it is written once here, also where the environment says not to:
# without it torch, transformers and Ray take each process three times as long to import.
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install --no-compile -c constraints.txt
BYTECODE := $(BIN)/python -c 'import glray.train.worker, ray.data, ray.train.torch'
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart paper-mini test check docs soak clean

quickstart: .venv/installed  ## one GrowLength run against its baselines, start to report
	$(BIN)/glray run pipelines/quickstart.py

paper-mini: .venv/installed docs.parquet  ## the paper's tables and figures on two cores: hours
	$(BIN)/python benchmarks/paper.py $(if $(SEEDS),--seeds $(SEEDS))
	$(BIN)/python benchmarks/paper.py --scale tiny $(if $(SEEDS),--seeds $(SEEDS))

docs.parquet: | .venv/installed
	$(BIN)/python benchmarks/docs_corpus.py $@

test: .venv/installed-dev  ## everything but the soak tests
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "not soak"

soak: .venv/installed-dev  ## the long randomized tests
	$(BIN)/python -m pytest -m soak

check: .venv/installed-dev  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/installed-dev  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

clean:  ## remove the environment and the caches, never runs/
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; version = sys.version_info[:2]; \
	  sys.exit(not (3, 11) <= version < (3, 15) and "error: $(PYTHON) is Python %d.%d, " % version + \
	  "Ray has packages for 3.11 to 3.14: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	@$(BYTECODE)
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[cluster,dev]'
	@$(BYTECODE)
	@touch $@ .venv/installed
