"""The server over real sockets: answers, refusals, limits, user state, and the page in a browser."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.runs import jaxrec

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from jaxrec.serving import Recommender, Request
from jaxrec.serving.explain import explain
from jaxrec.serving.http_app import create_app
from jaxrec.serving.http_protocol import build_server
from jaxrec.serving.server import listen
from jaxrec.serving.service import ServerConfig, Service, TitleSearch
from jaxrec.serving.similar import SimilarItems

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Client:
    """Plain requests to a server of this machine."""

    def __init__(self, port):
        self.port = port

    def __call__(self, path, body=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def json(self, path, body=None):
        status, text = self(path, body)
        assert status == 200, text
        return json.loads(text)

    def refused(self, path, body, status):
        got, text = self(path, body)
        assert got == status, text
        return json.loads(text)["error"]


@contextlib.contextmanager
def running(recommender, warm_up=False, **options):
    config = ServerConfig(port=0, **options)
    sock, service = listen(config), Service(recommender, config)
    if warm_up:
        service.warm_up()
    server = build_server(create_app(service), config.timeout, config.max_connections)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield Client(sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(recommender):
    with running(recommender, warm_up=True, max_k=30, max_body=4000, max_history=100, timeout=20) as client:
        yield client


def test_mixed_requests_at_once_equal_the_recommender(client, recommender):
    bodies = [
        {"history": ["i1", "i3"], "k": 3},
        {"history": ["i7", "?"], "remove_seen": False},
        {"history": [], "k": 4},
        {"history": ["i2"], "allow_attributes": ["third"], "exclude": ["i3"]},
        {"history": ["i5"], "allow": ["i4", "i6"]},
        {"history": ["unknown"]},
    ] * 4
    want = recommender.answer([Request(**{"k": 10, **body}) for body in bodies])
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: client.json("/recommend", body), bodies))
    for answer, expected in zip(answers, want, strict=True):
        assert answer["items"] == expected.items
        assert answer["titles"] == expected.titles
        np.testing.assert_allclose(answer["scores"], expected.scores, rtol=1e-4, atol=1e-5)
        assert (answer["unknown"], answer["popular"]) == (expected.unknown, expected.popular)
    assert len(answers[4]["items"]) == 2


def test_the_other_paths(client, recommender):
    assert (
        client.json("/similar", {"item": "i7", "k": 4})["items"]
        == SimilarItems(recommender).of(["i7"], 4)[0].items
    )
    answer = client.json("/explain", {"history": ["i1", "i3"], "item": "i9"})
    want = explain(recommender, ["i1", "i3"], "i9")
    assert [reason["item"] for reason in answer["reasons"]] == ["i1", "i3"]
    assert answer["rank"] == want.rank
    health = client.json("/health")
    assert (health["status"], health["items"], health["run"]) == ("ok", 40, "run")
    assert client.json("/items?q=item%203")["items"][0] == {"item": "i3", "title": "Item 3"}
    assert len(client.json("/items?q=ITEM")["items"]) == 20
    assert client.json("/items?q=")["items"] == []
    text = client("/metrics")[1]
    assert 'jaxrec_requests_total{path="/similar",status="200"}' in text
    assert "jaxrec_batch_size_bucket" in text
    status, text = client("/")
    assert status == 200
    assert "http://" not in text
    assert "https://" not in text


def test_titles_are_found_as_by_looking_at_each():
    rng = np.random.default_rng(0)
    titles = ["".join(rng.choice(list("abAB \nß"), rng.integers(0, 7))) for _ in range(300)]
    search = TitleSearch(titles)
    for text in ("a", "ab", "BA", "ss", "a b", "bb\n", "x", " ", "abab"):
        wanted = text.casefold().strip()
        folded = [title.casefold().replace("\n", " ") for title in titles]
        places = [place for place, title in enumerate(folded) if wanted and wanted in title]
        places.sort(key=lambda place: not folded[place].startswith(wanted))
        for count in (1, 20, 400):
            assert search.find(text, count) == places[:count], (text, count)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/recommend", b"{", 400, "the body must be a JSON object"),
        ("/recommend", b"\xff", 400, "the body must be a JSON object"),
        ("/recommend", b"[" * 3000, 400, "the body must be a JSON object"),
        ("/recommend", [1], 400, "the body must be a JSON object, got [1]"),
        ("/recommend", b'{"history": ["\\ud800"]}', 400, "the body must be a JSON object: "),
        ("/recommend", b'{"history": ["\xed\xa0\x80"]}', 400, "the body must be a JSON object: "),
        ("/recommend", b'{"user": "\\uDC00"}', 400, "the body must be a JSON object: "),
        ("/recommend", {}, 400, "expected a field history (a list of item ids) or user"),
        ("/recommend", {"history": "i1"}, 400, 'history must be a list of item ids, got "i1"'),
        ("/recommend", {"history": [["i1"]]}, 400, "history must be a list of item ids"),
        ("/recommend", {"history": ["i1"] * 101}, 400, "history must have at most 100 items, got 101"),
        ("/recommend", {"history": [], "top": 3}, 400, "unknown field 'top'"),
        (
            "/recommend",
            {"history": [], "k": 0},
            400,
            "k must be an integer from 1 to the catalogue's 40 items",
        ),
        ("/recommend", {"history": [], "k": "3"}, 400, "k must be an integer"),
        ("/recommend", {"history": [], "k": 31}, 400, "k must be at most 30 (--max-k), got 31"),
        ("/recommend", {"history": [], "exclude": ["?"]}, 400, "exclude must hold ids of the catalogue"),
        ("/recommend", {"history": [], "allow": "i1"}, 400, 'allow must be a list, got "i1"'),
        ("/recommend", {"history": [], "remove_seen": 1}, 400, "remove_seen must be True or False"),
        ("/recommend", {"history": ["i1"], "timestamps": [1, 2]}, 400, "timestamps must have one entry"),
        ("/recommend", {"user": "u1"}, 400, "start it with --redis URL, or give history"),
        (
            "/recommend",
            {"user": "u1", "history": ["i1"]},
            400,
            "leave user out, or start the server with --redis",
        ),
        ("/recommend", {"user": None}, 400, "expected a field history (a list of item ids) or user"),
        ("/recommend", b'{"history": ["' + b"i" * 5000 + b'"]}', 413, "at most 4000 bytes (--max-body)"),
        ("/similar", {"item": "?"}, 404, "item must be an id of the catalogue"),
        ("/similar", {"item": "i1", "k": -1}, 400, "k must be an integer from 1 to 39"),
        ("/explain", {"history": ["?"]}, 400, "history must hold an item of the catalogue"),
        ("/explain", {"history": ["i1"], "item": "?"}, 400, "item must be an id of the catalogue"),
        ("/events", {"user": "u", "item": None}, 400, "item must be an item id"),
        ("/events", {"user": "u", "item": "i" * 2000}, 400, "an item id of at most 1024 characters"),
        ("/nothing", {}, 404, "no such path"),
        ("/recommend/", {"history": []}, 404, "no such path"),
        (f"/items?q={'i' * 20_000}", None, 431, "path and headers must have at most 16384 bytes, got 20"),
        ("/recommend", None, 405, "this path takes POST, got GET"),
    ],
)
def test_requests_that_cannot_be_answered(client, path, body, status, message):
    assert message in client.refused(path, body, status)


def test_a_chunked_body_without_an_end(client):
    """No length is announced; the server stops reading at its limit and goes on answering others."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as sock:
        sock.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(20):
                sock.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
            assert b" 413 " in sock.recv(200)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as sock:
        sock.sendall(b"NONSENSE\r\n\r\n")
        assert b" 400 " in sock.recv(200)
    assert client.json("/health")["status"] == "ok"


