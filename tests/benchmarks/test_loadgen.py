"""The load generator notices every way in which a server can be wrong."""

from __future__ import annotations

import base64
import hashlib
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.install import CFLAGS, HERE
from benchmarks.process import Crowd, Failed, Report, crowd, read_report

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not Path("/proc/self/stat").exists(),
    reason="needs Linux and a C compiler",
)

Answer = Callable[[int, bytes], list[bytes]]
"""From the number of a message (from 0) and its payload to what is sent back."""


@pytest.fixture(scope="session")
def loadgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("loadgen") / "loadgen"
    subprocess.run(["cc", *CFLAGS, "-o", program, HERE / "loadgen.c"], check=True)
    return program


def frame(text: bytes) -> bytes:
    """Return a server's text frame."""
    if len(text) < 126:
        return struct.pack("!BB", 0x81, len(text)) + text
    return struct.pack("!BBH", 0x81, 126, len(text)) + text


def read_exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def read_message(client: socket.socket) -> bytes:
    """Return the payload of a client's frame."""
    _, size = read_exactly(client, 2)
    size &= 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", read_exactly(client, 2))
    mask = read_exactly(client, 4)
    return bytes(b ^ mask[i % 4] for i, b in enumerate(read_exactly(client, size)))


def talk(client: socket.socket, answer: Answer) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        request += client.recv(4096)
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    client.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
        + base64.b64encode(digest)
        + b"\r\n\r\n"
    )
    number = 0
    try:
        while True:
            for part in answer(number, read_message(client)):
                client.sendall(part)
            number += 1
    except (EOFError, OSError):
        pass


