"""A server of your own as a lane of the benchmark: a plain FastAPI application, one image at a time.

    python examples/own_server.py artifacts/bundles/digits/1 --port 9000
    trident bench --model digits:1 --target mine=http://127.0.0.1:9000/predict       (in another terminal)

A target gets an encoded image as the body of a POST. It answers in JSON: `{"model": "digits", "version": 1,
"predictions": [{"label": "7", "class_id": 7, "probability": 0.998}, ...]}`, most probable class first. The benchmark
checks every answer against the bundle's golden answers.
"""

import argparse
from pathlib import Path
from typing import Annotated, Any

import onnxruntime as ort
import uvicorn
from fastapi import Body, FastAPI

from bundle.postprocess import DEFAULT_TOP_K, answer
from bundle.preprocess import preprocess
from bundle.store import Bundle, read_bundle


def create_app(bundle: Bundle) -> FastAPI:
    """Serve the bundle's ONNX file."""
    manifest = bundle.manifest
    session = ort.InferenceSession(bundle.file(bundle.artefact("onnx")), providers=["CPUExecutionProvider"])
    app = FastAPI()

    @app.post("/predict")
    def predict(image: Annotated[bytes, Body(media_type="application/octet-stream")]) -> dict[str, Any]:
        pixels = preprocess(image, manifest.input)[None]
        (probabilities,) = session.run(["probabilities"], {"image": pixels})
        return answer(probabilities[0], manifest.model, manifest.version, manifest.labels, DEFAULT_TOP_K)

    return app


def main() -> None:
    """Serve on loopback until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=9000)
    given = parser.parse_args()
    uvicorn.run(create_app(read_bundle(given.bundle)), port=given.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
