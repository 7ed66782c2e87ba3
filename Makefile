# `make demo` and `make test` need Python 3.11 to 3.13, a compiler and a package registry; the rest they fetch.

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$name" && break; done)
BIN := .venv/bin
ENV := .venv/.installed

# By its exact version and before anything else: a range can make pip fetch several gigabytes of GPU builds.
TORCH ?= torch==2.13.0
EXTRAS := data,report,figures,hf,tensorboard,export,docs,dev

DEMO_TOKENS ?= 400k
DEMO_OUT ?= runs/demo

# Two workers, one thread each, fill two cores; more threads would only make them wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: env native sanitize demo test test-slow lint bench docs pictures stories clean

env: $(ENV)

$(ENV): pyproject.toml constraints.txt CMakeLists.txt
	@test -n "$(PYTHON)" || { echo "error: seqmix needs Python 3.11, 3.12 or 3.13 as python3; install one or name it: make env PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "error: $(PYTHON) cannot make a virtual environment; install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(ENV)

CMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" cmake

# After a change of the C++ sources.
native: $(ENV)
	$(CMAKE) -S . -B build/native -G Ninja && $(CMAKE) --build build/native && $(CMAKE) --install build/native

# The tests of the compiled kernels, in a build with AddressSanitizer and UndefinedBehaviorSanitizer.
SANITIZED := build/sanitize/_native.so
sanitize: $(ENV)
	$(CMAKE) -S . -B build/sanitize -G Ninja -DSEQMIX_SANITIZE=ON && $(CMAKE) --build build/sanitize
	SEQMIX_LIBRARY=$(SANITIZED) OMP_NUM_THREADS=2 LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -q --timeout 1800 $(wildcard tests/test_native_*.py) tests/test_selective_scan.py tests/test_linear_recurrence.py tests/test_generation.py

demo: $(ENV)
	$(BIN)/seqmix compare --data python-stdlib --models transformer,convsamba,gated_conv,convtransformer,mamba2 \
		--match params --params 300k --budget tokens=$(DEMO_TOKENS) --seeds 2 --context 256 --batch-size 4 --out $(DEMO_OUT)

test: $(ENV)
	$(TEST)

test-slow: $(ENV)
	$(TEST) -m slow --timeout 1800

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCHES := depthwise_conv training decode step_position scans loop_overhead window_attention long_conv_decode long_forward inspect_page

bench: $(ENV)
	for name in $(BENCHES); do $(BIN)/python benchmarks/$$name.py || exit 1; done

# The documentation as a site in docs/_build/html; its pictures and its measured tables are committed.
docs: $(ENV)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

pictures: $(ENV)
	$(BIN)/python docs/make_pictures.py

stories: $(ENV)
	$(BIN)/python docs/measure_stories.py

clean:
	rm -rf .venv build dist docs/_build .pytest_cache .ruff_cache .mypy_cache .hypothesis
