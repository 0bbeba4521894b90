"""Downloads from a local server that drops connections, truncates, ignores ranges and lies."""

import csv
import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crystorus.data.download import DownloadError, download
from crystorus.data.mp20 import get_mp20

BODY = bytes(range(256)) * 4000  # 1 MB
SHA = hashlib.sha256(BODY).hexdigest()


class Behaviour:
    """What the server does; requests are counted."""

    def __init__(self):
        self.files = {"/file": BODY}
        self.drop_after = []  # bytes of each answer in turn, then all
        self.ranges = True
        self.statuses = []
        self.etag = '"one"'
        self.content_length = True
        self.wrong_range = False
        self.requests = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        how = self.server.behaviour
        asked = self.headers.get("Range")
        how.requests.append((self.path, asked))
        if how.statuses and (status := how.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        if self.path not in how.files:
            self.send_error(404)
            return
        body, start = how.files[self.path], 0
        tag = self.headers.get("If-Range")
        if asked and how.ranges and (tag is None or tag == how.etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            says = start - 5 if how.wrong_range else start
            self.send_header("Content-Range", f"bytes {says}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if how.etag:
            self.send_header("ETag", how.etag)
        if how.content_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = start + how.drop_after.pop(0) if how.drop_after else len(body)
        self.wfile.write(body[start:stop])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.behaviour = Behaviour()
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def fetch(server, path, **settings):
    pauses = []
    digest = download(f"{server.url}/file", path, pause=pauses.append, **settings)
    assert path.read_bytes() == BODY
    assert digest == SHA
    assert names(path.parent) == [path.name]
    return pauses


def test_progress_grows_to_the_announced_size(server, tmp_path):
    seen = []
    fetch(server, tmp_path / "f", progress=lambda *now: seen.append(now), sha256=SHA)
    assert seen[-1] == (len(BODY), len(BODY))
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})


def test_dropped_connections_are_resumed_where_they_broke(server, tmp_path):
    server.behaviour.drop_after = [300_000, 200_000, 100_000]
    pauses = fetch(server, tmp_path / "f", sha256=SHA)
    assert [r for _, r in server.behaviour.requests] == [
        None, "bytes=300000-", "bytes=500000-", "bytes=600000-",
    ]  # fmt: skip
    assert pauses == [1.0, 1.0, 1.0]  # progress each time: the count starts again


def test_a_later_call_goes_on_from_what_an_earlier_one_left(server, tmp_path):
    server.behaviour.drop_after = [300_000] + [0] * 9
    with pytest.raises(DownloadError, match="goes on from 300000 bytes"):
        download(f"{server.url}/file", tmp_path / "f", attempts=3, pause=lambda _: None)
    assert not (tmp_path / "f").exists()
    server.behaviour.drop_after, server.behaviour.requests = [], []
    fetch(server, tmp_path / "f")
    assert server.behaviour.requests == [("/file", "bytes=300000-")]


def test_pauses_double_while_nothing_comes(server, tmp_path):
    server.behaviour.statuses = [503, 429, 500]
    assert fetch(server, tmp_path / "f") == [1.0, 2.0, 4.0]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.behaviour.ranges = False
    server.behaviour.drop_after = [300_000]
    fetch(server, tmp_path / "f", sha256=SHA)


def test_a_file_that_changed_in_between_is_fetched_whole(server, tmp_path):
    server.behaviour.files["/file"] = b"x" * len(BODY)
    server.behaviour.drop_after = [300_000] + [0] * 9
    with pytest.raises(DownloadError):
        download(f"{server.url}/file", tmp_path / "f", attempts=2, pause=lambda _: None)
    server.behaviour.drop_after = []
    server.behaviour.files["/file"] = BODY
    server.behaviour.etag = '"two"'
    fetch(server, tmp_path / "f")


def test_without_tags_the_digest_tells_that_the_file_changed(server, tmp_path):
    server.behaviour.etag = None
    server.behaviour.files["/file"] = b"x" * len(BODY)
    server.behaviour.drop_after = [300_000] + [0] * 9
    with pytest.raises(DownloadError):
        download(f"{server.url}/file", tmp_path / "f", attempts=2, pause=lambda _: None)
    server.behaviour.drop_after = []
    server.behaviour.files["/file"] = BODY
    fetch(server, tmp_path / "f", sha256=SHA)


def test_a_server_that_resumes_elsewhere_is_not_believed(server, tmp_path):
    server.behaviour.drop_after = [300_000]
    server.behaviour.wrong_range = True
    fetch(server, tmp_path / "f")


def test_a_partial_file_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / ".f.part").write_bytes(BODY + b"more")
    (tmp_path / ".f.part.json").write_text(json.dumps({"url": f"{server.url}/file"}))
    fetch(server, tmp_path / "f", sha256=SHA)


@pytest.mark.parametrize("notes", ["", "[]", "{", '{"url": "http://elsewhere/file"}'])
def test_a_partial_file_of_unknown_origin_is_thrown_away(server, tmp_path, notes):
    (tmp_path / ".f.part").write_bytes(b"junk")
    (tmp_path / ".f.part.json").write_text(notes)
    fetch(server, tmp_path / "f")


def test_a_wrong_digest_keeps_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match=f"{SHA} and not {'0' * 64}.*nothing was kept"):
        download(f"{server.url}/file", tmp_path / "f", sha256="0" * 64, pause=lambda _: None)
    assert names(tmp_path) == []


