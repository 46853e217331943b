# Needs only Python and make. `make train` trains, evaluates and prints one JSON object.
#   PYTHON=python3.12   another interpreter; the environment is rebuilt for it
#   EXTRA=cuda          an extra of pyproject.toml, or several: EXTRA=cuda,tf
PYTHON ?= python3
EXTRA ?=

# So that the last line on stdout is the JSON object under `make -C`, too.
MAKEFLAGS += --no-print-directory

version := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
ifeq ($(version),)
$(error PYTHON=$(PYTHON) does not run; name a Python >= 3.11: make PYTHON=python3.12)
endif

comma := ,
env := .venv
bin := $(env)/bin
# Named after the content, so that another Python or EXTRA rebuilds the environment.
stamp := $(env)/installed-$(version)$(if $(EXTRA),-$(subst $(comma),-,$(EXTRA)))
run := runs/digits

.PHONY: train test docs site lint parity parity-tests clean

train: $(stamp)
	@$(bin)/python train.py --config=configs/vit/digits.py --workdir=$(run) \
		--config.seed=0
	@echo "Curves: $(run)/curves.png   numbers: $(run)/metrics.jsonl   TensorBoard:" \
		"$(run)/tensorboard"
	@$(bin)/python -m attn_jax evaluate --workdir=$(run) --step=best

test: $(stamp)
	@$(bin)/python -m pytest -n 2 --dist loadfile

# In an environment of its own, since PyTorch is large and needed only here.
parity:
	@$(MAKE) EXTRA=parity env=.venv-parity parity-tests

parity-tests: $(stamp)
	@$(bin)/python -m pytest tests/test_parity.py

# Likewise: the site and its search, in build/site. Broken links are an error.
docs:
	@$(MAKE) EXTRA=docs env=.venv-docs site

site: $(stamp)
	@JAX_PLATFORMS=cpu $(bin)/python docs/build_site.py

lint: $(stamp)
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy

clean:
	rm -rf .venv .venv-parity .venv-docs .cache runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The only step that needs a network.
$(stamp): pyproject.toml constraints.txt
	@echo "Installing into $(env) (Python $(version)); this takes some minutes once." >&2
	@rm -rf $(env)
	@$(PYTHON) -m venv $(env)
	@$(bin)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[test$(if $(EXTRA),$(comma)$(EXTRA))]' --constraint constraints.txt >&2
	@touch $@
