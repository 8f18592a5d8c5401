"""A Kafka broker of the test's own: the mock cluster of librdkafka, as `confluent-kafka` ships it.

with KafkaServer() as kafka:
    kafka.url                         # "kafka://127.0.0.1:…"
    kafka.topic("name", partitions=4)
    kafka.down(); kafka.up()          # connections are cut and refused; the port stays

It speaks Kafka's protocol over TCP and keeps topics in memory, with groups, offsets and fetches. It
is not Apache Kafka: it answers a fetch that finds nothing only after the time the consumer lets it
wait, also when something arrives meanwhile.
"""

from __future__ import annotations

import ctypes
from importlib import metadata

import confluent_kafka  # noqa: F401 - loads the library with all that it needs

from tests.support.processes import Block

_PRODUCER = 0


def _library() -> ctypes.CDLL:
    for file in metadata.files("confluent-kafka") or ():
        if file.name.startswith("librdkafka"):
            library = ctypes.CDLL(str(file.locate()))
            break
    else:
        raise RuntimeError("confluent-kafka comes without its librdkafka here")
    for name, result, arguments in (
        ("rd_kafka_conf_new", ctypes.c_void_p, []),
        (
            "rd_kafka_new",
            ctypes.c_void_p,
            [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
        ),
        ("rd_kafka_destroy", None, [ctypes.c_void_p]),
        ("rd_kafka_mock_cluster_new", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
        ("rd_kafka_mock_cluster_destroy", None, [ctypes.c_void_p]),
        ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, [ctypes.c_void_p]),
        (
            "rd_kafka_mock_topic_create",
            ctypes.c_int,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
        ),
        ("rd_kafka_mock_broker_set_down", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class KafkaServer(Block):
    """One broker, in a thread of the library's own."""

    def __init__(self) -> None:
        self._library = _library()
        self._handle: int | None = None
        self._cluster: int | None = None

    def start(self) -> None:
        text = ctypes.create_string_buffer(512)
        self._handle = self._library.rd_kafka_new(
            _PRODUCER, self._library.rd_kafka_conf_new(), text, 512
        )
        assert self._handle, text.value.decode()
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._handle, 1)
        assert self._cluster, "no mock cluster"
        self.topic("starlette_realtime")

    @property
    def address(self) -> str:
        bootstraps: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return bootstraps.decode().replace("localhost", "127.0.0.1")

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic. One that is used without having been made has four partitions."""
        error = self._library.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, 1
        )
        assert not error, f"no topic {name}: error {error}"

    def down(self) -> None:
        assert not self._library.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def up(self) -> None:
        assert not self._library.rd_kafka_mock_broker_set_up(self._cluster, 1)

    def stop(self) -> None:
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        if self._handle:
            self._library.rd_kafka_destroy(self._handle)
