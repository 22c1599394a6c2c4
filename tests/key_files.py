"""Keys as their owners keep them: PEM files."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

PEM = serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def private_pem(key, password=None):
    """As ``openssl genpkey -algorithm ed25519`` writes it."""
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden)


def public_pem(key):
    """As ``openssl pkey -pubout`` writes it."""
    return key.public_key().public_bytes(PEM, SPKI)


class Owner:
    """Who holds a key: the files of both halves."""

    def __init__(self, folder, name):
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.private, self.public = str(folder / f"{name}.pem"), str(folder / f"{name}.pub.pem")
        (folder / f"{name}.pem").write_bytes(private_pem(self.key))
        (folder / f"{name}.pub.pem").write_bytes(public_pem(self.key))