@pytest.mark.slow
def test_slow_clients_are_cut_off(recommender):
    with running(recommender, timeout=2.0) as client:
        address = ("127.0.0.1", client.port)
        with socket.create_connection(address, 30) as headers, socket.create_connection(address, 30) as body:
            headers.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\n")
            body.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            begin = time.monotonic()
            assert client.json("/health")["status"] == "ok"
            assert b" 408 " in body.recv(200)
            assert headers.recv(200) == b"", "the connection is closed"
            assert time.monotonic() - begin < 15


def test_a_client_that_does_not_read_is_cut_off(recommender):
    """Its answers would fill the buffers of the system and then wait for ever."""

    def send_on(sock):
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                sock.send(b"GET / HTTP/1.1\r\n")
            time.sleep(0.1)

    with running(recommender, timeout=0.5) as client, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect(("127.0.0.1", client.port))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100_000):
                sock.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_on(sock)
        assert client.json("/health")["status"] == "ok"


def test_a_port_in_use_and_other_refusals(served, client):
    outcome = jaxrec("serve", served, "--port", client.port)
    assert outcome.status == 1
    assert f"--port {client.port} on --host 127.0.0.1 cannot be used: Address already in use" in outcome.err
    assert "--port must be" in jaxrec("serve", served, "--port", 70000).err
    assert "redis://localhost:6379/0" in jaxrec("serve", served, "--port", 0, "--redis", "nonsense").err


def test_user_state_that_does_not_answer(recommender):
    """Requests with a history go on."""
    pytest.importorskip("redis", reason="the extra serve is not installed")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        with running(recommender, redis=f"redis://127.0.0.1:{closed.getsockname()[1]}/0") as client:
            assert "user state does not answer" in client.refused("/recommend", {"user": "ann"}, 503)
            assert client.json("/recommend", {"history": ["i1"]})["items"]


