# make demo, make test: each makes the environment first, if there is none.

VENV ?= .venv
# The first Python that TensorFlow has packages for.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
KERAS_BACKEND ?= tensorflow

.PHONY: demo test test-all test-backend test-oldest lint cross bench figures dist docs clean

demo: $(INSTALLED)
	$(BIN)/python examples/digits.py

test: $(INSTALLED)-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Also what the usual run leaves out for time.
test-all: $(INSTALLED)-dev
	ALL_TESTS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# KERAS_BACKEND=jax make test-backend: the contracts on another backend of Keras.
test-backend: $(INSTALLED)-dev $(INSTALLED)-$(KERAS_BACKEND)
	ALL_TESTS=1 KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python -m pytest tests/test_equations.py \
		tests/test_contracts.py tests/test_gradients.py tests/test_gallery.py tests/test_zoneout.py \
		tests/test_parallel.py tests/test_gpu.py tests/test_cudnn.py tests/test_convert_compiled.py \
		tests/test_without_tensorflow.py

# The contracts on the oldest packages that setup.cfg allows, in an environment of their own.
OLDEST = "tensorflow==2.18.*" "keras==3.8.*" "keras-tuner==1.4.7"
test-oldest:
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --editable . pytest pytest-xdist $(OLDEST)
	$(VENV)-oldest/bin/python -m pytest -n 2 --dist worksteal tests/test_private.py \
		tests/test_equations.py tests/test_contracts.py tests/test_layer.py tests/test_engine.py \
		tests/test_native.py tests/test_cudnn.py tests/test_saving.py tests/test_threads.py

lint: $(INSTALLED)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The kernel for the platforms that nobody here has, as far as a compiler can tell.
PLATFORMS = aarch64-linux-gnu aarch64-macos x86_64-macos x86_64-windows-gnu
cross: $(INSTALLED)-dev
	for platform in $(PLATFORMS); do for source in kernel library team call tensorflow xla; do \
		$(BIN)/python -m ziglang c++ -target $$platform -std=c++17 -O1 -Wall -Werror -DVARIANT=baseline \
		-c keras_gates/engine/native/$$source.cpp -o $(VENV)/$$source.o || exit 1; \
	done; done

bench: $(INSTALLED)
	$(BIN)/python examples/benchmark.py

# All pictures and tables of examples/ and the documentation, anew: over two hours on two cores. The seeds
# are fixed; what depends on the machine, such as speed, and chaotic trainings come out otherwise.
FIGURES = digits diagnostics forecast gallery published search_digits deployment benchmark initialization verdicts
figures: $(INSTALLED)-dev
	mkdir -p out/figures
	for name in $(FIGURES); do echo "== $$name"; \
	$(BIN)/python examples/$$name.py --out out/figures || exit 1; done
	for name in $(FIGURES); do for file in out/figures/$$name*.png out/figures/$$name*.csv \
	out/figures/$$name*.json; do test ! -f $$file || cp $$file examples/; done; done

dist: $(INSTALLED)-dev
	rm -rf dist
	$(BIN)/python -m build

# The pages of docs/ as a website; a warning is an error.
docs: $(INSTALLED)-docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist out docs/_build *.egg-info keras_gates/engine/native/*.so

$(INSTALLED): setup.cfg setup.py pyproject.toml $(wildcard keras_gates/engine/native/*.[chi]*)
	@test -n "$(PYTHON)" || { echo "keras_gates needs Python 3.11, 3.12 or 3.13, and found none. \
	Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Making the environment $(VENV) with $(PYTHON): TensorFlow and what else setup.cfg names. \
	This takes some minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[plots]"
	@touch $@

$(INSTALLED)-tensorflow: $(INSTALLED)
	@touch $@

$(INSTALLED)-%: $(INSTALLED)
	@echo "Adding the extra $* to $(VENV)."
	$(BIN)/python -m pip install --quiet "keras-gates[$*]"  # which is there: nothing is built again
	@touch $@
