"""The load test: running servers in, measured latencies and a report out.

In the order of the data: ``settings`` (what is asked), ``targets`` (servers, and the images with known answers),
``scenarios`` (which load), ``generator`` (Locust, in a process of its own, makes the load by its ``users`` and records
it), ``benchmark`` (gate, rounds, order), ``statistics``, ``result`` (the JSON), ``report`` (HTML and Markdown).
"""
