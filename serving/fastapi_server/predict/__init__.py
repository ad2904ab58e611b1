"""`POST /predict`: bodies, the request from admission to response, and the fast path of plain requests."""
