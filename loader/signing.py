"""Signing a pack: a signature beside its manifest, of whoever holds the private key."""

from __future__ import annotations

import os

from . import files, registry, trust
from .errors import PackError
from .trust import SIGNATURE_NAME


def sign(directory: str, key_file: str) -> str:
    """Add the signature of a private key to a pack, or replace the one that it made before; the id of the key.

    The pack must be whole: every file is compared with the manifest before that is signed. Signatures of other keys
    stay.
    """
    key = trust.read_private_key(key_file)
    signer = trust.key_id(key.public_key())
    pack, data = registry.read_pack(directory)
    for outcome in registry.verify_files(pack):
        if outcome.error is not None:
            raise outcome.error
    before = registry.read_signature(directory)
    signatures = {} if before is None else trust.from_text(before, directory)
    content = trust.to_text({**signatures, signer: key.sign(data)})
    trust.from_text(content, directory)  # what a loader would refuse, such as too many, is not written
    try:
        files.replace(os.path.join(directory, SIGNATURE_NAME), content)
    except OSError as error:
        raise PackError(f"{SIGNATURE_NAME} in pack {directory} cannot be written: {error.strerror}", pack=directory,
                        file=SIGNATURE_NAME) from error
    return signer
