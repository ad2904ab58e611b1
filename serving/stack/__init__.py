"""The three servers as local processes.

``ports`` finds free ones, ``child`` starts and stops one process group, ``supervisor`` (a process of its own) keeps
the servers running and writes ``state``, which is all that others read; ``control`` is what the command line calls.
"""
