# The user interface: every verb installs what it needs first, so `make demo` or `make test` on a fresh machine is enough.
#   PYTHON=python3.12         the Python that makes .venv (3.11 or newer)
#   DEVICE=cpu|cuda           what torch and vLLM are built for; found out if not given
#   TORCH_INDEX_URL=…         the package index to take torch from
#   RECIPE=recipes/demo.toml  the run's configuration; ARGS="…" goes to the program as it stands
# Every target with a help text is a verb.
.PHONY: help FORCE $(shell awk -F: '/^[a-z-]+:.*\#\# / {print $$1}' $(firstword $(MAKEFILE_LIST)))

PYTHON ?= python3
RECIPE ?= recipes/demo.toml
ARGS ?=
ENGINE ?= docker
ifndef DEVICE
DEVICE := $(shell cat .venv/.device 2>/dev/null || { nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu; })
endif
LOCK := $(or $(and $(filter cpu,$(DEVICE)),requirements/cpu.txt),$(and $(filter cuda,$(DEVICE)),requirements/gpu.txt),\
          $(error DEVICE is cpu or cuda, not "$(DEVICE)"))

TAG = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)$(if $(filter cuda,$(DEVICE)),-cuda)

PY := .venv/bin/python
ENV := local
OVERLAY ?= cpu
$(if $(filter local compose k8s,$(ENV)),,$(error ENV is local, compose or k8s, not "$(ENV)"))
HERE := $(filter local,$(ENV))
given = $(filter-out 0,$(1))
ELSEWHERE = $(PYTHON) -m deploy.verbs --env $(ENV) --overlay '$(OVERLAY)' --device $(DEVICE) $(if $(call given,$(DRY)),--dry)
# Three for two cores: some tests mostly wait. In the order of tests/conftest.py; by itself xdist would begin with the
# files that have the most tests.
SIDE_BY_SIDE := -n 3 --dist loadgroup --no-loadscope-reorder
RUNTIME := .venv/.installed
DEV := .venv/.installed-dev
CODE := broker producer consumer monitoring deploy tests requirements benchmarks

export TORCH_INDEX_URL
export VLLM_NO_USAGE_STATS := 1
export TOKENIZERS_PARALLELISM := false
unexport PYTHONDONTWRITEBYTECODE # a run is of many processes, which would compile all modules each

MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help
# Every target with a help text is a verb.
.PHONY: help FORCE $(shell awk -F: '/^[a-z-]+:.*\#\# / {print $$1}' $(firstword $(MAKEFILE_LIST)))

help:
	@echo 'make VERB [RECIPE=recipes/demo.toml] [DEVICE=cpu|cuda] [PYTHON=python3.11] [ARGS="…"]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(RUNTIME) ## run the whole pipeline on this machine: Redis, generators, learner
	@exec $(PY) -m deploy.launcher recipes/demo.toml $(if $(call given,$(DETACH)),--detach) $(ARGS)

up: $(if $(HERE),$(RUNTIME)) ## the same with RECIPE; DETACH=1 in the background; ENV=compose or ENV=k8s OVERLAY=cpu elsewhere (DRY=1: only say how)
	@exec $(if $(HERE),$(PY) -m deploy.launcher $(RECIPE) $(if $(call given,$(DETACH)),--detach),$(ELSEWHERE) up) $(ARGS)

down: $(if $(HERE),$(RUNTIME)) ## stop the run of RECIPE, in order (ENV=…: VOLUMES=1 with all its data)
	@exec $(if $(HERE),$(PY) -m deploy.launcher --stop $(RECIPE),$(ELSEWHERE) down $(if $(call given,$(VOLUMES)),--volumes)) $(ARGS)

stop: down ## the same

logs: $(if $(HERE),$(RUNTIME)) ## what the processes of the run of RECIPE say, until Ctrl-C: ROLE=learner|generator|… TAIL=20 FOLLOW=0
	@exec $(if $(HERE),$(PY) -m monitoring.logs $(RECIPE),$(ELSEWHERE) logs) $(if $(ROLE),--role '$(ROLE)') $(if $(TAIL),--lines '$(TAIL)') $(if $(filter 0,$(FOLLOW)),--no-follow) $(ARGS)

scale: $(if $(HERE),$(RUNTIME)) ## from now on N generators for the run of RECIPE: N=3, N=0 is a pause
	@exec $(if $(HERE),$(PY) -m deploy.scale $(RECIPE),$(ELSEWHERE) scale) --count='$(N)' $(ARGS)

eval: $(RUNTIME) ## how good a model is: MODEL=directory-or-name TASK=name on the held-out problems, sampled as in RECIPE
	@exec $(PY) -m deploy.evaluate $(RECIPE) $(if $(MODEL),--model $(MODEL)) $(if $(TASK),--task $(TASK)) $(ARGS)

