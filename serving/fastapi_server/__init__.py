"""The FastAPI service: HTTP body -> image -> pixels -> probabilities -> answer. Run: `python -m serving.fastapi_server`.

In the order in which a request passes them: `protocol` (the connection), `admission`, `predict/` (`POST /predict`),
`app` and `oip/` (all other routes), `models/` (the loaded models), `metrics`. Around them: `workers` (several
processes) and `watchdog`.
"""
