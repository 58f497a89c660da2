# What contributors and CI run. `make` lists the targets. Run it in an environment made by `make install`.
.DEFAULT_GOAL := help
.PHONY: help install unit test slow lint types contracts wheel torchless check

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install:  ## install David and what its tests need, in the tested versions
	pip install --quiet -c constraints.txt -e ".[test]"

unit:  ## the tests of one part that need no torch: under a minute
	pytest tests/unit

test:  ## the default tests: minutes
	pytest

# Tests in which processes compete, and JupyterLab in a browser, run one at a time with all cores. The rest share the cores,
# and are dealt out one by one: in portions, the long ones would all wait for the same core at the end.
alone := $(foreach name,storm fleet stopping study_kill lab,tests/system/test_$(name).py)
slow:  ## the long tests, JupyterLab in a browser among them
	pip install --quiet -c constraints.txt -e ".[notebooks,browser]"
	pytest -m slow --dist load --maxschedchunk 1 $(foreach file,$(alone),--ignore=$(file))
	pytest -m slow --numprocesses 0 $(alone)

lint:  ## style
	ruff check .
	ruff format --check .

types:  ## types
	mypy

contracts:  ## rooms import downwards
	lint-imports

wheel:  ## build the wheel and use it where the checkout is not on the import path
	.ci/wheel

torchless:  ## the tests that need no torch, in an environment without it
	.ci/unit

check: lint types contracts test wheel torchless  ## all that must pass before a commit lands, but for the long tests
