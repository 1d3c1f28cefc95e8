# Two commands matter: `make serve` and `make test`. Each sets up all that it needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
MODELS := model_repository
PORT ?= 8080

.PHONY: help serve models setup setup-dev inplace-abn test fuzz soak check check-deploy render page-picture bench bench-gpu wrk chromium e2e clean

serve: setup  ## train and export what is missing, then serve on http://127.0.0.1:8080
	@PYTHONPATH=. $(BIN)/python deploy/serve.py check
	@$(MAKE) --no-print-directory models
	@PYTHONPATH=. $(BIN)/python deploy/serve.py

models: setup  ## train and export the two demo models, if there is no model
	@if [ -z "$$(find $(MODELS) -mindepth 2 -maxdepth 2 -name config.pbtxt)" ]; then \
		$(MAKE) --no-print-directory $(MODELS)/digits/config.pbtxt $(MODELS)/multidigits/config.pbtxt; fi

# Both are trained before the first is exported: once one lies there, nothing is looked for any more.
TRAINED := runs/digits/complete runs/multidigits/complete

$(MODELS)/digits/config.pbtxt: $(TRAINED)
	$(BIN)/tresnet export runs/digits/best.pt --task classify --name digits

$(MODELS)/multidigits/config.pbtxt: $(TRAINED)
	$(BIN)/tresnet export runs/multidigits/best.pt --task tag --name multidigits

# An interrupted training goes on where it stopped.
runs/%/complete:
	$(BIN)/tresnet train $* $$(test ! -e runs/$*/last.pt || echo --resume)
	touch $@

setup: $(VENV)/.installed  ## the virtual environment and the bundled Triton

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, not " + sys.version.split()[0] + ": PYTHON=python3.13 make setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing about 2 GB into $(VENV): a few minutes, most of it silent"
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	rm -rf $(VENV)/triton
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/triton nvidia-pytriton==0.7.0
	touch $@

setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[train,tracing,dev]'
	touch $@

inplace-abn: $(VENV)/.installed-iabn  ## the package's fused InPlace-ABN kernels; needs a C++ compiler

# Its setup imports torch, and torch's extension builder wants ninja: a second step, in this very environment.
$(VENV)/.installed-iabn: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet setuptools setuptools_scm wheel ninja
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --no-cache-dir inplace-abn==1.1.0
	touch $@

# promtool judges /metrics; where Debian's packages are not to be had, its test is skipped.
$(VENV)/deploy/bin/promtool: deploy/prometheus_tools.sh $(VENV)/.installed
	sh deploy/prometheus_tools.sh $(VENV)/deploy || true

# The examples are run where Debian has their languages (13 s for Go); elsewhere their tests are skipped.
$(VENV)/.languages: | $(VENV)/.installed
	@for pair in curl:curl node:nodejs go:golang-go; do \
		command -v $${pair%:*} >/dev/null || missing="$$missing $${pair#*:}"; done; \
	if test -z "$$missing" || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; }; \
	then touch $@; fi

test: setup-dev inplace-abn $(VENV)/deploy/bin/promtool $(VENV)/.languages  ## the whole test suite, with a real Triton
	$(MAKE) --no-print-directory wrk || true
	$(MAKE) --no-print-directory chromium || true
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The load generator; where Debian's packages are not to be had, the test that needs it is skipped.
wrk:
	@command -v wrk >/dev/null || { apt-get update -qq && apt-get install -y -qq wrk; }

# The browser of the page's tests; where it is not to be had, they are skipped, and fail in CI.
chromium:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }

FUZZ_SECONDS ?= 60

fuzz: setup-dev  ## coverage-guided fuzzing of the picture decoding; what breaks it is left in runs/fuzz
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	mkdir -p runs/fuzz
	PYTHONPATH=. $(BIN)/python tests/fuzz_pictures.py runs/fuzz/corpus -max_total_time=$(FUZZ_SECONDS) \
		-timeout=10 -rss_limit_mb=1024 -max_len=40000 -artifact_prefix=runs/fuzz/found-

SOAK_MINUTES ?= 20

soak: models  ## mixed, hostile and vanishing clients: fails if anything is wrong or grows
	$(BIN)/python -m benchmarks.soak --minutes $(SOAK_MINUTES) --repository $(MODELS)

check: setup-dev  ## lint, format, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tools lie before the machine's own, so that CI and a developer check with the same ones.
DEPLOY_PATH := $(CURDIR)/$(BIN):$(CURDIR)/$(VENV)/deploy/bin:$(CURDIR)/$(VENV)/deploy/checkov/bin

check-deploy: $(VENV)/deploy/.installed  ## Dockerfile, compose, Kubernetes, Prometheus, Grafana: all that needs no cluster
	PATH="$(DEPLOY_PATH):$$PATH" PYTHONPATH=. sh deploy/check.sh

render: $(VENV)/deploy/.installed  ## files that are made from others: dashboard, PrometheusRule, table of settings
	PYTHONPATH=. $(BIN)/python deploy/render.py

page-picture: setup-dev chromium  ## README's picture of the page, from a running `make serve`
	PYTHONPATH=. $(BIN)/python tests/page_picture.py docs/images/page.png http://127.0.0.1:$(PORT)

$(VENV)/deploy/.installed: pyproject.toml deploy/tools.sh deploy/prometheus_tools.sh $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[train,dev,deploy]'
	sh deploy/tools.sh $(VENV)/deploy $(BIN)/python
	touch $@

bench: $(VENV)/peers/.installed  ## this project beside LitServe, BentoML, mosec and a plain route; on a quiet machine
	$(BIN)/tresnet bench serving --seconds 30 --write benchmarks/results/serving.json
	$(BIN)/tresnet bench growth benchmarks/results/growth.json

bench-gpu: setup-dev wrk  ## the paper's table and the whole service, on an NVIDIA GPU
	$(MAKE) inplace-abn || echo "inplace-abn does not build here: its row will be missing"
	$(BIN)/tresnet bench gpu-models --device cuda --memory-gib 16 --profile TResNet-M,TResNet-L,ResNet50
	$(BIN)/tresnet bench gpu-service --device cuda

$(VENV)/peers/.installed: $(VENV)/.installed benchmarks/serving/peers/requirements.txt
	$(MAKE) wrk
	$(BIN)/python -m pip install --quiet --editable '.[train,bench]'
	test -x $(VENV)/peers/bin/python || $(PYTHON) -m venv $(VENV)/peers
	$(VENV)/peers/bin/pip install --quiet -r benchmarks/serving/peers/requirements.txt
	touch $@

e2e: $(VENV)/deploy/.installed  ## the whole deployment on a Docker engine of its own; needs root and Debian
	sh deploy/e2e/install.sh $(VENV)/deploy
	PATH="$(DEPLOY_PATH):$$PATH" PYTHONPATH=. $(BIN)/python -m pytest deploy/e2e

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

clean:  ## remove the virtual environment, runs and logs; models stay
	rm -rf $(VENV) runs logs build *.egg-info
