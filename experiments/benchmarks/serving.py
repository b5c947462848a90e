"""Bulk lists and the HTTP server: users and requests per second, latencies, and a load test with hostile clients.

    python -m experiments.benchmarks.serving --record

Runs have untrained parameters, since what is computed does not depend on their values (`recommend_cost` makes them). Bulk
lists are compared with the exact scorer alone, given the states, which bounds them. The server is a process of its own
(``jaxrec serve``), and the clients are threads of this one with persistent connections, so both share the processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.benchmarks.recommend_cost import MAKE
from experiments.record import command_line, number, write_record
from jaxrec.analysis.tables import to_markdown
from jaxrec.evaluation.ranking import top_k
from jaxrec.serving import Recommender
from jaxrec.serving.approximate import ApproximateIndex
from jaxrec.serving.bulk import BulkJob, run_bulk
from jaxrec.serving.sources import FileSource

#: Users, items, and interactions per user.
CASES = {"3,416 items": (6040, 3416, 165), "1,000,000 items": (2000, 1_000_000, 500)}
K = 10
#: Items of the largest catalogue whose approximate index is built: a million take minutes on two cores.
INDEXED = 100_000
#: Seconds after which the server ends a request, and four times that a connection that does not read.
TIMEOUT = 5
#: Connections that do not read.
BLIND = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    seconds: Annotated[float, tyro.conf.arg(help="longest time of a load")] = 15.0
    requests: Annotated[int, tyro.conf.arg(help="most requests of a load")] = 3000
    clients: Annotated[tuple[int, ...], tyro.conf.arg(help="numbers of clients at once")] = (1, 16)
    bulk_users: Annotated[tuple[int, ...], tyro.conf.arg(help="users ranked in each case")] = (4096, 512)
    record: Annotated[bool, tyro.conf.arg(help="write experiments/results/serving_speed.*")] = False


def bulk(run: Path, users: int, folder: Path) -> dict[str, float]:
    """Users per second of whole bulk lists, of encoding and of scoring alone; recall of the approximate index."""
    recommender = Recommender.load(run)
    generator = np.random.default_rng(0)
    n_items = recommender.items.n_items
    with (folder / "users.jsonl").open("w") as file:
        for user in range(users):
            history = [f"i{i}" for i in generator.integers(0, n_items, generator.integers(20, 200))]
            file.write(json.dumps({"user": f"u{user}", "history": history}) + "\n")
    block = FileSource(folder / "users.jsonl", recommender, K, True).read(0, users)
    lists = recommender.lists

    def rate(work: Any) -> float:
        work()
        begin = time.perf_counter()
        work()
        return users / (time.perf_counter() - begin)

    states = lists.states(block.histories)
    figures = {
        "encoding": rate(lambda: lists.states(block.histories)),
        "scoring": rate(lambda: top_k(states, recommender.ranker.table, K, block.removed)),
        "lists": rate(lambda: lists.top_k(block.histories, K, block.removed)),
    }
    # The first job compiles, which a job of millions of users does in its first parts.
    for name in ("first", "recs.parquet"):
        job = BulkJob(str(run), str(folder / name), str(folder / "users.jsonl"), k=K, users_per_part=2048)
        figures["to Parquet"] = run_bulk(job)["users_per_second"]
    if n_items <= INDEXED:
        begin = time.perf_counter()
        index = ApproximateIndex(recommender)
        figures["index seconds"] = time.perf_counter() - begin
        figures["recall"] = index.recall(block.histories, K, block.removed)
        figures["approximate"] = rate(lambda: index.top_k(block.histories, K, block.removed))
    return {name: round(float(value), 4) for name, value in figures.items()}


@contextlib.contextmanager
def server(run: Path) -> Any:
    """``jaxrec serve`` in a process of its own; its port and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jaxrec",
        "serve",
        str(run),
        "--port",
        str(port),
        "--timeout",
        str(TIMEOUT),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if "http://" not in process.stdout.readline():
        raise SystemExit("the server did not start")
    try:
        yield port, process
    finally:
        process.terminate()
        process.wait(30)


