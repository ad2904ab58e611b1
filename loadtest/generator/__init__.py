"""The load generator: makes one load on one lane, in processes of its own (gevent patches a whole process).

In the order of the data: ``spec`` (the settings of a run), ``request_set`` (golden and bad requests), ``arrivals`` (the
schedule), ``http`` and ``grpc`` (one connection), ``users`` (Locust's users: closed and open loop), ``requests_log`` (a row
per request), ``summarise`` (rows -> ``recording``), ``process`` (a run from start to end; `python -m loadtest.generator`),
``distributed`` (several processes, as Locust's master and workers), ``client`` (starts the process and gives it runs).
Beside it: ``wrk`` (the same load by wrk) and ``fake_server`` (a server with known service times).
"""
