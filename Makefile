# Every target works as the first command after `git clone`; deploy/setup.sh makes .venv.

export PYTHON ?= python3
VENV := .venv/bin/python
ALL := server,images,tables,bench,dev

.PHONY: help demo test check bench wheels proto clean

help:
	@bold=; plain=; if [ -t 1 ] && [ -z "$$NO_COLOR" ]; then bold='\033[1m'; plain='\033[0m'; fi; \
	sed -n 's/^\([a-z]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | \
	while read -r target line; do printf "$${bold}make %-6s$${plain} %s\n" "$$target" "$$line"; done

demo: ## a server and three clients train on real data on this machine, under two minutes
	@bash deploy/setup.sh server
	@$(VENV) deploy/demo/demo.py

test: ## all tests, the dashboard in a real browser included
	@bash deploy/system.sh
	@bash deploy/setup.sh $(ALL)
	@$(VENV) -m pytest

check: ## lint, format, types, and the rules for this repository: imports, sizes, docs, stubs
	@bash deploy/setup.sh $(ALL)
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy
	$(VENV) -m pytest -q tests/test_repository.py tests/test_documentation.py

bench: ## what coordination costs: time, processor, memory and bytes of a round; 40 minutes
	@bash deploy/setup.sh bench
	@$(VENV) -m benchmarks run coordination

wheels: ## wheels with compiled kernels for x86-64 and arm64, into dist/
	@bash deploy/setup.sh server
	@bash deploy/wheels.sh

proto: ## generate the stubs again, after a change of the .proto file
	@bash deploy/setup.sh $(ALL)
	$(VENV) -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. \
		proto/coppice/wire/coordination.proto

clean: ## remove .venv, caches and what the demo and builds left
	rm -rf .venv build demo-output dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
