"""Is the load test right? Measurements of servers with known behaviour, against theory, simulation and wrk.

``queueing``: theory and simulation. ``measure``: the measurements. ``against_wrk``: the generator against wrk.
`python -m loadtest.truth` prints the tables.
"""
