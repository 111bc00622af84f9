"""A certificate authority for tests, and certificates for nodes."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = timedelta(days=1)


def _certificate(name: str, signed_by: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, signed_by))
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    made = made.serial_number(x509.random_serial_number())
    return made.not_valid_before(now - DAY).not_valid_after(now + DAY)


def ray_tls_settings(folder: Path, addresses: list[str]) -> dict[str, str]:
    """Make an authority and a node's certificate for addresses; returns what Ray needs in its environment."""
    folder.mkdir()
    authority, node = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("authority", "authority", authority.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(text)) for text in addresses)]
    leaf = _certificate("node", "authority", node.public_key()).add_extension(
        x509.SubjectAlternativeName(names), critical=False
    )
    encoding = serialization.Encoding.PEM
    key = node.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = {
        "RAY_TLS_CA_CERT": root.sign(authority, hashes.SHA256()).public_bytes(encoding),
        "RAY_TLS_SERVER_CERT": leaf.sign(authority, hashes.SHA256()).public_bytes(encoding),
        "RAY_TLS_SERVER_KEY": key,
    }
    for variable, data in files.items():
        (folder / variable).write_bytes(data)
    return {"RAY_USE_TLS": "1"} | {variable: str(folder / variable) for variable in files}
