"""Classify images on a running server with Trident's client, and print the three most probable classes of each.

trident up
python examples/predict.py image.png
python examples/predict.py image.png --url http://127.0.0.1:8000 --model digits
"""

import argparse
import sys
from pathlib import Path

from bundle.errors import TridentError
from serving.clients.connect import connect
from serving.clients.endpoint import Endpoint


def main() -> None:
    """Send each image to the FastAPI service. `Endpoint(server="triton", ...)` would talk to Triton."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="digits")
    given = parser.parse_args()

    endpoint = Endpoint(server="fastapi", url=given.url, metrics_url=f"{given.url}/metrics")
    failed = False
    with connect(endpoint, given.model, timeout_s=10) as client:
        for image in given.images:
            try:
                answer = client.predict(image.read_bytes(), top_k=3)
            except TridentError as error:
                print(f"{image}: {error}")
                failed = True
                continue
            classes = ", ".join(f"{entry.label} {entry.probability:.1%}" for entry in answer.predictions)
            print(f"{image}: {answer.model}:{answer.version}: {classes}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
