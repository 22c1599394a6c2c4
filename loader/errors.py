"""Every error that the loader raises, as one small tree.

Each error carries its facts as attributes (``error.argument``, ``error.expected``, ``error.got`` ...) and says them
in its message. Where Python has a class of the same meaning, the error is also one of those.

    LoaderError
      ExpressionError
      PackError: ManifestError (ManifestSyntaxError, SchemaError), IntegrityError, PackPathError, MissingFileError,
                 DuplicateError, PackNotFoundError,
                 SignatureError (UnsignedError, SignatureSyntaxError, UntrustedSignerError, WrongSignatureError)
      TrustError (KeyFileError), TuningError, MissingPackageError
      SelectionError: UnknownKernelError, UnknownVariantError, UnknownArchError, NoKernelError
      ArgumentError: MissingArgumentError, UnknownArgumentError, DuplicateArgumentError, BufferProtocolError,
                     DtypeError, RankError, ShapeError, StrideError, AlignmentError, DeviceError (HostBufferError),
                     ReadOnlyError, OverlapError, ScalarError, ConstraintError, ValuesError, StreamError
      DriverError: DriverNotFoundError, DriverTooOldError, CudaError, ParameterLayoutError
      CaptureError, ForkError, LaunchLimitError, EmulationError (EmulatedFaultError), SettingError
      TransferError: ReferenceFormatError, UnreachableError, UnauthorizedError, AbsentError, RegistryAnswerError,
                     StoreError
"""

from __future__ import annotations

from typing import Any


class LoaderError(Exception):
    """Base of all errors of this package. ``facts`` become attributes."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts
        self.__dict__.update(facts)


class ExpressionError(LoaderError, ValueError):
    """An expression of a manifest is malformed or has no value."""


# Packs


class PackError(LoaderError):
    """A pack cannot be used. Facts: ``pack`` (directory), ``file`` where one is concerned."""


class ManifestError(PackError, ValueError):
    """The manifest says something that docs/manifest.md does not allow. Facts: ``where``, ``expected``, ``got``."""


class ManifestSyntaxError(ManifestError):
    """The manifest is not a JSON document (truncated, trailing bytes, not UTF-8, duplicate keys)."""


class SchemaError(ManifestError):
    """The manifest's ``schema`` or ``abi`` is outside the range that this loader reads."""


class IntegrityError(PackError):
    """A file's bytes are not those that the manifest names. Facts: ``file``, ``expected``, ``got``."""


class PackPathError(PackError, ValueError):
    """A file name in a manifest leaves its pack."""


class MissingFileError(PackError, FileNotFoundError):
    """A file that the manifest names does not exist."""


class DuplicateError(PackError, ValueError):
    """Two packs, or two entries of one, define the same thing differently."""


class PackNotFoundError(PackError, FileNotFoundError):
    """No pack was found. Fact: ``tried``."""


class SignatureError(PackError):
    """A pack is not signed as the policy asks; nothing of its manifest was parsed. Facts: ``pack``, ``file``."""


class UnsignedError(SignatureError, FileNotFoundError):
    """A pack has no signature file."""


class SignatureSyntaxError(SignatureError, ValueError):
    """A signature file is not what docs/manifest.md allows. Facts: ``expected``, ``got``."""


class UntrustedSignerError(SignatureError):
    """No pinned key has signed the pack. Facts: ``expected``, the pinned ids, and ``got``, those that signed."""


class WrongSignatureError(SignatureError):
    """The signature of a pinned key is not one of the manifest's bytes. Fact: ``signer``, the id of the key."""


# Trust


class TrustError(LoaderError, ValueError):
    """A policy is no such word, or asks for keys and there are none. Facts: ``expected``, ``got``."""


class KeyFileError(TrustError):
    """A file holds no key that can be used. Facts: ``file``, ``expected``, ``got``."""


class TuningError(LoaderError, ValueError):
    """A file of tuned rows or of problems cannot be used, or a problem not be timed. Facts: ``expected``, ``got``."""


class MissingPackageError(LoaderError, ImportError):
    """A package that a launch needs for nothing else is not installed. Facts: ``missing``, ``extra``."""


# Selection


class SelectionError(LoaderError):
    """No kernel can be chosen."""


class UnknownKernelError(SelectionError, KeyError):
    """No pack has a family of this name. Facts: ``name``, ``known``, ``closest``."""

    __str__ = Exception.__str__  # KeyError's would quote the message


class UnknownVariantError(SelectionError, KeyError):
    """The family has no variant of this name. Facts: ``name``, ``variant``, ``known``, ``closest``."""

    __str__ = Exception.__str__


