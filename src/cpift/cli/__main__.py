"""``python -m cpift.cli``, as ``torchrun -m`` wants it."""

from cpift.cli.main import main

main()
