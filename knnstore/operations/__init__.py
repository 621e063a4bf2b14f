"""The commands as functions, one module each, with the names and defaults of the command line.

A command parses its options, calls its function and prints the result. Programs find the functions as attributes of
``knnstore``, and those for a single store also as methods of ``knnstore.Store``. None of them prints; progress is
reported to ``reporter``, if given.

Commands that read or write text with an LM, ``generate``, ``neighbours`` and ``attribute``, are only methods of
``Store``, which keeps the LM loaded. Three commands have no function: ``explore`` serves a page and ``demo`` shows the
other commands, both for people; ``evaluate`` passes its arguments to the LM Evaluation Harness, which has a Python API.
"""
