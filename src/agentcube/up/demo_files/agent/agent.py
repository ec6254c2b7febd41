"""A small conversational agent: remembers what it was told, in memory, for as long as its session lives."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

heard = []


class Agent(BaseHTTPRequestHandler):
    """GET says hello; POST takes {"say": text} and answers with all that was said so far."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"agent": "parrot", "turns": len(heard)})

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        try:
            said = json.loads(self.rfile.read(length))["say"]
        except (ValueError, KeyError, TypeError):
            self.answer({"error": 'send {"say": "..."}'}, status=400)
            return
        heard.append(said)
        print("heard", len(heard), "so far", flush=True)
        self.answer({"turn": len(heard), "heard": heard})

    def answer(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Agent).serve_forever()
