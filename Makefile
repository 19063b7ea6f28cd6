# One word per habit. Needs python3.11 or later with venv, gcc, and a package registry; nothing else.
PYTHON ?= python3.11
ifeq ($(origin CC),default)
CC := gcc
endif
VENV := .venv
PY := $(VENV)/bin/python

C_FILES := $(shell find native -name '*.c')
H_FILES := $(shell find native -name '*.h')
DEPS_STAMP := $(VENV)/.stamp-deps
NATIVE_STAMP := $(VENV)/.stamp-native
GUARDS := build/guards/crailpy/_native.abi3.so

.PHONY: dev demo check format test test-long native-test fuzz soak bench guards wheel clean

# The virtual environment with everything, the package installed editable, the native modules up to date.
dev: $(NATIVE_STAMP)

$(DEPS_STAMP): pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	CRAILPY_BUILD_NATIVE=0 $(PY) -m pip install --quiet -e '.[dev]'
	touch $@

# Plain build_ext is many times faster than another editable install.
$(NATIVE_STAMP): $(DEPS_STAMP) $(C_FILES) $(H_FILES) native/build_native.py
	$(PY) setup.py --quiet build_ext --inplace --parallel 2
	touch $@

# The test build, whose guards can be switched off; beside the ordinary one, with the same Python files.
guards: $(GUARDS)
$(GUARDS): $(NATIVE_STAMP)
	CRAILPY_BUILD_GUARDS=1 $(PY) setup.py --quiet build_ext --build-lib build/guards --build-temp build/guards-temp
	ln -sfn $(CURDIR)/crailpy/*.py $(CURDIR)/client $(CURDIR)/server build/guards/crailpy/
	touch $@

demo: dev
	$(VENV)/bin/crailpy demo

check: dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(C_FILES) $(H_FILES)

format: dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES) $(H_FILES)

# What CI runs. The last line is pytest's. Two files of tests at a time, in their order, as the longest come first: most
# of their time is waiting.
TESTS_AT_ONCE ?= 2
test: dev native-test guards
	$(PY) -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What `make test` has no time for: the same tests under load and under attack, going on for long. About an hour,
# of which MINUTES=10 are for each test of the models. docs/TESTING.md.
LONG := tests/fault/test_namenode_restarts.py tests/fault/test_failpoints.py tests/fault/test_soak.py \
	tests/fault/test_reuse_rule.py tests/integration/test_processes.py tests/integration/test_state.py
test-long: dev guards
	$(MAKE) fuzz FUZZ_SECONDS=600
	CRAILPY_RESTART_SECONDS=120 CRAILPY_SOAK_SECONDS=600 CRAILPY_FAILPOINT_ROUNDS=5 CRAILPY_ATTACK_SECONDS=60 \
		CRAILPY_HAMMER_SECONDS=60 CRAILPY_DAMAGES=150 $(PY) -m pytest -s $(LONG) $(PYTEST_ARGS)
	$(MAKE) soak

# C alone, warnings are errors: under the address and undefined sanitizers, then under the thread sanitizer. The inputs
# that the fuzzer has found are replayed.
native-test:
	CC='$(CC)' $(if $(wildcard $(PY)),$(PY),$(PYTHON)) native/tests/run.py

# Looks for more of them, so many seconds in all, with clang's libFuzzer; without clang it says so. docs/TESTING.md.
FUZZ_SECONDS ?= 60
fuzz:
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) native/fuzz/run.py --seconds $(FUZZ_SECONDS)

# The tests of tests/model for long: MINUTES=30 make soak.
MINUTES ?= 10
soak: dev
	CRAILPY_MODEL_SECONDS=$$(( $(MINUTES) * 60 )) $(PY) -m pytest -s tests/model $(PYTEST_ARGS)

bench: dev
	$(VENV)/bin/crailpy bench

wheel: dev
	$(PY) -m build

clean:
	rm -rf build dist $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -f crailpy/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
