"""``python -m gradsense``: the same commands as ``gradsense``."""

from gradsense.cli import main

main()
