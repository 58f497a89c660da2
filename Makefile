# What contributors and CI run. `make` lists the targets. Run it in an environment made by `make install`.
.DEFAULT_GOAL := help
.PHONY: help install unit test slow lint types contracts wheel check

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install:  ## install David and what its tests need, in the tested versions
	pip install -c constraints.txt -e ".[test]"

unit:  ## the tests of one part that need no torch: under a minute
	pytest tests/unit

test:  ## the default tests: minutes
	pytest

slow:  ## the long tests
	pytest -m slow

lint:  ## style
	ruff check .
	ruff format --check .

types:  ## types
	mypy

contracts:  ## rooms import downwards
	lint-imports

wheel:  ## build the wheel and use it where the checkout is not on the import path
	.ci/wheel

check: lint types contracts test  ## all that must pass before a commit lands, but for the long tests
