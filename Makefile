# Every target makes .venv if it is missing. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= Explain in three sentences why the sky is blue.
override PROMPT := $(value PROMPT)# make would expand every $ in it; the shell sees it only as a variable
export PROMPT

.PHONY: demo test book test-book test-portable test-students lab export execute assignments grade classroom-demo bench test-elsewhere test-gpu bench-gpu clean help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "minillama needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo 'Installing PyTorch and a few small packages into .venv; the first time this takes minutes.' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/test: .venv/core
	@echo 'Installing what notebooks and tests need into .venv.' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: .venv/core  ## fetch real weights and answer PROMPT
	@$(BIN)/python -m minillama generate -- "$$PROMPT"
	@echo 'Next: `make lab` opens chapter 0, where a sentence goes through the model step by step.'

TWO := -n 2 --dist loadfile# files side by side, one thread each: small matrices gain nothing from a second one
STEP = @printf '\n[%s of 5] %s\n' '$(1)' '$(2)'
test: export OMP_NUM_THREADS = 1
test: .venv/test  ## ruff, exporter, pytest, then every notebook re-run and compared
	@date +%s > .venv/started
	$(call STEP,1,ruff check: mistakes and habits)
	$(BIN)/ruff check .
	$(call STEP,2,ruff format: the form of the code)
	$(BIN)/ruff format --check .
	$(call STEP,3,the package is what the notebooks export)
	$(BIN)/python -m course.export --check
	$(call STEP,4,the tests: about 6 minutes on two quiet cores)
	$(BIN)/python -m pytest -p no:nbval $(TWO) --no-loadscope-reorder
	$(call STEP,5,every notebook re-run and compared: about 7 minutes)
	$(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval.cfg --nbval-current-env --nbval-cell-timeout=120 notebooks $(TWO)
	@s=$$(( $$(date +%s) - $$(cat .venv/started) )); printf '\nmake test: all five passed in %s min %s s\n' $$(( s / 60 )) $$(( s % 60 ))

BOOK := build/book
.venv/book: .venv/test
	@echo 'Installing what the book needs into .venv.' >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book]'
	@touch $@

book: .venv/book  ## the notebooks as a website, in build/book
	$(BIN)/python docs/book/build.py --out $(BOOK)

.venv/browser: .venv/book
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@touch $@

test-book: book .venv/browser  ## the website, and JupyterLab on chapters 0 and 10, in a real browser: minutes
	$(BIN)/python -m pytest -p no:nbval -rs docs/book/test_book.py

test-portable: .venv/test  ## notebooks and numeric tests under other instruction sets, an hour: ONLY="notebooks/03_rope.ipynb"
	$(BIN)/python tests/portable.py $(ONLY)

lab: .venv/test  ## JupyterLab on chapter 0
	$(BIN)/jupyter lab notebooks/00_the_whole_llama.ipynb

export: .venv/test  ## write minillama/ from the notebooks, and their grading metadata
	$(BIN)/python -m course.export
	$(BIN)/python -m course.points --write

NB ?= notebooks/*.ipynb
execute: .venv/test  ## re-run notebooks in place: make execute NB=notebooks/03_rope.ipynb
	$(BIN)/python -m course.execute $(NB)

ASSIGNMENTS ?= build/assignments
assignments: .venv/test  ## the students' repository, in ASSIGNMENTS; one chapter: make assignments ONLY="--only 03"
	$(BIN)/python -m course.assign $(ASSIGNMENTS) $(ONLY)

STUDENTS := build/students
CHAPTER ?=
test-students: export OMP_NUM_THREADS = 1
test-students: .venv/test  ## the students' notebooks with nothing solved; minutes for all: make test-students CHAPTER=03
	@rm -rf $(STUDENTS)
	@$(BIN)/python -m course.assign $(STUDENTS)
	$(BIN)/python -m course.rehearse $(STUDENTS) $(CHAPTER)

GRADES ?= build/grades
grade: .venv/test  ## scores and feedback for a folder of submissions: make grade SUBMISSIONS=folder
	$(BIN)/python -m course.grade $(SUBMISSIONS) --out $(GRADES) --resume $(ONLY)

classroom-demo: .venv/test  ## a small class: handed out, solved by script, graded, reported
	@rm -rf build/classroom
	@$(BIN)/python -m course.demo build/classroom

ELSEWHERE := build/elsewhere
$(ELSEWHERE)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(ELSEWHERE)
	@echo 'Building llama.cpp into $(ELSEWHERE); the first time this takes ten minutes or more.' >&2
	@$(ELSEWHERE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'llama-cpp-python>=0.3.16'
	@touch $@

test-elsewhere: export OMP_NUM_THREADS = 1
test-elsewhere: .venv/test $(ELSEWHERE)/ready  ## GGUF files written here, run by llama.cpp: the same ids
	MINILLAMA_ELSEWHERE=$(ELSEWHERE)/bin/python $(BIN)/python -m pytest -p no:nbval -rs tests/test_elsewhere.py

bench: .venv/test  ## speed beside transformers, tiktoken and Hugging Face's tokenizers
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/tokenizer.py

CUDA := import sys, importlib.util as u; t = u.find_spec("torch") and __import__("torch"); t and [*map(int, t.__version__.split(".")[:2])] >= [2, 11] and t.cuda.is_available() or [print("this needs PyTorch 2.11 or newer with a CUDA device", file=sys.stderr), sys.exit(2)]
test-gpu:  ## all that needs CUDA, with the PyTorch that PYTHON has; nothing is installed or fetched
	@$(PYTHON) -c '$(CUDA)'
	$(PYTHON) -m pytest -p no:cacheprovider -rs tests/test_gpu.py

GPU_JSON ?= benchmarks/results/gpu.json
bench-gpu:  ## attention rung by rung and 8B's steps on CUDA, into GPU_JSON
	@$(PYTHON) -c '$(CUDA)'
	$(PYTHON) -m benchmarks.gpu --json $(GPU_JSON)

clean:  ## remove .venv and fetched files
	rm -rf .venv data/cache
