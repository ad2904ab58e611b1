"""The FastAPI service: HTTP body -> image bytes -> pixels -> probabilities -> answer.

In the order of a request: ``protocol`` (the connection), ``express`` and ``predict`` (the ways of /predict), ``app`` (all
other routes, and the life cycle), ``exchange``, ``hosting`` (loaded models), ``batcher``, ``metrics``. Around it:
``workers`` (several processes), ``fleet`` (which agree), ``watchdog``. Run: ``python -m serving.fastapi_server``.
"""
