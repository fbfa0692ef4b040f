"""A back end that calls a model itself and charges its users through tollgate.

    export TOLLGATE=http://localhost:8080/acme
    export MODEL_URL=https://api.openai.com/v1/chat/completions MODEL=gpt-6-luna MODEL_KEY=sk-...
    python3 own_backend.py 3000

    curl localhost:3000/ask -H "Authorization: Bearer $KEY" -d 'How are you?'
    curl localhost:3000/count -H "Authorization: Bearer $KEY" -d 'one two three'

It needs Python 3.8 or newer and nothing else.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLLGATE = os.environ["TOLLGATE"]  # with the tenant
MODEL_URL = os.environ["MODEL_URL"]
MODEL = os.environ["MODEL"]
MODEL_KEY = os.environ.get("MODEL_KEY", "")

MAX_TEXT = 10_000  # bytes
MAX_OUTPUT = 500  # tokens


class Refused(Exception):
    """A response that is not 2xx, or none (status 0)."""

    def __init__(self, status, body, retry_after=None):
        super().__init__(f"{status} {body}")
        self.status, self.body, self.retry_after = status, body, retry_after


def send(method, url, key, body=None, headers=None):
    """Sends one request and returns the response's headers and JSON."""
    request = urllib.request.Request(url, method=method, headers={"Authorization": "Bearer " + key, **(headers or {})})
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.headers, json.loads(response.read() or b"{}")
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read().decode(), error.headers.get("Retry-After")) from None
    except (OSError, ValueError) as error:
        raise Refused(0, json.dumps({"error": str(error)})) from None


def tollgate(key, method, path, body=None):
    """Calls tollgate. A request that got no response, or 503, is repeated: the Idempotency-Key makes that safe."""
    headers = {"Idempotency-Key": str(uuid.uuid4())} if method == "POST" else {}
    for last in (False, False, True):
        try:
            return send(method, TOLLGATE + path, key, body, headers)
        except Refused as refusal:
            if last or refusal.status not in (0, 503):
                raise
        time.sleep(1)


def ask(key, question):
    """Has the model respond. The most that it can cost is held first, so a balance never runs out in between."""
    user, _ = tollgate(key, "GET", "/auth/verify")
    most = len(question.encode()) + 100 + MAX_OUTPUT  # a token of text has at least a byte
    _, hold = tollgate(key, "POST", "/tokens/holds", {"tokens": most, "expiresIn": 300})
    path = "/tokens/holds/" + hold["holdId"]
    try:
        _, completion = send("POST", MODEL_URL, MODEL_KEY, {
            "model": MODEL,
            "max_completion_tokens": MAX_OUTPUT,
            "messages": [{"role": "user", "content": question}],
        })
        reply, used = completion["choices"][0]["message"]["content"], completion["usage"]["total_tokens"]
    except (Refused, LookupError) as error:
        print("the model failed:", error, file=sys.stderr)
        tollgate(key, "DELETE", path)
        raise Refused(502, '{"error":"The model does not respond"}') from None
    _, settled = tollgate(key, "POST", path + "/settle", {"tokens": used})
    return {"reply": reply, "group": user["X-User-Group"], **settled}


def count(key, text):
    """Does work whose cost is known only afterwards: a token for each word, or all that are left if those are fewer."""
    tollgate(key, "GET", "/auth/verify")  # 402 if nothing is left
    words = len(text.split())
    _, charge = tollgate(key, "POST", "/tokens/consume", {"tokens": max(words, 1), "upTo": True})
    return {"words": words, **charge}


class Handler(BaseHTTPRequestHandler):
    work = {"/ask": ask, "/count": count}

    def do_POST(self):
        key = bearer(self.headers)
        work = self.work.get(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        try:
            if work is None:
                raise Refused(404, '{"error":"Not found"}')
            if length > MAX_TEXT:
                raise Refused(413, '{"error":"Body too large"}')
            text = self.rfile.read(length).decode(errors="replace")
            self.respond(200, json.dumps(work(key, text)))
        except Refused as refusal:  # 401, 402, 403 and 429 of tollgate are for the user
            self.respond(refusal.status or 503, refusal.body, refusal.retry_after)

    def respond(self, status, body, retry_after=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body.encode())


def bearer(headers):
    """Returns the API key of a request, or "" without one."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key if scheme.lower() == "bearer" and key.isascii() and key.isprintable() else ""


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(f"listening on {server.server_port}", flush=True)
server.serve_forever()
