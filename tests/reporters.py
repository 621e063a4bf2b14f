"""Reporters that tests listen to."""

from knnstore.progress import Reporter


class Saying(Reporter):
    """Keeps every line in ``said``."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, line):
        self.said.append(line)