def test_a_file_of_unknown_length_is_taken_whole(server, tmp_path):
    server.behaviour.content_length = False
    fetch(server, tmp_path / "f")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(server, tmp_path, status):
    server.behaviour.statuses = [status]
    with pytest.raises(DownloadError, match=f"answers {status}"):
        download(f"{server.url}/file", tmp_path / "f", pause=lambda _: None)
    assert len(server.behaviour.requests) == 1
    assert names(tmp_path) == []


def test_no_server_and_no_address(tmp_path):
    with pytest.raises(DownloadError, match=r"failed 3 times in a row .*refused"):
        download("http://127.0.0.1:9/f", tmp_path / "f", attempts=3, pause=lambda _: None)
    with pytest.raises(DownloadError, match="no address"):
        download("file-without-scheme", tmp_path / "f")


def test_a_full_disk_is_noticed_before_it_fills(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("crystorus.data.download.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="0 MB free and 1 MB are needed"):
        download(f"{server.url}/file", tmp_path / "f", pause=lambda _: None)
    assert not (tmp_path / "f").exists()


# MP-20


def table(n_rows: int, drop: str = "") -> bytes:
    columns = ["", "material_id", "formation_energy_per_atom", "band_gap", "pretty_formula"]
    columns += ["e_above_hull", "elements", "cif", "spacegroup.number"]
    columns = [c for c in columns if c != drop]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[i, f"mp-{i}", *["a\nb"] * (len(columns) - 2)] for i in range(n_rows)])
    return stream.getvalue().encode()


@pytest.fixture(scope="module")
def release():
    sizes = {"train": 27136, "val": 9047, "test": 9046}
    return {f"/{split}.csv": table(n) for split, n in sizes.items()}


def get(server, folder, **settings):
    return get_mp20(folder, base_url=server.url, pause=lambda _: None, **settings)


def test_mp20_comes_without_its_test_split_unless_asked(server, tmp_path, release):
    server.behaviour.files = release
    server.behaviour.drop_after = [100_000]
    seen = []
    files = get(server, tmp_path, progress=lambda *now: seen.append(now))
    assert [f.name for f in files] == ["train.csv", "val.csv"]
    assert files[0].read_bytes() == release["/train.csv"]
    assert {name for name, _, _ in seen} == {"train.csv", "val.csv"}
    assert names(tmp_path) == ["train.csv", "train.csv.sha256", "val.csv", "val.csv.sha256"]
    assert not any("test" in path for path, _ in server.behaviour.requests)
    assert get(server, tmp_path, splits=["test"]) == [tmp_path / "test.csv"]


def test_files_that_are_there_and_unchanged_are_not_fetched_again(server, tmp_path, release):
    server.behaviour.files = release
    get(server, tmp_path, splits=["val"])
    server.behaviour.requests.clear()
    get(server, tmp_path, splits=["val"])
    assert server.behaviour.requests == []
    (tmp_path / "val.csv").write_bytes(release["/val.csv"] + b"\n")
    with pytest.raises(DownloadError, match="it was changed, delete it"):
        get(server, tmp_path, splits=["val"])


def test_another_file_than_the_recorded_one_is_refused(server, tmp_path, release):
    server.behaviour.files = dict(release)
    get(server, tmp_path, splits=["val"])
    (tmp_path / "val.csv").unlink()
    server.behaviour.files["/val.csv"] = release["/val.csv"].replace(b"mp-17,", b"mp-18,")
    with pytest.raises(DownloadError, match="and not"):
        get(server, tmp_path, splits=["val"])
    assert names(tmp_path) == ["val.csv.sha256"]


def test_an_empty_record_is_as_good_as_none(server, tmp_path, release):
    server.behaviour.files = release
    (tmp_path / "val.csv.sha256").write_bytes(b"")
    get(server, tmp_path, splits=["val"])
    good = hashlib.sha256(release["/val.csv"]).hexdigest()
    assert (tmp_path / "val.csv.sha256").read_text().startswith(good)


@pytest.mark.parametrize("record", [None, b""])
def test_a_file_of_unknown_origin_is_checked_before_it_is_recorded(tmp_path, release, record):
    (tmp_path / "val.csv").write_bytes(b"x\n")
    if record is not None:
        (tmp_path / "val.csv.sha256").write_bytes(record)
    with pytest.raises(DownloadError, match=r"val\.csv is not MP-20.*delete it"):
        get_mp20(tmp_path, splits=["val"])
    assert (tmp_path / "val.csv").read_bytes() == b"x\n"
    (tmp_path / "val.csv").write_bytes(release["/val.csv"])
    assert get_mp20(tmp_path, splits=["val"]) == [tmp_path / "val.csv"]


def test_a_digest_that_is_asked_for_must_match(server, tmp_path, release):
    server.behaviour.files = release
    with pytest.raises(DownloadError, match="nothing was kept"):
        get(server, tmp_path, splits=["val"], digests={"val": "0" * 64})
    good = hashlib.sha256(release["/val.csv"]).hexdigest()
    assert get(server, tmp_path, splits=["val"], digests={"val": good})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (table(100), "100 rows and not 9047"),
        (table(9047)[:-4], "cut short|rows"),
        (table(9047, drop="band_gap"), "no column 'band_gap'"),
        (b"<html>sorry</html>", "no column"),
        (b"", "no column"),
    ],
    ids=["few", "truncated", "column", "page", "empty"],
)
def test_what_is_not_mp20_is_not_kept(server, tmp_path, body, words):
    server.behaviour.files = {"/val.csv": body}
    with pytest.raises(DownloadError, match=words):
        get(server, tmp_path, splits=["val"])
    assert names(tmp_path) == []


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DownloadError, match="choose from train, val, test"):
        get_mp20(tmp_path, splits=["validation"])
