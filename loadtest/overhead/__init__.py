"""What does serving cost? `make bench-overhead` compares our FastAPI service with its ceiling and its peers, on one core.

All contestants serve the same bundle with the same preprocessing (``model``). ``plain_fastapi`` and the ``*_peer`` modules put
it behind a server, configured as that server's documentation recommends. ``contestants`` lists them, ``running`` starts and
pauses them, ``turns`` measures them in turn with the load generator and with wrk, ``table`` prints the figures
(`python -m loadtest.overhead`). ``soak`` sends many good and bad requests to our service (`make soak`).
"""