@contextmanager
def serving(answer: Answer) -> Iterator[int]:
    """Serve one client; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                talk(client, answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


def load(program: Path, answer: Answer, *extra: str) -> Report:
    with serving(answer) as port:
        done = subprocess.run(
            [
                *(program, "--port", str(port), "--connections", "1", "--publish", "{payload}"),
                *("--warmup", "0", "--seconds", "0.2", "--timeout", "3", *extra),
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
    return read_report(done.stdout)


def echo(_: int, payload: bytes) -> list[bytes]:
    return [frame(payload)]


def test_right_deliveries_are_counted(loadgen: Path) -> None:
    report = load(loadgen, echo)
    assert report["deliveries"] > 0
    assert report["deliveries_per_s"] == pytest.approx(
        report["deliveries"] / report["seconds"], rel=0.01
    )
    assert report["broadcasts_per_s"] == pytest.approx(report["deliveries_per_s"], rel=0.05)


def test_a_server_slower_than_the_run_is_measured_over_whole_broadcasts(loadgen: Path) -> None:
    def slow(number: int, payload: bytes) -> list[bytes]:
        time.sleep(0.1)
        return [frame(payload)]

    report = load(loadgen, slow, "--seconds", "0.12", "--in-flight", "3")
    assert report["deliveries"] >= 3
    assert report["seconds"] >= 0.25
    assert report["deliveries_per_s"] < 12


@contextmanager
def commanded(program: Path, answer: Answer) -> Iterator[Crowd]:
    with serving(answer) as port:
        command = [str(program), "--port", str(port), "--connections", "1", "--publish"]
        with crowd([*command, "{payload}", "--warmup", "0.01", "--seconds", "0.03"]) as clients:
            yield clients


def test_clients_that_stay_add_up_slices_and_begin_anew(loadgen: Path) -> None:
    with commanded(loadgen, echo) as clients:
        first, second = clients.measure(1), clients.measure(1)
        assert 0.03 <= first < second
        both = clients.report()
        assert both["seconds"] == pytest.approx(second, abs=1e-5)
        assert both["deliveries"] < both["verified"]
        assert both["in_flight"] == 1
        assert clients.measure(8) < second
        assert clients.report()["in_flight"] == 8


def test_clients_that_stay_notice_what_comes_too_late(loadgen: Path) -> None:
    went_on = threading.Event()

    def echo_twice_in_the_end(number: int, payload: bytes) -> list[bytes]:
        return [frame(payload)] * (2 if went_on.is_set() else 1)

    with commanded(loadgen, echo_twice_in_the_end) as clients:
        clients.measure(1)
        went_on.set()
        with pytest.raises(Failed, match="expected number"):
            clients.measure(1)
        with pytest.raises(Failed):
            clients.report()


def test_several_objects_in_a_frame_and_frames_in_pieces(loadgen: Path) -> None:
    held: list[bytes] = []

    def four_together(number: int, payload: bytes) -> list[bytes]:
        if not 4 <= number < 8:
            return [frame(payload)]
        held.append(b'{"data":"' + payload + b'"}')
        if number < 7:
            return []
        whole = frame(b"\n".join(held))
        return [whole[:1], whole[1:50], whole[50:]]

    # All four are in flight together: the server may wait for the last before it answers any.
    assert load(loadgen, four_together, "--in-flight", "4")["deliveries"] > 8


def test_a_ping_between_deliveries_is_answered(loadgen: Path) -> None:
    pongs: list[bytes] = []

    def with_ping(number: int, payload: bytes) -> list[bytes]:
        if payload == b"pong!":
            pongs.append(payload)
            return []
        return [frame(b"ping?\n" + payload)] if number == 2 else [frame(payload)]

    report = load(loadgen, with_ping, "--ping", "ping?", "--pong", "pong!")
    assert report["pings"] == 1
    assert pongs == [b"pong!"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        pytest.param(lambda p: [frame(p), frame(p)], "expected number 4", id="twice"),
        pytest.param(lambda p: [frame(p + p)], "expected number 4", id="twice in one object"),
        pytest.param(lambda p: [], "expected number 3", id="lost"),
        pytest.param(lambda p: [frame(p[:-1] + b"!")], "expected number 3", id="changed"),
        pytest.param(lambda p: [frame(p[:40])], "expected number 3", id="cut short"),
        pytest.param(lambda p: [struct.pack("!BBH", 0x88, 2, 4502)], "4502", id="closed"),
        pytest.param(lambda p: [b"\x81\x81aaaab"], "masked", id="masked"),
        pytest.param(lambda p: [frame(b'{"type":"error"}')], "the server said", id="error"),
    ],
)
def test_a_wrong_server_ends_the_run(
    loadgen: Path, wrong: Callable[[bytes], list[bytes]], complaint: str
) -> None:
    def answer(number: int, payload: bytes) -> list[bytes]:
        return wrong(payload) if number == 3 else [frame(payload)]

    with pytest.raises(Failed, match=complaint):
        load(loadgen, answer, "--fail", '"error"')


def test_a_server_that_falls_silent_ends_the_run(loadgen: Path) -> None:
    def answer(number: int, payload: bytes) -> list[bytes]:
        return [frame(payload)] if number < 20 else []

    with pytest.raises(Failed, match="never arrived"):
        load(loadgen, answer)


def swapped() -> Answer:
    """Give number 4 before number 3, and all else in order."""
    held: list[bytes] = []

    def answer(number: int, payload: bytes) -> list[bytes]:
        if number == 3:
            held.append(frame(payload))
            return []
        return [frame(payload), *held] if number == 4 else [frame(payload)]

    return answer


def test_order_is_insisted_on(loadgen: Path) -> None:
    with pytest.raises(Failed, match="expected number 3"):
        load(loadgen, swapped(), "--in-flight", "2")


def test_reordering_is_counted_where_it_is_allowed(loadgen: Path) -> None:
    report = load(loadgen, swapped(), "--in-flight", "2", "--unordered")
    assert report["deliveries"] > 5
    assert report["reordered"] == 1


def test_a_duplicate_is_noticed_where_order_is_free(loadgen: Path) -> None:
    def answer(number: int, payload: bytes) -> list[bytes]:
        return [frame(payload)] * (2 if number == 3 else 1)

    with pytest.raises(Failed, match="expected number 4"):
        load(loadgen, answer, "--unordered")
