"""What does serving cost? `make bench-overhead` compares our FastAPI service with its ceiling and its peers, on one core.

All contestants serve the same bundle with the same preprocessing (``model``). ``plain_fastapi`` and the ``*_peer`` modules put
it behind a server, configured as that server's documentation recommends. ``contestants`` lists them with their settings,
``running`` starts and pauses them, ``choosing`` finds each one's best settings, ``turns`` measures them in turn with the load
generator and with wrk. ``comparison`` and ``scaling`` (several cores, with ``use``) put these together; ``table`` prints the
figures and ``steps`` the progress (`python -m loadtest.overhead`). ``images`` makes JPEGs of a bundle's golden images.
``soak`` sends many good and bad requests to our service (`make soak`).
"""
