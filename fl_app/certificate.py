"""A certificate that lives as long as one listening socket and is trusted by name of its bytes."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_ALWAYS = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)
"""Devices know the certificate itself, so a device whose clock is wrong need not refuse it."""


def device_name(device: int) -> str:
    """Returns the common name that the certificate of the device with this partition id bears."""
    return f"deft-device-{device}"


def subject_of(name: str) -> x509.Name:
    """Returns the subject of a certificate: this common name and nothing else."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def make_certificate(name: str = "deft-stream") -> tuple[bytes, bytes]:
    """Makes a new key (P-256) and a certificate signed with it.

    Args:
        name: its common name, 1 to 64 characters. Where several certificates are trusted at once
            the TLS library looks them up by name first, so each needs its own.

    Returns:
        (certificate, private key), both PEM; the key is not encrypted and is meant to stay in
        memory.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = subject_of(name)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_ALWAYS[0])
        .not_valid_after(_ALWAYS[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
