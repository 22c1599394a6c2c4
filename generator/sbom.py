"""What a wheel is made of, as a software bill of materials in CycloneDX: PEP 770 has it in the wheel's metadata."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def document(name: str, version: str, dependencies: Sequence[str], manifest: bytes, epoch: int) -> bytes:
    """The bill of distribution ``name``, whose pack has this manifest; equal arguments give equal bytes.

    The manifest has a digest of every kernel, so the kernels are one component with the digest of the manifest.
    """
    facts = json.loads(manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    licences = [LicenseFactory().make_with_id("Apache-2.0")]
    whole = Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=name, licenses=licences,
                      purl=PackageURL("pypi", name=name, version=version))  # fmt: skip
    archs = sorted({artifact["arch"] for artifact in facts["artifacts"]})
    built = {"archs": " ".join(archs), "artifacts": str(len(facts["artifacts"])), "nvcc": facts["toolchain"]["nvcc"],
             "flags": " ".join(facts["toolchain"]["flags"]), "source_digest": facts["source_digest"]}  # fmt: skip
    kernels = Component(name=f"{name} kernels", version=facts["source_digest"][:12], type=ComponentType.DATA,
                        bom_ref="kernels", licenses=licences,
                        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
                        properties=[Property(name=key, value=value) for key, value in built.items()])  # fmt: skip
    needed = [Component(name=entry, type=ComponentType.LIBRARY, bom_ref=entry, purl=PackageURL("pypi", name=entry))
              for entry in dependencies]
    bill = Bom(components=[kernels, *needed], metadata=BomMetaData(component=whole),
               serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {version} {digest}"))  # fmt: skip
    bill.metadata.timestamp = datetime.fromtimestamp(epoch, timezone.utc)
    bill.register_dependency(whole, bill.components)
    return (JsonV1Dot6(bill).output_as_string(indent=1) + "\n").encode()
