"""The load test: running servers in, measured latencies and a report out.

In the order of the data: ``settings`` (what is asked), ``targets`` (servers, and the pictures with known answers),
``scenarios`` (which load), ``user`` and ``generator`` (Locust, in a process of its own, makes the load and records it),
``benchmark`` (gate, rounds, order), ``statistics``, ``result`` (the JSON), ``report`` (HTML and Markdown).
"""
