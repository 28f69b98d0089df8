"""A stand-in of Google Cloud Storage: the reading part of its JSON API over a folder, with troubles to order.

What happens is the bucket's name: "plain" answers; "slow" after 100 ms; "busy" refuses every third request with 429,
"refusing" all of them; "denied" answers 403; "cut" has lost the second half of every file of rows; "silent" takes the
request and never answers; "torn" breaks off every third answer in its middle.
"""

import collections
import contextlib
import http.server
import threading
import time
import urllib.parse


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.lock = threading.Lock()
        self.requests = collections.Counter()
        self.bytes = collections.Counter()
        self.under_way = self.most_under_way = 0
        self.ended = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass  # clients that give up are part of the game


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        _, _, _, _, bucket, _, name = urllib.parse.urlsplit(self.path).path.split("/", 6)
        with server.lock:
            server.requests[bucket] += 1
            count = server.requests[bucket]
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.trouble(bucket, count, server.folder / urllib.parse.unquote(name))
        finally:
            with server.lock:
                server.under_way -= 1

    def trouble(self, bucket, count, path):
        if bucket == "slow":
            time.sleep(0.1)
        if bucket == "silent":
            self.server.ended.wait()
            return
        if bucket == "refusing" or (bucket == "busy" and count % 3 == 0):
            self.answer(429, b"too many requests")
        elif bucket == "denied":
            self.answer(403, b"no right to read")
        elif not path.is_file():
            self.answer(404, b"no such object")
        else:
            data = path.read_bytes()
            if bucket == "cut" and path.suffix == ".array_record":
                data = data[: len(data) // 2]
            self.content(bucket, count, data)

    def content(self, bucket, count, data):
        asked = self.headers.get("Range")
        if asked is None:
            self.answer(200, data)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last), len(data) - 1)
        if first >= len(data):
            self.answer(416, b"")
            return
        part = data[first : last + 1]
        with self.server.lock:
            self.server.bytes[bucket] += len(part)
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self.answer(206, part, headers, torn=bucket == "torn" and count % 3 == 0)

    def answer(self, status, body, headers=None, torn=False):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": len(body), "x-goog-generation": "1"}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if torn else body)
        if torn:
            self.close_connection = True


@contextlib.contextmanager
def serving(folder):
    """A server over `folder`, and the environment that sends tensorstore there."""
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()


def environment(server):
    """What a process needs to read gs:// from the server."""
    return {"TENSORSTORE_GCS_HTTP_URL": server.url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "stand-in"}
