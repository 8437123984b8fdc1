"""`python -m spectrim`."""

from .cli import main

main()
