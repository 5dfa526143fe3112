"""``python -m limbeck``."""

from limbeck.cli import app

app(prog_name="limbeck")
