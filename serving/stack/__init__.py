"""The servers as supervised local processes.

The command line calls ``control``, which starts the ``supervisor``, a process of its own. That runs a ``lifecycle`` for
every server, carries out a ``rollout`` on request, and writes ``state``, which everything else reads. ``child`` is a
server's process group; ``reaper`` kills it if the supervisor dies. ``canary`` sends golden requests, ``timing`` has the
clocks.
"""
