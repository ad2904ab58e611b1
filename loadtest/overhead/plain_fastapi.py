"""FastAPI as in tutorials: a `def` endpoint, which runs in the thread pool, and batches of one.

python -m loadtest.overhead.plain_fastapi BUNDLE PORT
"""

import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, Response

from loadtest.overhead.model import Model


def main() -> None:
    """Serve at /predict."""
    model = Model(Path(sys.argv[1]))
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
        return Response(model.answers([model.decode(image)])[0], media_type="application/json")

    uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
