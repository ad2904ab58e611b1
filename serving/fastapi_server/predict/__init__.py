"""`POST /predict`: the forms of its body, the request from admission to response, and the fast path."""
