.PHONY: setup test demo bench small soak site screenshots

setup:
	scripts/setup

test:
	scripts/test

demo:
	scripts/demo

# The site in scratch/site, to be opened from there: warnings are errors.
site: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

# Its pages, wide and narrow, light and dark, in scratch/screenshots.
screenshots: site
	.venv/bin/python scripts/site/screenshots.py scratch/site scratch/screenshots

bench: setup
	.venv/bin/python benchmarks/run.py

small: setup
	.venv/bin/python benchmarks/small/skills.py scratch/small/rows
	.venv/bin/python benchmarks/small/pretrain.py scratch/small --kind elicitation
	.venv/bin/python benchmarks/small/pretrain.py scratch/small --kind new --steps 1000

# The tests marked long, then every fault at the full count; writes docs/soak.log. The small full disk needs root.
soak: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m long -n logical --maxprocesses 4 --dist loadfile
	.venv/bin/python tests/faults/soak.py
