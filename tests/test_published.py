"""Published checkpoints by name: from a folder, a cache, or a local server."""

import contextlib
import http.server
import shutil
import threading

import pooch
import pytest

import lrunet_jax
from lrunet_jax.errors import InputError
from lrunet_jax.weights import published

FILE = "cifar10-lru1-ckpt-08391.t7"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty one, with no LRUNET_CHECKPOINTS before it."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: directory / project)
    monkeypatch.delenv("LRUNET_CHECKPOINTS", raising=False)
    return directory / "lrunet_jax"


@contextlib.contextmanager
def server(respond):
    """Serves every GET by `respond(handler)`; gives its address and what was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            respond(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/", asked
        httpd.shutdown()


def send(handler, content, length=None):
    handler.send_response(200)
    handler.send_header("Content-Length", str(length or len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def test_a_download_is_checked_and_kept(shared, cache, monkeypatch):
    content = (shared / "checkpoints" / FILE).read_bytes()
    with server(lambda handler: send(handler, content)) as (url, asked):
        monkeypatch.setattr(published, "BASE_URL", url)
        model, _ = lrunet_jax.load("cifar10-lru1")
        assert model.layer_reuse == 1
        lrunet_jax.load("cifar10-lru1")
    assert asked == [f"/{FILE}"]
    assert (cache / FILE).read_bytes() == content


def test_a_wrong_hash_is_refused_and_nothing_kept(cache, monkeypatch):
    with server(lambda handler: send(handler, b"something else")) as (url, _):
        monkeypatch.setattr(published, "BASE_URL", url)
        with pytest.raises(InputError, match=r"can't be downloaded.*hash") as error:
            published.fetch("cifar10-lru1")
    assert "\n" not in str(error.value)
    assert list(cache.iterdir()) == []


def test_a_broken_connection_can_be_tried_again(shared, cache, monkeypatch):
    content = (shared / "checkpoints" / FILE).read_bytes()
    broken = [True]

    def respond(handler):
        if broken:
            broken.pop()
            send(handler, content[:100_000], len(content))
        else:
            send(handler, content)

    with server(respond) as (url, asked):
        monkeypatch.setattr(published, "BASE_URL", url)
        with pytest.raises(InputError, match="try again"):
            published.fetch("cifar10-lru1")
        assert list(cache.iterdir()) == []
        assert published.fetch("cifar10-lru1").read_bytes() == content
    assert len(asked) == 2


def test_no_server_is_one_line(cache, monkeypatch):
    monkeypatch.setattr(published, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(InputError, match="into the directory LRUNET_CHECKPOINTS") as e:
        published.fetch("cifar10-lru1")
    assert "\n" not in str(e.value)


def test_a_local_folder_comes_first(shared, cache, tmp_path, monkeypatch):
    shutil.copy(shared / "checkpoints" / FILE, tmp_path)
    monkeypatch.setenv("LRUNET_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr(published, "BASE_URL", "http://127.0.0.1:9/")
    assert published.fetch("cifar10-lru1") == tmp_path / FILE


def test_another_file_in_the_folder_is_refused(shared, cache, tmp_path, monkeypatch):
    other = shared / "checkpoints" / "fashionmnist-lru1-ckpt-09117.t7"
    shutil.copy(other, tmp_path / FILE)
    monkeypatch.setenv("LRUNET_CHECKPOINTS", str(tmp_path))
    with pytest.raises(InputError, match="is not the published file"):
        lrunet_jax.load("cifar10-lru1")


def test_an_unknown_name_says_which_are_known():
    with pytest.raises(InputError, match="did you mean 'cifar10-lru1'"):
        published.fetch("cifar10-lru15")


def test_the_table_is_that_of_the_files(shared):
    files = {path.name for path in shared.glob("checkpoints/*.t7")}
    assert {published.file_name(name) for name in published.PUBLISHED} == files
    for name, entry in published.PUBLISHED.items():
        stored = lrunet_jax.weights.loading.open_model(
            shared / "checkpoints" / published.file_name(name)
        )
        assert stored.name == name  # by its sha256
        arguments = {"name": entry.model, **entry.arguments}
        classes = stored.arguments.pop("num_classes")
        assert stored.arguments == arguments
        assert classes == (100 if entry.dataset == "cifar100" else 10)
        assert stored.dataset == entry.dataset
        assert round(10_000 * stored.accuracy) == entry.correct
