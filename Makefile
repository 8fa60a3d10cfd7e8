# make demo      fine-tune the built-in model on a voice it has never heard, and measure it (minutes, no GPU, no network)
# make studio    the same journey in a browser
# make test      everything that CI runs
# make soak      the same claims at full size: hours of audio, 100 000 rows, every point at which a run can be killed
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo studio test soak

demo: .venv/installed
	$(BIN)/voxtral-finetune demo

studio: .venv/installed
	$(BIN)/python interface.py

test:
	PYTHON=$(PYTHON) .ci/run

soak: .venv/installed-dev
	VOXTRAL_SOAK=1 $(BIN)/python -m pytest tests/integration/test_scale.py tests/integration/test_long_recordings.py tests/faults

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11, 3.12 or 3.13 is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
