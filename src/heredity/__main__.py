"""`python -m heredity` is the command line."""

from heredity.cli import main

main()
