# Trident's commands. `make help` lists them. Everything is installed below this folder; nothing needs root.

VENV        := .venv
TRITON_VENV := .venv-triton
PEERS_VENV  := .venv-peers
DOCS_VENV   := .venv-docs
BIN         := $(VENV)/bin
# `cpu` or `gpu`: which onnxruntime package is installed (`rm -r .venv; make setup RUNTIME=gpu`).
RUNTIME     ?= cpu
# `uv` installs in seconds; `pip` is for machines whose package index is configured for pip alone.
INSTALLER   ?= uv
ARGS        ?=
# How many processes run tests; those marked `serial` run alone afterwards.
JOBS        ?= 2
# A command that waits until nothing disturbs tests that measure time.
QUIET_DOWN  ?= true
COVER       := --cov --cov-append --cov-report=
FAST        := not integration and not slow and not docker and not gpu

export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/.ready $(TRITON_VENV)/.ready  ## install everything into .venv and .venv-triton

$(VENV)/.ready: pyproject.toml constraints.txt scripts/setup.sh
	@INSTALLER=$(INSTALLER) scripts/setup.sh $(VENV) constraints.txt '.[all,$(RUNTIME)]'

$(TRITON_VENV)/.ready: pyproject.toml constraints-triton.txt scripts/setup.sh $(VENV)/.ready
	@INSTALLER=$(INSTALLER) scripts/setup.sh $(TRITON_VENV) constraints-triton.txt '.[triton]'

$(PEERS_VENV)/.ready: pyproject.toml constraints-peers.txt scripts/setup.sh $(VENV)/.ready
	@INSTALLER=$(INSTALLER) scripts/setup.sh $(PEERS_VENV) constraints-peers.txt '.[peers]'

$(DOCS_VENV)/.ready: pyproject.toml constraints-docs.txt scripts/setup.sh $(VENV)/.ready
	@INSTALLER=$(INSTALLER) scripts/setup.sh $(DOCS_VENV) constraints-docs.txt '.[docs]'

demo: setup  ## train, export, deploy to three servers, verify, load-test, report, clean up
	@$(BIN)/trident demo $(ARGS)

test: test-parallel test-serial  ## the tests that need no server but small ones of their own

test-parallel: setup
	@$(BIN)/pytest -n $(JOBS) --dist worksteal -m '$(FAST) and not serial' $(ARGS)

test-serial: setup
	@$(QUIET_DOWN)
	@$(BIN)/pytest -m '$(FAST) and serial' $(ARGS) || test $$? -eq 5  # 5: ARGS selects none of these

coverage: setup  ## the same tests, and the share of the code that they run
	@$(BIN)/coverage erase
	@$(MAKE) --no-print-directory test ARGS='$(COVER) $(ARGS)'
	@$(BIN)/coverage report | grep '^TOTAL'

test-integration: setup  ## the tests that start the real servers
	@$(BIN)/pytest -n $(JOBS) --dist loadfile -m 'integration and not slow and not gpu and not serial' $(ARGS)
	@$(BIN)/pytest -m 'integration and not slow and not gpu and serial' $(ARGS) || test $$? -eq 5

test-slow: setup  ## what only a long run can show: 20 rollouts, the full drill, tune, two nodes, `make truth`
	@$(BIN)/pytest -m 'slow and not docker and not gpu' $(ARGS)
	$(if $(ARGS),,@$(BIN)/python -m loadtest.truth)

test-all: test test-integration test-slow compose-test  ## every test that this machine can run

truth: setup  ## compare the load test with simulation, queueing theory and wrk
	@$(BIN)/python -m loadtest.truth $(ARGS)

# QUIET: a command prefix that keeps other work off the machine, if there is one.
LANES := --runtime onnxruntime,torchscript --protocol http,grpc --send image,tensor
results: setup  ## repeat the benchmarks of docs/results (20 minutes; nothing else should run)
	$(QUIET) $(BIN)/trident bench --model digits --file docs/results/digits.toml $(LANES) --out docs/results/digits
	$(QUIET) $(BIN)/trident bench --model digits --file docs/results/digits-slo.toml --out docs/results/digits-slo
	$(QUIET) $(BIN)/trident bench --model efficientnet_lite0 --file docs/results/efficientnet_lite0.toml $(LANES) --out docs/results/efficientnet_lite0
	@$(BIN)/python -m scripts.generate_docs

