# Two commands: `make book` and `make test`. Every other target is one line that calls an ordinary tool.
PYTHON  ?= python3
BIN     := .venv/bin
CHAPTER ?= all
DEVICE  ?= auto
export OMP_NUM_THREADS ?= 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# glibc gives large arrays back to the system and asks for them anew. It shall keep them instead:
# two notebooks side by side took 54 seconds in place of 72.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
export MALLOC_TOP_PAD_ ?= 67108864

.PHONY: book test serve accelerator gpu-check lint format execute train new bench bad-input lab stubs slides pdf clean chromium

book: .venv/installed
	$(BIN)/python -m machinery.chapters execute
	$(BIN)/jupyter-book build . --quiet
	$(BIN)/python -m machinery.chapters table

test: .venv/installed lint chromium
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 10

# Scripts that are modules do not run in pages that are opened as files.
serve:
	$(PYTHON) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

accelerator: .venv/installed
	ACCELERATOR=1 $(BIN)/python -m pytest tests/test_accelerator_chapters.py --numprocesses 2 --durations 0

# Ten minutes on a GPU; DEVICE=cpu tries the script without one.
gpu-check: .venv/installed
	PYTHONPATH=. $(BIN)/python tests/gpu_check.py --device $(subst auto,cuda,$(DEVICE))

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/codespell

format: .venv/installed
	$(BIN)/ruff check --fix-only && $(BIN)/ruff format

execute: .venv/installed
	$(BIN)/python -m machinery.chapters execute --all

train: .venv/installed
	$(BIN)/python -m machinery.chapters train $(CHAPTER) --device $(DEVICE)

# The lecture, the evidence, the experiments and the tests of a new chapter: make new CHAPTER=17 NAME=travelling_waves
new: .venv/installed
	@$(BIN)/python -m machinery.new_chapter "$(CHAPTER)" "$(NAME)"

bench: .venv/installed
	$(BIN)/python -m benchmarks

# Every public call with bad arguments, and those that get no clear error.
bad-input: .venv/installed
	$(BIN)/python tests/bad_input.py

# Root, as in a container, has to say that it means it.
lab: .venv/installed
	$(BIN)/jupyter lab book $(if $(filter 0,$(shell id -u)),--allow-root)

# For a class: the lectures without the lines of their formulas, and with cells that check them.
stubs: .venv/installed
	$(BIN)/python -m machinery.stubs $(CHAPTER)

# Slides of the built pages, and the lectures as one PDF: run `make book` first.
slides: .venv/installed
	$(BIN)/python -m machinery.slides $(CHAPTER)

pdf: .venv/installed
	$(BIN)/python -m machinery.printing

# The tests look at the pages in the system's Chromium. Only root of a Debian may install it unasked;
# elsewhere those tests are skipped and say how to get it.
chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| if [ "$$(id -u)" = 0 ] && command -v apt-get; then apt-get -qq update && apt-get -qq --yes install chromium; fi \
	|| true

clean:
	rm -rf _build

# Of sbibm only the files with reference posteriors are read; what it requires belongs to an old sbi.
.venv/installed: requirements.txt pyproject.toml book/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps sbibm==1.1.0
	$(BIN)/python -m pip install --quiet --no-deps --editable . --editable book
	touch $@
