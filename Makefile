# Two commands do the work: `make repro` (the default study) and `make test`.
PYTHON ?= python3
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
VENV := .venv
BIN := $(abspath $(VENV)/bin)
export PATH := $(BIN):$(PATH)
STUDY := .
CELLS := fetch preprocess fitted features pool pretrain tune|tune_content train|train_content|adapt \
  evaluate[a-z_]* robustness[a-z_]*

.PHONY: repro study overview test lint bench clean lock

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Stages of one kind run JOBS at a time, each on one thread: that uses the cores better than threads within a
# cell do, and the order in which a sum is taken, so its last bit, does not depend on how many cores there
# are. The plain repro at the end does what is left: the report.
repro: export OMP_NUM_THREADS ?= 1
repro: $(VENV)/installed
ifneq ($(JOBS),1)
	cd $(STUDY) && if dvc repro --dry | grep -q "^Running"; then dvc repro -s fingerprint && \
	  for stage in $(foreach stage,$(CELLS),'$(stage)'); do dvc stage list --name-only | grep -E "^($$stage)(@|$$)" | \
	    xargs -P $(JOBS) -I{} dvc --wait-for-lock repro -s {} || exit 1; done; fi
endif
	cd $(STUDY) && dvc repro
	@echo "Open $(STUDY)/reports/index.html"

study: $(VENV)/installed
	@test -n "$(NAME)" || { echo "say which: make study NAME=sequences ($(notdir $(wildcard studies/*)))"; exit 2; }
	@test -f studies/$(NAME)/params.yaml || { echo "studies/$(NAME)/params.yaml: not found"; exit 2; }
	$(MAKE) --no-print-directory repro STUDY=studies/$(NAME) JOBS=$(JOBS)

overview: $(VENV)/installed
	python stages/overview.py

test: $(VENV)/installed
	python -m pytest -q

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

bench: $(VENV)/installed
	python benchmarks/sasrec_speed.py
	python benchmarks/scaling.py

clean:
	rm -rf $(VENV) .scratch .pytest_cache .mypy_cache .ruff_cache build *.egg-info
