"""A stand-in for Google's storage, on this machine.

gcp-storage-emulator, with what TensorStore asks of a bucket besides: each write has a
generation of its own, which reads tell and requests can depend on.
"""

import contextlib
import functools
import http.server
import itertools
import threading
import urllib.parse

from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage


class _Storage(Storage):
    generations = itertools.count(1)

    def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
        file_obj["generation"] = str(next(self.generations))
        super().create_file(bucket_name, file_name, content, file_obj, file_id)


class _Handler(RequestHandler):
    def parse_request(self):
        if not super().parse_request():
            return False
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        _, _, bucket = url.path.partition("/b/")
        bucket, _, name = bucket.partition("/o")
        name = query.get("name") or urllib.parse.unquote(name.removeprefix("/"))
        entry = self.server.storage.objects.get(bucket, {}).get(name, {})
        self.generation = entry.get("generation", "0")
        wanted = query.get("ifGenerationMatch", self.generation)
        if wanted != self.generation:
            self.send_error(412)
            return False
        if query.get("ifGenerationNotMatch") == self.generation:
            self.send_error(304)
            return False
        return True

    def end_headers(self):
        if self.generation != "0":
            self.send_header("x-goog-generation", self.generation)
        super().end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def bucket(name):
    """A context with a bucket: the variables by which gcsfs and TensorStore find it."""
    storage = _Storage(use_memory_fs=True)
    storage.create_bucket(name, {"name": name})
    handler = functools.partial(_Handler, storage)
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        server.storage = storage
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        }
        server.shutdown()