def test_users_of_a_model_that_reads_them(personal):
    model, history = Recommender.load(personal), ["i3", "i4", "i6"]
    want = model.recommend([history] * 2, 5, user=["u8", None])
    with running(model) as client:
        own = client.json("/recommend", {"history": history, "user": "u8", "k": 5})
        np.testing.assert_allclose(own["scores"], want[0].scores, rtol=1e-4)
        assert own["known_user"]
        bare = client.json("/recommend", {"history": history, "k": 5})
        np.testing.assert_allclose(bare["scores"], want[1].scores, rtol=1e-4)
        assert not bare["known_user"]
        explained = client.json("/explain", {"history": history, "item": own["items"][0], "user": "u8"})
        assert explained["score"] == pytest.approx(own["scores"][0], rel=1e-4)
        assert "start it with --redis URL" in client.refused("/recommend", {"user": "u8"}, 400)


@pytest.fixture
def redis_url(tmp_path):
    pytest.importorskip("redis", reason="the extra serve is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "redis-server",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0", process
    finally:
        process.terminate()
        process.wait(10)


def test_user_state_in_redis(recommender, redis_url):
    import redis

    url, process = redis_url
    with running(recommender, redis=url, last=3) as client:
        assert client.json("/recommend", {"user": "new"})["popular"]
        for place, item in enumerate(("i1", "i2", "i3", "i4")):
            assert client.json("/events", {"user": "ann", "item": item})["kept"] == min(place + 1, 3)
        want = recommender.recommend([["i2", "i3", "i4"], ["i2", "i3", "i4", "i9"]], 5)
        assert client.json("/recommend", {"user": "ann", "k": 5})["items"] == want[0].items
        assert client.json("/recommend", {"user": "ann", "history": ["i9"], "k": 5})["items"] == want[1].items
        assert "user must be a text" in client.refused("/recommend", {"user": ""}, 400)
        state = redis.Redis.from_url(url)
        state.rpush("jaxrec:user:bob", *(json.dumps([f"i{i}", 9 - i]) for i in range(1, 9)))
        answer = client.json("/recommend", {"user": "bob", "k": 5})
        assert answer["items"] == recommender.recommend([["i8", "i7", "i6"]], 5)[0].items, (
            "the last 3, by time"
        )
        for entry in (
            b"i1",
            b'"i1"',
            b'["i1"]',
            b'[["i1"], 1]',
            b'["i1", "now"]',
            b'["\\ud800", 1]',
            b"\xff",
        ):
            state.rpush("jaxrec:user:eve", entry)
            message = client.refused("/recommend", {"user": "eve"}, 503)
            assert "'jaxrec:user:eve' must hold entries of the form" in message
        state.close()
        process.terminate()
        process.wait(10)
        assert "user state does not answer" in client.refused("/recommend", {"user": "ann"}, 503)
        assert client.json("/recommend", {"history": ["i1"]})["items"]


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    driver.set_window_size(1000, 800)
    yield driver
    driver.quit()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_page_in_a_browser(client, recommender, browser, tmp_path, monkeypatch):
    def wait_for(selector, text):
        for _ in range(300):
            lines = [element.text for element in browser.find_elements("css selector", selector)]
            if any(text in line for line in lines):
                return lines
            time.sleep(0.1)
        raise AssertionError(f"{text!r} did not appear in {lines}")

    browser.get(f"http://127.0.0.1:{client.port}/")
    for title in ("Item 11", "Item 13"):
        browser.find_element("id", "search").send_keys(title)
        wait_for("#found li .title", title)
        browser.find_element("css selector", "#found button").click()
        wait_for("#history li .title", title)
    want = recommender.recommend([["i11", "i13"]], 10)[0]
    wait_for("#answers li .title", want.titles[0])
    for _ in range(100):
        titles = [element.text for element in browser.find_elements("css selector", "#answers > li > .title")]
        if titles == want.titles:
            break
        time.sleep(0.1)
    assert titles == want.titles
    browser.find_element("css selector", "#answers button").click()
    reasons = wait_for("#answers .why li", "without Item")
    assert len(reasons) == 2
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    browser.find_element("css selector", "#history button").click()
    assert len(browser.find_elements("css selector", "#history li")) == 1
    # As a model that reads times asks for them: those when titles were added.
    monkeypatch.setattr(recommender._reader, "needs_times", True)
    browser.find_element("id", "search").send_keys("Item 15")
    wait_for("#found li .title", "Item 15")
    browser.find_element("css selector", "#found button").click()
    wait_for("#answers li .title", "Item")
    browser.find_element("css selector", "#answers button").click()
    wait_for("#answers .why li", "without Item 15")
    assert browser.find_element("id", "message").text == ""
