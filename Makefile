# Every target sets up .venv first; that takes minutes once and nothing afterwards.
# PYTHON=python3.12 names another Python; DATA=folder another data set for the demo, FAMILY=fcos
# other detectors.

PYTHON ?= python3
VENV := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults gpu lint format benchmarks clean

help:
	@echo "make demo [DATA=folder]  the whole pipeline on small data, ends with report.html;"
	@echo "          [FAMILY=fcos]  with FCOS in place of RetinaNet, or faster_rcnn"
	@echo "make test                all tests"
	@echo "make faults              damage, kills and races of the cache, a thousand and more; minutes"
	@echo "make gpu                 what only a GPU can show: tests and speed, under ten minutes"
	@echo "make benchmarks          what the numbers of docs/RESULTS.md come from; hours"
	@echo "make lint                ruff and mypy"
	@echo "make format              ruff, changing the files"
	@echo "make setup               only the environment, in .venv"
	@echo "make clean               removes what the tools left, not .venv and not output/"

setup:
	@$(PYTHON) tools/setup_env.py

demo: setup
	$(VENV) -m benchmarks.demo $(if $(DATA),--data "$(DATA)") $(if $(FAMILY),--family "$(FAMILY)")

# Several files at a time: much of the suite waits for processes that it has started.
test: setup
	$(VENV) -m pytest tests -n auto --maxprocesses 4 --dist loadfile

# The tests of these files in full; make test runs a few of each kind.
faults: setup
	GID_FAULTS=full $(VENV) -m pytest tests/storage/test_faults.py tests/storage/test_fuzz.py \
		tests/storage/test_crash.py tests/storage/test_at_work.py tests/storage/test_odd_files.py \
		tests/storage/test_killed_copies.py \
		tests/stage1_dump/test_interruptions.py tests/stage1_dump/test_launch.py \
		tests/detectors/test_workers.py

# Figures go to benchmarks/results. Without network: see tools/carry.py.
gpu: setup
	$(VENV) -m benchmarks.gpu

# PHOTOGRAPHS="folder folder" adds real images, best one set of 3 and one of 80 classes; accuracy
# takes the first.
# Each runs whatever the others came to.
benchmarks: setup
	@status=0; \
	run() { $(VENV) -m "benchmarks.$$@" || status=1; }; \
	run cache $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS)); \
	for command in dump write_speed loader colours versions transfers distill methods; do \
		run $$command; \
	done; \
	for family in fcos faster_rcnn; do \
		run fidelity --family $$family $(addprefix --photographs ,$(PHOTOGRAPHS)); \
	done; \
	for family in retinanet fcos faster_rcnn; do \
		run accuracy --family $$family \
			$(if $(PHOTOGRAPHS),--photographs $(firstword $(PHOTOGRAPHS))); \
	done; \
	exit $$status

lint: setup
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

format: setup
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
