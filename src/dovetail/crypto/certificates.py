"""Certificates that stand for themselves: each party signs its own, and its key is pinned.

There is no authority that could issue a second certificate for somebody. What identifies a party
is the *pin*: SHA-256 over its TLS key, which every other party finds in the signed terms. Keys are
P-256, since TLS libraries in use do not accept Ed25519 certificates by default.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from dovetail.errors import SettingError

VALID_DAYS = 730
_TOLERANCE = timedelta(days=2)
"""How long before it was made a certificate is valid already, for clocks that are wrong."""
_FOR_ITSELF_ALONE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=False,
    crl_sign=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A TLS key from the operating system's generator."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_of(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    now: datetime,
    hosts: Sequence[str] = (),
    days: int = VALID_DAYS,
) -> bytes:
    """A certificate for a key, signed by that key, as PEM.

    Args:
        key: the party's TLS key.
        name: the party's.
        now: from two days before this moment it is valid.
        hosts: names and addresses under which a server can be reached; empty for clients.
        days: until how many days from now.

    Raises:
        SettingError: the name is too long for a certificate (64 characters).
    """
    try:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError:
        raise SettingError("a party's name has 1 to 64 characters") from None
    builder = (
        x509.CertificateBuilder(issuer_name=subject, subject_name=subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _TOLERANCE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_FOR_ITSELF_ALONE, critical=True)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_host(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def new_certificate(
    name: str, now: datetime, hosts: Sequence[str] = (), days: int = VALID_DAYS
) -> tuple[bytes, bytes]:
    """A fresh certificate and its private key, both as PEM, the key not encrypted."""
    key = new_tls_key()
    return certificate_of(key, name, now, hosts, days), private_pem(key)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A TLS key as gRPC takes it: PEM, not encrypted. For memory, never for a file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def pin_of(certificate: bytes) -> str:
    """SHA-256 over a certificate's public key (DER SubjectPublicKeyInfo), 64 hex digits.

    Raises:
        SettingError: this is no certificate.
    """
    return pin_of_key(_read(certificate).public_key())


def pin_of_key(public: CertificatePublicKeyTypes) -> str:
    """The pin of every certificate of this key."""
    der = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def common_name(certificate: bytes) -> str:
    """The name that a certificate gives its owner; empty where it gives none."""
    names = _read(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def valid_until(certificate: bytes) -> datetime:
    """When a certificate expires."""
    return _read(certificate).not_valid_after_utc.astimezone(UTC)


def require_self_signed(certificate: bytes) -> None:
    """Raise :class:`SettingError` unless the certificate's own key signed it: its owner held it."""
    read = _read(certificate)
    try:
        read.verify_directly_issued_by(read)
    except (InvalidSignature, TypeError, ValueError):
        raise SettingError("the certificate is not signed by its own key") from None


def require_no_authority(certificate: bytes) -> None:
    """Raise :class:`SettingError` unless a certificate says that its key issues no others.

    TLS libraries take every certificate that is trusted for an authority, whatever its basic
    constraints are, unless its key usage says otherwise.
    """
    try:
        usage = _read(certificate).extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise SettingError("the certificate does not say what its key is for") from None
    if usage.key_cert_sign:
        raise SettingError("the certificate's key may issue other certificates")


def _read(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise SettingError("this is no certificate in PEM form") from None


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
