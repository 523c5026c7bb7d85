# Every target that needs it makes .venv by itself, and again only when pyproject.toml or constraints.txt change.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help course lab test test-long lint notebooks pretrained clean

PYTHON ?= python3
PROFILE ?= course
WORKERS ?= 2

# One environment for the course and for the tests: the test tools are a few MB beside torch, and a student who changes
# something can test it at once. Names are relative, so a folder with a space in its name works.
BIN := .venv/bin
STAMP := .venv/installed

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "Settings: PYTHON=$(PYTHON) (3.11 or newer), PROFILE=$(PROFILE) (quick, course or paper), WORKERS=$(WORKERS) for the tests"

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no '$(PYTHON)' here: name a Python 3.11 or newer, as in 'make PYTHON=python3.12 course'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "msfilm needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1): name another, as in 'make PYTHON=python3.12 course'." >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt hatchling editables
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $(STAMP)

course: $(STAMP)  ## run the notebooks and write pages: open course/index.html
	$(BIN)/python -m msfilm course --profile $(PROFILE)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyterlab notebooks

# One torch thread a worker: as many threads as cores in each of several processes would only wait for each other.
test: lint  ## lint, then all tests but the long ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist loadfile

test-long: $(STAMP)  ## the tests that take minutes or a browser
	$(BIN)/python -m pytest -m long

lint: $(STAMP)  ## ruff over code and notebooks
	$(BIN)/python -m ruff check .

notebooks: $(STAMP)  ## run all notebooks in place, for the outputs stored with them (widget state left out)
	$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=1800 \
		--ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False \
		--Exporter.preprocessors='["msfilm.stills.KeepStills"]' notebooks/*.ipynb

# Other patients (seed 1) than those of the course (seed 0) and of notebook 00, so that the networks are new to all of
# them. Settings are what the search for benchmarks/results/table1-course.json chose. Tested on the 200 test patients.
TRAIN := --loss dice-bce --altered-truth 1 --epochs 16 --patience 0 --depth 2 --batch-size 32
# film-rater-small is seed 0 of the row 'rater, crossed' in benchmarks/experiments/rater-identity.yml.
RATERS := --raters crossed --set stations=1 --set 'styles_mm=[-0.45, -0.15, 0.15, 0.45]'
TRAIN_RATER := --conditioning rater --loss dice-bce --epochs 12 --patience 0 --depth 2 --filters 16 --batch-size 32 \
	--schedule cosine --set 'fractions=[0.75, 0.25, 0.0]'
# film-polarity-small is seed 0 of the row 'full rate' in benchmarks/experiments/inside-film.yml.
POLARITY := --acquisition bright_ax --acquisition dark_ax --set stations=1 --set decoys=true
TRAIN_POLARITY := --conditioning contrast --loss dice-bce --epochs 10 --patience 0 --depth 2 --filters 16 --batch-size 32 \
	--schedule cosine --set film_lr=1 --set 'fractions=[0.75, 0.25, 0.0]'
pretrained: $(STAMP)  ## train the networks that ship with msfilm anew (three quarters of an hour)
	rm -rf build/pretrained
	$(BIN)/python -m msfilm phantom build/pretrained/slices --slices --patients 240 --seed 1
	$(BIN)/python -m msfilm phantom build/pretrained/test --slices --profile test
	$(BIN)/python -m msfilm train build/pretrained/slices build/pretrained/unet-small $(TRAIN) --schedule cosine
	$(BIN)/python -m msfilm train build/pretrained/slices build/pretrained/film-contrast-small $(TRAIN) --schedule cyclic --conditioning contrast
	$(BIN)/python -m msfilm phantom build/pretrained/rater-slices --slices --patients 64 --seed 0 $(RATERS)
	$(BIN)/python -m msfilm phantom build/pretrained/rater-test --slices --profile test $(RATERS) --set panel_every=1
	$(BIN)/python -m msfilm train build/pretrained/rater-slices build/pretrained/film-rater-small $(TRAIN_RATER)
	$(BIN)/python -m msfilm phantom build/pretrained/polarity-slices --slices --patients 64 --seed 0 $(POLARITY)
	$(BIN)/python -m msfilm phantom build/pretrained/polarity-test --slices --profile test $(POLARITY)
	$(BIN)/python -m msfilm train build/pretrained/polarity-slices build/pretrained/film-polarity-small $(TRAIN_POLARITY)
	OMP_NUM_THREADS=1 $(BIN)/python -m msfilm.evaluate.localise_train msfilm/weights/cord-localiser --seed 0
	for name in unet-small film-contrast-small film-rater-small film-polarity-small; do \
		test=test; if [ $$name = film-rater-small ]; then test=rater-test; fi; \
		if [ $$name = film-polarity-small ]; then test=polarity-test; fi; \
		if [ $$test = test ]; then $(BIN)/python -m msfilm evaluate build/pretrained/$$name build/pretrained/slices; fi; \
		$(BIN)/python -m msfilm evaluate build/pretrained/$$name build/pretrained/$$test --split all; \
		mkdir -p msfilm/weights/$$name; \
		cp build/pretrained/$$name/{weights.safetensors,network.json,evaluate-all/metrics.json} msfilm/weights/$$name/; \
	done

clean:  ## remove what was made: .venv, build/ and the pages in course/
	rm -rf .venv build dist course .pytest_cache .ruff_cache .hypothesis
