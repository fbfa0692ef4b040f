"""A model that repeats what it is told, to try tollgate without a provider's key.

    python3 docs/examples/echo.py 8090

It speaks OpenAI's Chat Completions, with streams and usage, and takes a word for a token. It needs Python 3.8 or newer
and nothing else.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def words_of(message):
    """The words of a message, whose content is a string or a list of parts."""
    content = message.get("content") or ""
    parts = content if isinstance(content, list) else [{"text": content}]
    return " ".join(part.get("text", "") for part in parts).split()


class Echo(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = [words_of(message) for message in request["messages"]]
        reply = ["You", "said:"] + asked[-1]
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or 4096
        reason = "stop" if len(reply) <= limit else "length"
        reply = reply[:limit]
        read, written = sum(map(len, asked)), len(reply)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        head = {"id": "chatcmpl-echo", "created": 0, "model": request.get("model")}

        self.send_response(200)
        if not request.get("stream"):
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            message = {"role": "assistant", "content": " ".join(reply)}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            body = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            self.wfile.write(json.dumps(body).encode())
            return
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for i, word in enumerate(reply + [""]):
            delta = {"content": word + " "} if word else {}
            choice = {"index": 0, "delta": delta, "finish_reason": reason if i == len(reply) else None}
            self.send_event({**head, "object": "chat.completion.chunk", "choices": [choice]})
        if (request.get("stream_options") or {}).get("include_usage"):
            self.send_event({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def send_event(self, chunk):
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *args):
        """Overrides the log of each request, which would be among the output of your shell."""


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