def resident(process: subprocess.Popen) -> float:
    """Resident MiB of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def load(port: int, n_items: int, clients: int, options: Options) -> dict[str, float]:
    """Send different requests from some clients at once; requests per second and quantiles of the latency."""
    latencies: list[float] = []
    left = iter(range(options.requests))
    end = time.perf_counter() + options.seconds

    def client(number: int) -> None:
        generator = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < end and next(left, None) is not None:
            length = int(generator.integers(1, 100))
            body = {"history": [f"i{i}" for i in generator.integers(0, n_items, length)], "k": K}
            if generator.integers(4) == 0:
                body["exclude"] = [f"i{i}" for i in generator.integers(0, n_items, 20)]
            begin = time.perf_counter()
            connection.request("POST", "/recommend", json.dumps(body))
            answer = connection.getresponse()
            content = json.loads(answer.read())
            latencies.append(time.perf_counter() - begin)
            if answer.status != 200 or len(content["items"]) != K:
                raise SystemExit(f"status {answer.status}: {content}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    return {
        "requests": len(latencies),
        "per_second": round(len(latencies) / seconds, 1),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
    }


def hostile(port: int, process: subprocess.Popen, n_items: int, options: Options) -> dict[str, Any]:
    """Good requests beside 200 connections that do not send, some that do not read, and malformed and oversized requests."""
    slow, blind = [], []
    for _ in range(BLIND):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        blind.append(sock)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    for _ in range(200):
        sock = socket.create_connection(("127.0.0.1", port), 30)
        sock.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\n")
        slow.append(sock)
    stop = threading.Event()
    bodies = [b"{", b"[" * 5000, b"\xff" * 100, b'{"history": 5}', b"x" * (2 << 20)]
    sent = [0]

    def attack() -> None:
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", "/recommend", bodies[sent[0] % len(bodies)])
                if connection.getresponse().status < 400:
                    raise SystemExit("a malformed request was answered")
            connection.close()
            sent[0] += 1

    before = resident(process)
    threads = [threading.Thread(target=attack) for _ in range(4)]
    for thread in threads:
        thread.start()
    figures: dict[str, Any] = load(port, n_items, 4, options)
    stop.set()
    for thread in threads:
        thread.join()
    time.sleep(max(0.0, 4 * TIMEOUT + 10 - options.seconds))
    closed, cut_off = 0, 0
    for sock in blind:
        try:
            sock.send(b"G")
        except BlockingIOError:
            pass
        except OSError:
            cut_off += 1
        sock.close()
    for sock in slow:
        sock.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            closed += sock.recv(10) == b""
        sock.close()
    return {
        **figures,
        "malformed_or_huge": sent[0],
        "slow_closed": closed,
        "blind_cut_off": cut_off,
        "mib_before": round(before, 1),
        "mib_after": round(resident(process), 1),
    }


def main(options: Options) -> None:
    """Measure every case."""
    results: dict[str, Any] = {}
    for (case, sizes), users in zip(CASES.items(), options.bulk_users, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            subprocess.run([sys.executable, "-c", MAKE, str(run), *map(str, sizes)], check=True)
            results[case] = {"bulk": bulk(run, users, Path(folder))}
            with server(run) as (port, process):
                loads = {str(clients): load(port, sizes[1], clients, options) for clients in options.clients}
                results[case] |= {"loads": loads, "hostile": hostile(port, process, sizes[1], options)}
        print(case, json.dumps(results[case]), flush=True)
    tables = [bulk_table(results), load_table(results), hostile_table(results)]
    if options.record:
        write_record(
            "serving_speed",
            {"cases": results},
            title="Bulk lists and the HTTP server",
            command=command_line("experiments.benchmarks.serving"),
            body=tables,
            notes=[
                'Width 64, two layers, histories of up to 200 interactions, lists of 10. "Scoring" is the exact scorer '
                'alone, given the states: the bound of "lists", which encode first. Latencies are measured by the client, '
                "which shares the processor with the server. The machine ran other programs at the same time, so the "
                "figures are lower bounds of what it can do. The parameters are untrained: recall of the approximate "
                "index for a trained table may be another."
            ],
        )
    else:
        print("\n\n".join(tables))


def bulk_table(results: dict[str, Any]) -> str:
    """Users per second."""
    names = ["encoding", "scoring", "lists", "to Parquet", "approximate", "recall", "index seconds"]
    rows = [
        [case, *(number(values["bulk"][name]) if name in values["bulk"] else "-" for name in names)]
        for case, values in results.items()
    ]
    header = ["users/s", *names[:-2], "recall@10", "index, s"]
    return to_markdown(header, rows)


def load_table(results: dict[str, Any]) -> str:
    """Latencies of the server."""
    rows = [
        [
            case,
            clients,
            f"{x['per_second']:,.0f}",
            f"{x['p50_ms']:.1f}",
            f"{x['p99_ms']:.1f}",
            f"{x['requests']:,}",
        ]
        for case, values in results.items()
        for clients, x in values["loads"].items()
    ]
    return to_markdown(["server", "clients", "requests/s", "p50, ms", "p99, ms", "requests"], rows)


def hostile_table(results: dict[str, Any]) -> str:
    """The load test with hostile clients."""
    rows = [
        [
            case,
            f"{x['per_second']:,.0f}",
            f"{x['p50_ms']:.1f}",
            f"{x['p99_ms']:.1f}",
            f"{x['malformed_or_huge']:,}",
            f"{x['slow_closed']} of 200",
            f"{x['blind_cut_off']} of {BLIND}",
            f"{x['mib_before']:,.0f} → {x['mib_after']:,.0f}",
        ]
        for case, values in results.items()
        for x in [values["hostile"]]
    ]
    header = [
        "4 clients beside hostile ones",
        "requests/s",
        "p50, ms",
        "p99, ms",
        "malformed or 2 MiB",
        "slow, closed",
        "not reading, cut off",
        "server, MiB",
    ]
    return to_markdown(header, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,)))
