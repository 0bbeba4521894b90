"""`python -m crystal_fidelity`, for programs that know their interpreter but not its scripts."""

from crystal_fidelity.cli import main

main()
