"""``python -m ensq.cli``: the command line where the script ``ensq`` is not on the path."""

from ensq.cli import main

main()
