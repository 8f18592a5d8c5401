"""Ports and certificates of one's own."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def listening_socket(host: str = "127.0.0.1") -> socket.socket:
    """A socket bound to a free port: nobody can take it between the choice and the use."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    return sock


def free_port(below: int = 65536) -> int:
    """A port that was free just now, for servers that bind it themselves.

    `below` is for servers that take a second port at a fixed distance (Redis Cluster: 10 000
    above).
    """
    for _ in range(1000):
        with listening_socket() as sock:
            port: int = sock.getsockname()[1]
        if port < below:
            return port
    raise RuntimeError(f"no free port below {below}")


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections at the port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate."""

    certfile: Path
    keyfile: Path

    @classmethod
    def make(cls, folder: Path, *, address: bool = True) -> Certificate:
        """Make one for localhost and, unless told otherwise, 127.0.0.1."""
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        if address:
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        made = cls(folder / "cert.pem", folder / "key.pem")
        made.certfile.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.keyfile.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return made

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certfile))
