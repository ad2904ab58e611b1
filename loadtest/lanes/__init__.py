"""Lanes: what the benchmark compares. A lane is server x runtime x precision x protocol x input.

In the order of the data: ``lane`` (one lane), ``wires`` and ``tensor_wire`` (its requests and responses), ``lineup`` (from
running servers to lanes), ``third_party`` (from any server's address to a lane), ``golden_requests`` (requests with known
answers, and the check of every answer), ``parity_gate`` (are the answers the golden answers?), ``ceiling`` (the same model
without a server), ``server_view`` (a server's own counters).
"""
