"""Serve detections over HTTP with the standard library: POST an image, get JSON.

    python examples/serve.py MODEL [PORT]
    curl --data-binary @a.jpg http://127.0.0.1:8080/

It answers only this machine, one request at a time; for more, use MLflow's server or Triton (docs/registry.md,
docs/export.md).
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import yolofleet
from yolofleet.core.errors import UserError

MOST_BYTES = 20_000_000


class Handler(BaseHTTPRequestHandler):
    """Answers a POST of an image."""

    def do_POST(self) -> None:
        """Find objects in the image that was sent."""
        num_bytes = int(self.headers.get("Content-Length", 0))
        try:
            if num_bytes > MOST_BYTES:
                raise UserError(f"an image may have at most {MOST_BYTES:,} bytes")
            status, answer = 200, self.server.detector.predict([self.rfile.read(num_bytes)])[0]
        except UserError as error:
            status, answer = 400, {"error": str(error)}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


def main() -> None:
    """Serve a model until Ctrl-C."""
    server = HTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 8080), Handler)
    server.detector = yolofleet.load(sys.argv[1])
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