compose-up:  ## the whole stack in containers, built and healthy (docker compose)
	@docker compose --profile loadtest --profile locust build
	@docker compose up -d --wait $(ARGS)
	@docker compose port edge 8080 | sed 's|.*|try  curl -F file=@image.png http://&/predict  or open http://&/grafana/|'

compose-down:  ## stop the containers and remove what they kept (bundles, reports, metrics)
	@docker compose --profile loadtest --profile locust down -v --remove-orphans

compose-test: setup  ## the container stack from nothing to nothing
	@$(BIN)/pytest -m docker tests/compose $(ARGS)

bench-overhead: setup $(PEERS_VENV)/.ready  ## compare the FastAPI service with its ceiling, mosec, LitServe and BentoML
	@$(BIN)/python -m loadtest.overhead --peers $(PEERS_VENV)/bin/python $(ARGS)

# On a machine without a network: `make gpu-check PYTHON=/path/to/python`, whose packages it uses, and the wheels of gpu-wheels.
GPU_VENV   := .venv-gpu
GPU_WHEELS ?= artifacts/gpu-wheels
gpu-check: $(if $(PYTHON),,setup)  ## check and measure what runs on a GPU (ARGS="--device cpu --quick" without one)
	@$(if $(PYTHON),scripts/gpu_check.sh $(PYTHON) $(GPU_VENV) $(GPU_WHEELS),$(BIN)/python -m trident.gpu_check) $(ARGS)

gpu-wheels: setup  ## download what gpu-check needs on a machine without a network into artifacts/gpu-wheels
	@$(BIN)/python -m scripts.gpu_wheels $(GPU_WHEELS) $(ARGS)

soak: setup  ## send 200,000 requests to the FastAPI service, some of them bad
	@$(BIN)/python -m loadtest.overhead.soak $(ARGS)

bench-training: setup  ## seconds per epoch against a plain loop; what bf16, channels_last and compile give
	@$(BIN)/python -m training.benchmark.speed $(ARGS)

bench-precisions: setup  ## runtimes and precisions on one core: EfficientNet-Lite0 and digits
	@$(BIN)/trident import efficientnet_lite0 --precisions all --max-accuracy-drop 0.2
	@$(QUIET) $(BIN)/trident precisions --model efficientnet_lite0 $(ARGS)
	@$(BIN)/trident train --run-dir artifacts/runs/precisions
	@$(BIN)/trident export artifacts/runs/precisions/best.pt --precisions all
	@$(QUIET) $(BIN)/trident precisions --model digits $(ARGS)

docs: setup $(DOCS_VENV)/.ready  ## generate the reference pages and build the site into artifacts/site
	@$(BIN)/python -m scripts.generate_docs
	@$(DOCS_VENV)/bin/python scripts/build_site.py

lint: setup  ## ruff, mypy, links and generated parts of the documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/docs/test_links.py tests/docs/test_generated.py tests/docs/test_style.py

format: setup  ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(VENV)/.ready  ## choose new exact versions within pyproject's bounds
	@scripts/lock.sh

clean:  ## stop the servers, remove the environments and all artifacts
	@if [ -x $(BIN)/trident ]; then $(BIN)/trident down --quiet || true; fi
	rm -rf $(VENV) $(TRITON_VENV) $(PEERS_VENV) $(DOCS_VENV) $(GPU_VENV) artifacts mlruns .cache .mypy_cache .pytest_cache .ruff_cache

.PHONY: help setup demo test test-parallel test-serial coverage test-integration test-slow test-all truth results compose-up compose-down compose-test bench-overhead bench-training bench-precisions gpu-check gpu-wheels soak docs lint format lock clean
