"""Is the load test right? Servers whose behaviour is known, against what theory or simulation says of them.

``fake_server`` is such a server, ``queueing`` the theory, ``run`` prints the tables (`python -m loadtest.truth`),
``against_wrk`` compares the generator with wrk.
"""