class UnknownArchError(SelectionError, ValueError):
    """A name is no known architecture."""


class NoKernelError(SelectionError):
    """No candidate fits device and problem. Fact: ``decisions``, one per candidate with its reason."""


# Arguments


class ArgumentError(LoaderError):
    """An argument of a call is wrong. Facts: ``kernel``, ``argument``, ``expected``, ``got``."""


class MissingArgumentError(ArgumentError, TypeError):
    """An argument was not given."""


class UnknownArgumentError(ArgumentError, TypeError):
    """The kernel has no argument of this name, or fewer positional ones."""


class DuplicateArgumentError(ArgumentError, TypeError):
    """An argument was given twice."""


class BufferProtocolError(ArgumentError, TypeError):
    """An object offers no buffer that the loader can read (DLPack or CUDA array interface)."""


class DtypeError(ArgumentError, TypeError):
    """A buffer's element type is not one that the argument takes."""


class RankError(ArgumentError, ValueError):
    """A buffer has the wrong number of dimensions."""


class ShapeError(ArgumentError, ValueError):
    """A dimension does not follow from the others."""


class StrideError(ArgumentError, ValueError):
    """A buffer is not row major and contiguous."""


class AlignmentError(ArgumentError, ValueError):
    """A buffer's address is not a multiple of what the kernel needs."""


class DeviceError(ArgumentError, ValueError):
    """A buffer lies on another device than the others or than the one asked for."""


class HostBufferError(DeviceError):
    """A host buffer where a device buffer is needed."""


class ReadOnlyError(ArgumentError, ValueError):
    """An output buffer is read-only."""


class OverlapError(ArgumentError, ValueError):
    """An output buffer shares memory with another argument."""


class ScalarError(ArgumentError, TypeError):
    """A scalar has the wrong type or does not fit its type."""


class ConstraintError(ArgumentError, ValueError):
    """The problem breaks a constraint of the family. Facts: ``constraint``, ``values``."""


class ValuesError(ArgumentError, ValueError):
    """An entry of offsets, counts or indices is none that the kernel can follow."""


class StreamError(ArgumentError, TypeError):
    """An object is no stream."""


# Driver


class DriverError(LoaderError, RuntimeError):
    """The CUDA driver refuses or is not there."""


class DriverNotFoundError(DriverError):
    """No CUDA driver library on this machine. Fact: ``tried``."""


class DriverTooOldError(DriverError):
    """The driver lacks a function that the loader calls. Facts: ``function``, ``version``."""


class CudaError(DriverError):
    """A driver call failed. Facts: ``call``, ``code``, ``name``, ``text`` and the call's context."""


class ParameterLayoutError(DriverError):
    """The driver reports other kernel parameters than the manifest. Facts: ``kernel``, ``expected``, ``got``."""


class CaptureError(LoaderError, RuntimeError):
    """A module would have to be loaded while the stream is being captured."""


class ForkError(LoaderError, RuntimeError):
    """The process was forked after CUDA had been initialised."""


class LaunchLimitError(LoaderError, ValueError):
    """Grid, block, cluster or shared memory exceed what the device can do. Facts: ``limit``, ``got``."""


class SettingError(LoaderError, ValueError):
    """A variable of the environment says what cannot be done. Facts: ``variable``, ``expected``, ``got``."""


class EmulationError(LoaderError, RuntimeError):
    """The emulated device cannot run this call. Facts say why and how to go on."""


class EmulatedFaultError(EmulationError):
    """A kernel went wrong on the emulated device. Facts: ``kernel``, ``variant``, ``text``; the cause is the fault."""


# Push and pull


class TransferError(LoaderError):
    """A pack cannot be pushed or pulled. Fact: ``registry`` where one was asked."""


class ReferenceFormatError(TransferError, ValueError):
    """A text names no pack in a registry. Fact: ``reference``."""


class UnreachableError(TransferError, ConnectionError):
    """The registry does not answer, or stopped in the middle. Facts: ``registry``, ``url``."""


class UnauthorizedError(TransferError, PermissionError):
    """The registry wants other credentials than it got, or cannot be given those there are. Fact: ``registry``."""


class AbsentError(TransferError, LookupError):
    """The registry has no such tag, digest or blob. Facts: ``registry``, ``url``."""


class RegistryAnswerError(TransferError):
    """The registry gave an answer that the protocol does not allow here. Facts: ``registry``, ``url``, ``status``."""


class StoreError(TransferError, OSError):
    """The store cannot be written. Fact: ``file``."""


__all__ = sorted(
    name for name, value in list(globals().items()) if isinstance(value, type) and issubclass(value, LoaderError)
)
