"""The load generator: one load on one target, in processes of its own (gevent patches a whole process).

In the order of the data: ``spec`` (what is asked), ``arrivals`` (when), ``http`` (one connection), ``users`` (Locust's
users: closed and open loop), ``requests_log`` (a row per request), ``summarise`` (rows -> ``recording``), ``process``
(a run from start to end; `python -m loadtest.generator`), ``distributed`` (several processes, as Locust's master and
workers).
"""
