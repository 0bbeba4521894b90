"""Downloads from a local server that drops connections, refuses and lies."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crystal_fidelity.download import DownloadError, fetch
from crystal_fidelity.files import FileError

BODY = bytes(range(256)) * 4000  # 1 MB
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        status, n_bytes = self.server.answers.pop(0) if self.server.answers else (200, len(BODY))
        if status != 200:
            self.send_error(status)
            return
        self.send_response(200)
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:n_bytes])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.requests, httpd.answers, httpd.tells_length = [], [], True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}/file"
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_file_comes_whole_and_progress_grows_to_its_size(server, tmp_path, tells_length):
    server.tells_length = tells_length
    seen = []
    path = tmp_path / "new" / "f"
    assert fetch(server.url, path, SHA.upper(), progress=lambda *now: seen.append(now)) == SHA
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["f"]
    if tells_length:
        assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_broken_and_busy_connections_are_tried_again(server, tmp_path):
    server.answers = [(200, 300_000), (503, 0)]
    pauses = []
    assert fetch(server.url, tmp_path / "f", SHA, pause=pauses.append) == SHA
    assert pauses == [1.0, 4.0]
    assert names(tmp_path) == ["f"]


def test_a_connection_that_keeps_breaking_is_given_up(server, tmp_path):
    server.answers = [(200, 300_000)] * 9
    with pytest.raises(DownloadError, match=r"the connection broke off.*save it as .*f$"):
        fetch(server.url, tmp_path / "f", pause=lambda _: None)
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(server, tmp_path, status):
    server.answers = [(status, 0)]
    with pytest.raises(DownloadError, match=f"answers {status}"):
        fetch(server.url, tmp_path / "f", pause=lambda _: None)
    assert len(server.requests) == 1
    assert names(tmp_path) == []


def test_a_wrong_digest_keeps_what_was_there(server, tmp_path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(DownloadError, match=f"{SHA} and not {'0' * 64}.*nothing was kept"):
        fetch(server.url, tmp_path / "f", "0" * 64)
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_no_server_no_address_and_no_folder_are_one_sentence(server, tmp_path):
    with pytest.raises(DownloadError, match="connection refused"):
        fetch("http://127.0.0.1:9/f", tmp_path / "f", pause=lambda _: None)
    with pytest.raises(DownloadError, match="no address"):
        fetch("file-without-scheme", tmp_path / "f")
    (tmp_path / "a").write_text("a file")
    with pytest.raises(FileError, match="cannot write"):
        fetch(server.url, tmp_path / "a" / "f")
