"""The commands as functions, one module each, with the names and defaults of the command line.

A command parses its options, calls its function and prints the result. For programs the functions are attributes of
``knnstore``, and those that concern one store are methods of ``knnstore.Store`` as well. None prints; progress goes to
``reporter``, if one is given.

Commands that read or write text with an LM, ``generate``, ``neighbours`` and ``attribute``, are methods of ``Store``
alone, which keeps the LM loaded. The others have no function: ``explore`` serves a page and ``demo`` shows the other
commands, both to people; ``evaluate`` passes its arguments to the LM Evaluation Harness, which has a Python API.
"""
