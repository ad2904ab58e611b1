"""The load test: running servers in, measured latencies and a report out.

The folders, in the order of the data. A folder imports only from folders above it:

    errors, load, histogram, cores    the leaves: error types, what a load is, latency histograms, core sets
    machine/                          what a run cost the machine: CPU, memory, GPUs, containers; hardware and versions
    lanes/                            what is compared, golden requests, answer checks, parity gate, ceiling
    generator/                        makes one load on one lane, in processes of its own, and records every request
    scenarios/                        which loads a lane gets: single-stream, sweep, server, slo, offline, spike, soak
    settings                          the settings of a benchmark, from flags or a file
    benchmark/                        calibration, parity gate and rounds -> a result (one JSON file)
    analysis/                         a result -> estimates with confidence intervals, summaries, comparisons
    report/                           summaries -> HTML and Markdown
    tune                              searches a server's settings for the highest rate under a latency objective
    truth/, overhead/                 programs on top: is the load test right, and what does serving cost?
    locustfile                        the generator's users for Locust's own command line
"""