broker: $(RUNTIME) ## run the embedded Redis alone
	@exec $(PY) -m broker.embedded $(ARGS)

acl: $(RUNTIME) ## make Redis users for the roles, and their passwords, in secrets/
	@exec $(PY) -m broker.acl $(ARGS)

producer: $(RUNTIME) ## run one generator of RECIPE
	@exec $(PY) -m deploy.role producer $(RECIPE) $(ARGS)

join: $(RUNTIME) ## run one generator of a run that goes on elsewhere: REDIS=redis://host:6379 RUN=demo MODEL=name-or-directory
	@exec $(PY) -m deploy.role producer --join '$(RUN)' $(if $(REDIS),--broker.url '$(REDIS)') $(if $(MODEL),--run.model '$(MODEL)') $(ARGS)

consumer: $(RUNTIME) ## run the learner of RECIPE
	@exec $(PY) -m deploy.role consumer $(RECIPE) $(ARGS)

top: $(RUNTIME) ## watch the run of RECIPE in this terminal, or one of any machine: PROMETHEUS=http://host:9090 [RUN=demo]
	@exec $(PY) -m monitoring.top $(if $(PROMETHEUS),--prometheus $(PROMETHEUS) $(if $(RUN),--run $(RUN)),$(RECIPE)) $(ARGS)

monitoring: $(RUNTIME) ## Prometheus and Grafana beside the run of RECIPE: those of this machine, or in containers
	@exec $(PY) -m monitoring.stack $(RECIPE) $(ARGS)

exporter: $(RUNTIME) ## serve the books of the run of RECIPE as Prometheus metrics (`make up` does it by itself)
	@exec $(PY) -m monitoring.exporter $(RECIPE) $(ARGS)

objectives: $(RUNTIME) ## print the presets of [objective] and the axes they set
	@exec $(PY) -m consumer.objective $(ARGS)

crash-matrix: $(DEV) ## kill every process at every labelled point and write benchmarks/crash-matrix.md (15 minutes)
	@exec $(PY) -m tests.system.crash_matrix $(ARGS)

soak: $(DEV) ## kill something every few seconds for MINUTES=10 and report memory, streams and steps
	@exec $(PY) -m tests.system.soak --minutes $(or $(MINUTES),10) $(ARGS)

cluster: $(DEV) ## hosts that are cut off, lost and join, as network namespaces (root): benchmarks/cluster.md (3 minutes)
	@exec $(PY) -m benchmarks.cluster $(ARGS)

sizing: $(RUNTIME) ## what the run of RECIPE needs of Redis, how much is in play, how many generators that feeds
	@exec $(PY) -m consumer.sizing $(RECIPE) $(ARGS)

ledger: $(RUNTIME) ## show the books of the run of RECIPE: every ticket and what became of it
	@exec $(PY) -m monitoring.books $(RECIPE) $(ARGS)

dead-letters: $(RUNTIME) ## list what failed in the run of RECIPE or could not be read, and why; issue it again (ARGS="--requeue all")
	@exec $(PY) -m monitoring.dead_letters $(RECIPE) $(ARGS)

explain: $(RUNTIME) ## tell the life of one group of the run of RECIPE: GROUP=ticket|number|best|worst|latest|surprising (none: a list)
	@exec $(PY) -m monitoring.explain $(RECIPE) $(if $(GROUP),'$(GROUP)') $(ARGS)

tensorboard: $(RUNTIME) ## a run's figures as event files for TensorBoard, until it is over: RUN=demo (pip install tensorboard)
	@exec $(PY) -m monitoring.tensorboard $(or $(RUN),demo) $(ARGS)

report: $(RUNTIME) ## sum up a run, finished or not, on one HTML page: RUN=demo, or several side by side: RUNS="demo demo-2"
	@exec $(PY) -m monitoring.report $(or $(RUNS),$(RUN),demo) $(ARGS)

test: $(DEV) ## all tests, those of the real vLLM engine included
	@exec $(PY) -m pytest -ra --durations=15 $(SIDE_BY_SIDE) $(ARGS)

test-fast: $(DEV) ## the tests that need no engine
	@exec $(PY) -m pytest -ra -m "not engine" $(SIDE_BY_SIDE) $(ARGS)

lint: $(DEV) ## check style and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(DEV) ## mend style and format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

type: $(DEV) ## check types (mypy, strict)
	@exec $(PY) -m mypy $(CODE)

bench: $(DEV) ## how near each leg is to its limit, as ratios: tables in benchmarks/README.md (LEGS="transport scale"; about an hour)
	@exec $(PY) -m benchmarks $(if $(LEGS),--legs $(LEGS)) $(ARGS)

