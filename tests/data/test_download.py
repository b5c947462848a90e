"""Downloads from a local server that breaks off, lies and serves rubbish; only a loopback address is used."""

import hashlib
import http.server
import io
import re
import threading
import zipfile

import pytest

from jaxrec.data import DATASETS, PublicDataset, load_dataset
from jaxrec.datasets.download import download, fetch
from jaxrec.errors import DataError
from tests.data.test_public_datasets import histories
from tests.runs import jaxrec

CONTENT = hashlib.sha256(b"x").digest() * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Behaves as the path says; ``requests`` lists (path, range)."""

    requests: list = []  # noqa: RUF012 - one list for the test
    content = CONTENT

    def do_GET(self):
        mode, wanted = self.path.strip("/").split("/")[0], self.headers.get("Range")
        self.requests.append((mode, wanted))
        start = int(re.search(r"\d+", wanted).group()) if wanted else 0
        body, status, headers = self.content[start:], 206 if wanted else 200, {}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        if mode == "no-ranges":
            body, status, headers = self.content, 200, {}
        elif mode == "wrong-range":
            headers["Content-Range"] = f"bytes {start + 5}-{len(self.content) - 1}/{len(self.content)}"
        elif mode == "past-the-end" and wanted:
            self.send_error(416)
            return
        elif mode in ("404", "503"):
            self.send_error(int(mode))
            return
        elif mode == "page":
            body = b"\n <!DOCTYPE html><html>please log in</html>"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if mode != "no-length":
            self.send_header("Content-Length", str(len(body) + (1000 if mode == "lies" else 0)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if mode == "breaks-off" and not wanted else body)

    def log_message(self, *_):
        """Stay silent."""


@pytest.fixture
def server(monkeypatch):
    """Address of the server; its requests are in ``Server.requests``."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.requests.clear()
    Server.content = CONTENT
    opened = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=opened.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{opened.server_address[1]}"
    opened.shutdown()
    opened.server_close()
    thread.join()


@pytest.mark.parametrize("mode", ["ok", "no-length", "no-ranges"])
def test_a_file_arrives_whole_and_once(server, tmp_path, mode):
    target = tmp_path / "a.zip"
    assert download(f"{server}/{mode}/a.zip", target, sha256=(SHA256,), progress=False) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    download(f"{server}/{mode}/a.zip", target, progress=False)
    assert len(Server.requests) == 1


def test_a_broken_download_continues(server, tmp_path):
    target = tmp_path / "a.zip"
    with pytest.raises(DataError, match=r"broke off after 80,000 of 160,000 bytes: run it again"):
        download(f"{server}/breaks-off/a.zip", target, progress=False)
    assert not target.exists()
    download(f"{server}/breaks-off/a.zip", target, sha256=(SHA256,), progress=False)
    assert target.read_bytes() == CONTENT
    assert Server.requests == [("breaks-off", None), ("breaks-off", "bytes=80000-")]


@pytest.mark.parametrize("mode", ["ok", "no-ranges", "past-the-end"])
@pytest.mark.parametrize("left", [CONTENT[:99], CONTENT, CONTENT + b"more"])
def test_leftovers(server, tmp_path, mode, left):
    """Whatever an earlier try left, the result is the file, or nothing and an error of one line."""
    target = tmp_path / "a.zip"
    (tmp_path / "a.zip.part").write_bytes(left)
    try:
        download(f"{server}/{mode}/a.zip", target, sha256=(SHA256,), progress=False)
    except DataError:
        assert not target.exists()
        assert not (tmp_path / "a.zip.part").exists() or mode == "ok"
        download(f"{server}/{mode}/a.zip", target, sha256=(SHA256,), progress=False)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("404", "answers 404 Not Found: try later, or download it by hand"),
        ("503", "answers 503"),
        ("lies", r"broke off after 160,000 of 161,000 bytes"),
        ("page", "gave a web page in place of a.zip"),
    ],
)
def test_servers_that_fail(server, tmp_path, mode, message):
    with pytest.raises(DataError, match=message) as caught:
        download(f"{server}/{mode}/a.zip", tmp_path / "a.zip", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zip").exists()


def test_a_wrong_range_is_refused(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:10])
    with pytest.raises(DataError, match="expected one from byte 10"):
        download(f"{server}/wrong-range/a.zip", tmp_path / "a.zip", progress=False)


def test_a_wrong_checksum_removes_the_file(server, tmp_path):
    with pytest.raises(
        DataError, match=r"is not the published file and was removed: archive .* expected sha256 00"
    ):
        download(f"{server}/ok/a.zip", tmp_path / "a.zip", sha256=("00",), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_address(server, tmp_path):
    port = int(server.rsplit(":", 1)[1])
    with pytest.raises(DataError, match=r"no connection to http://127\.0\.0\.1:1/a .*run it again"):
        download("http://127.0.0.1:1/a", tmp_path / "a", progress=False)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/a", f"127.0.0.1:{port}/a"):
        with pytest.raises(DataError, match="expected an http or https address"):
            download(url, tmp_path / "a", progress=False)


class TestFetch:
    @pytest.fixture
    def films(self, server, tmp_path, monkeypatch):
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as target:
            target.writestr("ml/ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n1,3,4,5\n")
            target.writestr("ml/movies.csv", "movieId,title,genres\n2,Two,A|B\n3,Three,A\n")
        Server.content = raw.getvalue()
        monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "home"))
        monkeypatch.setattr(DATASETS, "_parts", dict(DATASETS._parts))
        part = DATASETS["ml-20m"]
        DATASETS._parts["films"] = PublicDataset(
            name="films", read=part.read, title="Films", url=server, licence="for tests", citation="nobody",
            files=("films.zip",), rules={"all": {}}, downloads=(f"{server}/ok/films.zip",),
        )  # fmt: skip
        return tmp_path

    def test_the_licence_is_shown_and_accepted_once(self, films, capsys):
        with pytest.raises(
            DataError, match=r"licence of films must be accepted .*for tests .*Give --accept-licence"
        ):
            fetch("films", progress=False)
        assert not Server.requests
        assert [path.name for path in fetch("films", accept_licence=True, progress=False)] == ["films.zip"]
        assert "films: for tests (http" in (shown := capsys.readouterr().err)
        assert "cite nobody" in shown
        fetch("films", progress=False)
        assert len(Server.requests) == 1
        assert capsys.readouterr().err == ""

    def test_prepare_downloads(self, films):
        out = jaxrec("prepare", "films", "--download", "--accept-licence", "--out", films / "d", "--json")
        assert out.status == 0, out
        assert histories(load_dataset(films / "d")) == {"1": ["2", "3"]}
        assert load_dataset("films").n_interactions == 2, "found in the data directory"
        out = jaxrec("prepare", "films", "--out", films / "again")
        assert "archive films.zip: its source publishes no checksum; sha256 " in out.out

    def test_without_a_direct_link(self):
        with pytest.raises(
            DataError, match=r"yelp has no direct link: download it from https://www\.yelp\.com"
        ):
            fetch("yelp", accept_licence=True)


def test_links_are_to_the_files_of_the_dataset():
    for name, part in DATASETS.items():
        for file, url in zip(part.files, part.downloads, strict=False):
            assert url.startswith("https://"), name
            assert url.endswith("/" + file), name
