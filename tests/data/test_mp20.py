"""MP-20 from a local server and from a copy on disk; what is not MP-20 is not kept."""

import csv
import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crystorus.data.mp20 import get_mp20
from crystorus.errors import DownloadError


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.requests = {}, []
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


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
    server.files = release
    seen = []
    files = get(server, tmp_path, progress=lambda *now: seen.append(now))
    assert [f.name for f in files] == ["train.csv", "val.csv"]
    assert files[0].read_bytes() == release["/train.csv"]
    assert {name for name, _, _ in seen} == {"train.csv", "val.csv"}
    assert names(tmp_path) == ["train.csv", "train.csv.sha256", "val.csv", "val.csv.sha256"]
    assert not any("test" in path for path in server.requests)
    assert get(server, tmp_path, splits=["test"]) == [tmp_path / "test.csv"]


def test_files_that_are_there_and_unchanged_are_not_fetched_again(server, tmp_path, release):
    server.files = release
    get(server, tmp_path, splits=["val"])
    server.requests.clear()
    get(server, tmp_path, splits=["val"])
    assert server.requests == []
    (tmp_path / "val.csv").write_bytes(release["/val.csv"] + b"\n")
    with pytest.raises(DownloadError, match="it was changed, delete it"):
        get(server, tmp_path, splits=["val"])


def test_another_file_than_the_recorded_one_is_refused(server, tmp_path, release):
    server.files = dict(release)
    get(server, tmp_path, splits=["val"])
    (tmp_path / "val.csv").unlink()
    server.files["/val.csv"] = release["/val.csv"].replace(b"mp-17,", b"mp-18,")
    with pytest.raises(DownloadError, match="and not"):
        get(server, tmp_path, splits=["val"])
    assert names(tmp_path) == ["val.csv.sha256"]


def test_an_empty_record_is_as_good_as_none(server, tmp_path, release):
    server.files = release
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
    server.files = release
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
    server.files = {"/val.csv": body}
    with pytest.raises(DownloadError, match=words):
        get(server, tmp_path, splits=["val"])
    assert names(tmp_path) == []


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DownloadError, match="choose from train, val, test"):
        get_mp20(tmp_path, splits=["validation"])


def test_a_copy_on_disk_takes_the_place_of_the_network(tmp_path, release):
    (tmp_path / "copy").mkdir()
    for path, content in release.items():
        (tmp_path / "copy" / path[1:]).write_bytes(content)
    files = get_mp20(tmp_path / "a", source=tmp_path / "copy")
    assert names(tmp_path / "a") == ["train.csv", "train.csv.sha256", "val.csv", "val.csv.sha256"]
    assert files[1].read_bytes() == release["/val.csv"]
    (tmp_path / "copy" / "val.csv").rename(tmp_path / "any name.csv")
    get_mp20(tmp_path / "b", splits=["val"], source=tmp_path / "any name.csv")
    assert names(tmp_path / "b") == ["val.csv", "val.csv.sha256"]
    with pytest.raises(DownloadError, match="nowhere does not exist: name"):
        get_mp20(tmp_path / "c", source=tmp_path / "nowhere")
    with pytest.raises(DownloadError, match=r"one file for 2 splits.*train\.csv, val\.csv"):
        get_mp20(tmp_path / "c", source=tmp_path / "any name.csv")
    with pytest.raises(DownloadError, match=r"val\.csv does not exist"):
        get_mp20(tmp_path / "c", splits=["val"], source=tmp_path / "copy")
    with pytest.raises(DownloadError, match="is not MP-20: it has 27136 rows"):
        get_mp20(tmp_path / "c", splits=["val"], source=tmp_path / "copy" / "train.csv")
    assert not [p for p in (tmp_path / "c").glob("*") if p.suffix == ".csv"]


def test_without_a_network_the_file_and_its_place_are_named(tmp_path):
    with pytest.raises(DownloadError) as caught:
        get_mp20(tmp_path, base_url="http://127.0.0.1:9", pause=lambda _: None)
    assert "http://127.0.0.1:9/train.csv" in str(caught.value)
    assert f"save it as {tmp_path / 'train.csv'}" in str(caught.value)
    assert names(tmp_path) == []
