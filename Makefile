# Every target is one command; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help up down setup test check test-cluster bench bench-events images next-release test-compose drills lock protos chart clean
SHELL := /bin/sh
PORT ?= 8600
REGULARS := .venv/bin/regulars

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F '|' '{ printf "%-16s%s\n", $$1, $$2 }'

# make hands DATABASE_URL on through the environment: it may hold a password, and a command line can be read by others.
up: setup ## start everything on this machine until Ctrl-C (PORT=8600; DATABASE_URL=postgresql://… for the embedded server; KAFKA=local or host:port for the bus; OPS=9600 for metrics)
	@exec $(REGULARS) up --port '$(PORT)' $(if $(OPS),--ops '$(OPS)')

down: ## stop what `make up` started, and nothing else
	@if [ -x $(REGULARS) ]; then $(REGULARS) down; else echo "Nothing is running."; fi

setup: ## make .venv from requirements.lock, if anything changed (PYTHON=python3.12 chooses the interpreter)
	@scripts/setup.sh

test: setup ## all checks and all tests
	@scripts/test.sh

check: setup ## style, types, imports, the house's rules, protos
	@scripts/check.sh

bench: setup ## measure against pgbench on the same PostgreSQL; writes benchmarks/results
	@.venv/bin/python -m benchmarks

bench-events: setup ## measure events beside bare loops over the same Kafka and PostgreSQL (ARGS=--quick); writes benchmarks/results
	@.venv/bin/python -m benchmarks.events $(ARGS)

test-cluster: setup ## try the chart on the cluster of KUBECONFIG: install, sell, upgrade, kill, scale, restore, remove (ARGS="--tag 0.1.0 --next-tag 0.2.0")
	@.venv/bin/python -m tests.cluster --write docs/cluster-test.md $(ARGS)

images: ## build the four container images, regulars/*:TAG (TAG=0.1.0), and say their sizes
	@scripts/build_images.sh '$(TAG)'

next-release: setup ## build the images of a made-up next release, with migrations and a new service, for test-cluster to upgrade to (TAG=0.1.0 NEXT=0.2.0)
	@.venv/bin/python -m tests.cluster.next_release '$(or $(TAG),0.1.0)' '$(or $(NEXT),0.2.0)'

test-compose: setup ## all of docker-compose.yml on a Docker Engine: images, sign-in, sales, reports, restart (fails where there is no engine)
	@TEST_COMPOSE=1 .venv/bin/python -m pytest -s tests/compose $(ARGS)

drills: setup ## lose servers, processes and networks under a load of sales, and prove that nothing was lost (some minutes)
	@scripts/drills/all.sh

lock: setup ## write requirements.lock from the pyproject.toml files (ARGS=--upgrade for the newest versions)
	@scripts/lock.sh $(ARGS)

protos: setup ## regenerate the stubs in protos/gen, and docs/topics.md
	@scripts/generate_protos.sh
	@.venv/bin/python scripts/write_topics_page.py

chart: setup ## write what the Helm chart takes from elsewhere, its README and its golden renders
	@.venv/bin/python scripts/write_chart_values.py
	@.venv/bin/python scripts/write_chart_readme.py
	@.venv/bin/python scripts/check_chart.py --write

clean: ## remove the environment and caches; data in var/ stays
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis
