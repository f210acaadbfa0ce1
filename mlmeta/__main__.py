"""``python -m mlmeta`` is the command line."""

from mlmeta.cli import main

main()