bench-gpu: $(DEV) ## the legs that a GPU changes, on this machine's: LEGS="weights generator learner pipeline", MODEL=directory
	@exec $(PY) -m benchmarks --gpu $(if $(LEGS),--legs $(LEGS)) $(if $(MODEL),--model $(MODEL)) $(ARGS)

bench-demo: $(RUNTIME) ## the demo with three seeds, whose figures README.md tells (25 minutes)
	@exec $(PY) -m benchmarks.demo $(ARGS)

bench-cold-start: $(RUNTIME) ## from `make up` to the first optimizer step, phase by phase: benchmarks/cold-start.md (10 minutes)
	@exec $(PY) -m benchmarks.cold_start $(ARGS)

bench-learner: $(DEV) ## packing and lean log-probs against a plain padded loop, ranks against one: as ratios (15 minutes)
	@$(PY) -m benchmarks.learner $(ARGS)
	@exec $(PY) -m benchmarks.ranks

bench-verifiers: $(DEV) ## verdicts a second of one verifier process
	@exec $(PY) -m benchmarks.verifiers $(ARGS)

bench-instrumentation: $(DEV) ## what the metrics cost: microseconds a step and a group, and their share of a run
	@exec $(PY) -m benchmarks.instrumentation $(ARGS)

bench-audit: $(RUNTIME) ## what the audit log costs a group, in microseconds and bytes
	@exec $(PY) -m benchmarks.audit $(ARGS)

bench-autoscaling: $(DEV) ## scale generators by several signals in virtual time: benchmarks/autoscaling.md, docs/autoscaling.png (5 minutes)
	@exec $(PY) -m benchmarks.autoscaling $(ARGS)

fuzz: $(DEV) ## feed every decoder 100,000 broken messages and more
	@exec $(PY) -m benchmarks.fuzz $(ARGS)

staleness: $(RUNTIME) ## reward against staleness, preset by preset, on a toy (15 minutes): benchmarks/staleness.md, docs/staleness.png
	@exec $(PY) -m benchmarks.staleness $(ARGS)

exhibit: $(RUNTIME) ## a gameable reward against a verifiable one, on a toy, in one picture: docs/exhibit.png (5 minutes)
	@exec $(PY) -m benchmarks.exhibit $(ARGS)

curriculum: $(RUNTIME) ## samples to a given reward, by curriculum, on a toy: docs/curriculum.png (5 minutes)
	@exec $(PY) -m benchmarks.curriculum $(ARGS)

dashboards: $(DEV) ## write Grafana's dashboards anew from the code: monitoring/grafana/dashboards/*.json
	@exec $(PY) -m monitoring.grafana $(ARGS)

.PHONY: manifests checkov
manifests: $(RUNTIME) ## write anew what deploy/k8s repeats: the rules of Prometheus for its operator
	@exec $(PY) -m deploy.manifests $(ARGS)

checkov: $(DEV) .venv-checkov/.installed ## look through the Kubernetes manifests for what is unsafe (290 MB, once)
	@exec $(PY) -m pytest -q tests/deploy/test_k8s_checkov.py $(ARGS)

screenshots: $(DEV) ## the dashboards as pictures, of a small run under Prometheus: docs/dashboard-*.png (3 minutes)
	@exec $(PY) -m benchmarks.dashboards $(ARGS)

images: ## build the container images headrace/generator, learner and tools for DEVICE (BUILD="…": options of the build)
	@for image in tools learner generator; do \
	  $(ENGINE) build -f deploy/Dockerfile --target $$image --build-arg DEVICE=$(DEVICE) -t headrace/$$image:$(TAG) \
	    --label org.opencontainers.image.revision="$$(git rev-parse HEAD 2>/dev/null)" $(BUILD) . || exit; done

images-test: $(DEV) ## build them, run a pipeline of them, and write benchmarks/images.md (20 minutes)
	@exec $(PY) -m tests.system.images --engine "$(ENGINE)" --device $(DEVICE) $(ARGS)

install: $(RUNTIME) ## install only (the other verbs do it by themselves)

lock: $(DEV) ## write requirements/*.txt anew from .venv and, for CUDA, the package index
	@exec $(PY) requirements/lock.py

clean: ## remove .venv, .venv-checkov and all caches; runs and models stay
	@rm -rf .venv .venv-checkov .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A lock that changed, or another device than the one installed, installs anew.
$(RUNTIME): $(LOCK) $(if $(filter $(DEVICE),$(shell cat .venv/.device 2>/dev/null)),,FORCE)
	@$(PYTHON) requirements/install.py --device $(DEVICE)
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	@$(PYTHON) requirements/install.py --dev
	@touch $@

# Checkov's dependencies contradict ours.
.venv-checkov/.installed: requirements/checkov.txt
	@$(PYTHON) -m venv .venv-checkov
	@.venv-checkov/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/checkov.txt
	@touch $@

FORCE:
