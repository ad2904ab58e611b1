"""The FastAPI service: HTTP body -> picture bytes -> pixels -> probabilities -> answer.

In the order of a request: ``app`` (routes and life cycle), ``bodies`` (the three forms of a body), ``predict`` (the
endpoint),
``hosting`` (loaded models, and where their blocking work runs), ``problems`` (errors), ``metrics``. Run: ``python -m
serving.fastapi_server``.
"""
