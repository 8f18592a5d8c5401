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

WRONG = 20
"""The number of a message after those that come together before anything is measured."""


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


def shake_hands(client: socket.socket) -> None:
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


def talk(client: socket.socket, answer: Answer) -> None:
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
                shake_hands(client)
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


def test_receivers_acknowledge_every_other_small_segment(loadgen: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [str(loadgen), "--port", str(listener.getsockname()[1]), "--connections", "4"]
        command += ["--publish", "{payload}", "--warmup", "0.1", "--seconds", "0.3"]
        with crowd_of(command, listener, 4) as (clients, sockets):
            shares = []
            for _ in range(5):
                before = [segments(one) for one in sockets[1:]]
                clients.measure(1)
                after = [segments(one) for one in sockets[1:]]
                sent, heard = (
                    sum(now[which] - was[which] for was, now in zip(before, after, strict=True))
                    for which in (0, 1)
                )
                assert sent > 30
                shares.append(heard / sent)
    # During most of the warm-up they acknowledge all, and after a pause of 40 ms, too.
    assert min(shares) < 0.85


def segments(server: socket.socket) -> tuple[int, int]:
    """Return how many segments with data a socket has sent, and how many it has received."""
    info = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    received, sent = struct.unpack_from("=I12xI", info, 140)
    return sent, received


def unchanged(number: int, payload: bytes) -> bytes:
    return payload


@contextmanager
def crowd_of(
    command: list[str],
    listener: socket.socket,
    count: int,
    for_the_last: Callable[[int, bytes], bytes] = unchanged,
) -> Iterator[tuple[Crowd, list[socket.socket]]]:
    """Give to all clients what the first one says; to the last one what is made of it."""
    sockets: list[socket.socket] = []

    def broadcast(number: int, payload: bytes) -> list[bytes]:
        for other in sockets[1:-1]:
            other.sendall(frame(payload))
        sockets[-1].sendall(frame(for_the_last(number, payload)))
        return [frame(payload)]

    def serve() -> None:
        for _ in range(count):
            sockets.append(listener.accept()[0])
            sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            shake_hands(sockets[-1])
        talk(sockets[0], broadcast)

    thread = threading.Thread(target=serve)
    thread.start()
    with crowd(command) as clients:
        yield clients, sockets
    thread.join(10)
    assert not thread.is_alive()
    for one in sockets:
        one.close()


def test_a_server_slower_than_the_run_is_measured_over_whole_broadcasts(loadgen: Path) -> None:
    def slow(number: int, payload: bytes) -> list[bytes]:
        time.sleep(0.1)
        return [frame(payload)]

    report = load(loadgen, slow, "--seconds", "0.12", "--in-flight", "3", "--timeout", "20")
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
        if not WRONG <= number < WRONG + 4:
            return [frame(payload)]
        held.append(b'{"data":"' + payload + b'"}')
        if number < WRONG + 3:
            return []
        whole = frame(b"\n".join(held))
        return [whole[:1], whole[1:50], whole[50:]]

    # All four are in flight together: the server may wait for the last before it answers any.
    assert load(loadgen, four_together, "--in-flight", "4")["deliveries"] > WRONG


def test_a_ping_between_deliveries_is_answered(loadgen: Path) -> None:
    pongs: list[bytes] = []

    def with_ping(number: int, payload: bytes) -> list[bytes]:
        if payload == b"pong!":
            pongs.append(payload)
            return []
        return [frame(b"ping?\n" + payload)] if number == WRONG else [frame(payload)]

    report = load(loadgen, with_ping, "--ping", "ping?", "--pong", "pong!")
    assert report["pings"] == 1
    assert pongs == [b"pong!"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        pytest.param(lambda p: [frame(p), frame(p)], f"expected number {WRONG + 1}", id="twice"),
        pytest.param(
            lambda p: [frame(p + p)], f"expected number {WRONG + 1}", id="twice in one object"
        ),
        pytest.param(lambda p: [], "never arrived", id="lost"),
        pytest.param(lambda p: [frame(p[:-1] + b"!")], f"expected number {WRONG}", id="changed"),
        pytest.param(lambda p: [frame(p[:40])], f"expected number {WRONG}", id="cut short"),
        pytest.param(lambda p: [struct.pack("!BBH", 0x88, 2, 4502)], "4502", id="closed"),
        pytest.param(lambda p: [b"\x81\x81aaaab"], "masked", id="masked"),
        pytest.param(lambda p: [frame(b'{"type":"error"}')], "the server said", id="error"),
    ],
)
def test_a_wrong_server_ends_the_run(
    loadgen: Path, wrong: Callable[[bytes], list[bytes]], complaint: str
) -> None:
    def answer(number: int, payload: bytes) -> list[bytes]:
        return wrong(payload) if number == WRONG else [frame(payload)]

    with pytest.raises(Failed, match=complaint):
        load(loadgen, answer, "--fail", '"error"')


@pytest.mark.parametrize("in_flight", [1, 16])
@pytest.mark.parametrize("place", [5, -1])
def test_each_connection_is_checked(loadgen: Path, place: int, in_flight: int) -> None:
    """Whatever others have received at the same place."""

    def one_byte_off(number: int, payload: bytes) -> bytes:
        if number < WRONG:
            return payload
        changed = bytearray(payload)
        changed[place] ^= 1
        return bytes(changed)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [str(loadgen), "--port", str(listener.getsockname()[1]), "--connections", "3"]
        command += ["--publish", "{payload}", "--warmup", "0.1", "--seconds", "0.3"]
        with (
            crowd_of(command, listener, 3, one_byte_off) as (clients, _),
            pytest.raises(Failed, match=r"connection [12]: expected number"),
        ):
            clients.measure(in_flight)
            clients.report()


def swapped() -> Answer:
    """Give one before the one ahead of it, and all else in order."""
    held: list[bytes] = []

    def answer(number: int, payload: bytes) -> list[bytes]:
        if number == WRONG:
            held.append(frame(payload))
            return []
        return [frame(payload), *held] if number == WRONG + 1 else [frame(payload)]

    return answer


def test_order_is_insisted_on(loadgen: Path) -> None:
    with pytest.raises(Failed, match=f"expected number {WRONG}"):
        load(loadgen, swapped(), "--in-flight", "2")


def test_reordering_is_counted_where_it_is_allowed(loadgen: Path) -> None:
    report = load(loadgen, swapped(), "--in-flight", "2", "--unordered")
    assert report["deliveries"] > 5
    assert report["reordered"] == 1


def test_a_duplicate_is_noticed_where_order_is_free(loadgen: Path) -> None:
    def answer(number: int, payload: bytes) -> list[bytes]:
        return [frame(payload)] * (2 if number == WRONG else 1)

    with pytest.raises(Failed, match=f"expected number {WRONG + 1}"):
        load(loadgen, answer, "--unordered")
