.PHONY: setup test demo bench small

setup:
	scripts/setup

test:
	scripts/test

demo:
	scripts/demo

bench: setup
	.venv/bin/python benchmarks/run.py

small: setup
	.venv/bin/python benchmarks/small/skills.py scratch/small/rows
	.venv/bin/python benchmarks/small/pretrain.py scratch/small --kind elicitation
	.venv/bin/python benchmarks/small/pretrain.py scratch/small --kind new
