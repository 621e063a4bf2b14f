"""Commands as if typed in a folder, in this process, where the libraries and the LM stay loaded."""

import contextlib
import json

from click.testing import CliRunner

from knnstore.cli import main


def typed(folder, *arguments):
    """What the command printed; it has to succeed."""
    quiet = [] if arguments[0] in ("log", "restore") else ["--quiet"]
    with contextlib.chdir(folder):
        done = CliRunner().invoke(main, [*arguments, *quiet])
    assert done.exit_code == 0, done.output
    return done.stdout


def answered(folder, *arguments):
    """What the command answers with ``--json``."""
    return json.loads(typed(folder, *arguments, "--json"))
