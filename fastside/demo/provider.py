"""A provider: a small HTTP server that says who it is. It knows nothing of sidecars.

python -m fastside.demo.provider NAME IP PORT
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Greeter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one segment
    name: str

    def do_GET(self) -> None:
        body = f"hello from {self.name}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Calls are not logged; errors go to stderr by themselves."""


def main(name: str, ip: str, port: str) -> None:
    Greeter.name = name
    with ThreadingHTTPServer((ip, int(port)), Greeter) as server:
        server.daemon_threads = True
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
