"""`python -m harness` is the `ddad` command."""

from harness.cli import main

main()
