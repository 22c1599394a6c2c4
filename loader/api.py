"""What ``import loader`` offers, but for its errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import buffer_specs, driver, explanation, facts, module, observers, registry, select
from .buffer_specs import BufferSpec
from .call import Call, target
from .composite import CompositeCall, CompositeCalls
from .errors import DeviceError, UnknownKernelError, UnknownVariantError
from .explanation import Explanation
from .facts import ArtifactInfo, KernelInfo, PackInfo
from .manifest import Family
from .module import Unloaded
from .observe import Launch, on_launch
from .overloads import OverloadedCall, overloads
from .plan import Plan
from .registry import Verified, verify
from .tracing import COMPILER, breaks_graph, leave_alone, untraced, watched
from .trust import Trust, asked

__all__ = ["ArtifactInfo", "BufferSpec", "Explanation", "KernelInfo", "Launch", "Loaded", "PackInfo", "Plan", "Trust",
           "Unloaded", "Verified", "buffers", "check", "explain", "kernels", "launch", "on_launch", "outputs", "packs",
           "plan", "preload", "reload", "unload", "verify", "workspace_bytes"]

_modules = sys.modules
_calls: dict[Any, Call | CompositeCalls | OverloadedCall] = {}


def _call(name: str, device: Any, variant: str | None, packs: Any,
          trust: Trust | None) -> Call | CompositeCalls | OverloadedCall:
    """Made once for what the call says; a ``trust`` of None is what the environment says then."""
    packs, trust = registry.directories_given(packs), None if trust is None else asked(trust)
    key, calls = (name, device, type(device), variant, packs, trust), _calls
    try:
        found = calls.get(key)
    except TypeError:  # what cannot be hashed is no name of anything, and Call says which it is
        return Call(name, device, variant, registry.registry(packs, trust))
    if found is None:
        found = calls[key] = _new_call(name, device, variant, registry.registry(packs, trust))
    return found


def _new_call(name: str, device: Any, variant: str | None,
              found: registry.Registry) -> Call | CompositeCalls | OverloadedCall:
    observers.from_environment()
    if name not in found.composites:
        call, *others = [Call(each, device, variant, found) for each in (name, *overloads(found, name))]
        return OverloadedCall(call, others) if others else call
    if variant is not None:
        raise UnknownVariantError(f"{name} runs several kernels and has no variants, got {variant!r}", name=name,
                                  variant=variant, known=[], closest=[])
    return CompositeCalls(name, device, found)


def call_of(name: str, device: Any, variant: str | None, packs: Any, trust: Trust | None,
             kwargs: Any) -> tuple[Call, Any]:
    """The one kernel or composite that takes these arguments, and the arguments for it."""
    call = _call(name, device, variant, packs, trust)
    return (call, kwargs) if isinstance(call, Call) else call.of(kwargs)


@breaks_graph
def launch(name: str, /, *args: Any, stream: Any = None, device: Any = None, variant: str | None = None,
           packs: Sequence[str] | None = None, trust: Trust | None = None, **kwargs: Any) -> None:
    """Run a kernel, or the kernels of a composite, on buffers of any framework.

    Arguments go by position or name, as ``kernels()`` lists them; results are written into the buffers given for
    outputs. ``stream``: a handle or a stream object, None for the producers' current stream. ``device``: None for the
    buffers' own, or an ordinal, ``"cuda:1"``, ``"emulated:120a"``. ``variant``: None to let measurements choose.
    ``packs``, ``trust``: which packs are used, and who must have signed them; None for what the environment says.
    Returns as soon as the kernel is queued. Raises a ``LoaderError``; then nothing was launched.
    """
    if COMPILER in _modules and watched():
        leave_alone(launch)(name, *args, stream=stream, device=device, variant=variant, packs=packs, trust=trust,
                            **kwargs)
        return
    if packs is trust is None:
        try:
            call = _calls[name, device, type(device), variant, None, None]
        except (KeyError, TypeError):
            call = _call(name, device, variant, None, None)
    else:
        call = _call(name, device, variant, packs, trust)
    call.launch(args, kwargs, stream)


@untraced
def plan(name: str, /, *args: Any, stream: Any = None, device: Any = None, variant: str | None = None,
         packs: Sequence[str] | None = None, trust: Trust | None = None, **kwargs: Any) -> Plan:
    """Do everything of ``launch`` but the launch, once. ``stream`` only serves to refuse loading during its capture."""
    return _call(name, device, variant, packs, trust).plan(args, kwargs, stream)


@untraced
def check(name: str, /, *args: Any, stream: Any = None, device: Any = None, variant: str | None = None,
          packs: Sequence[str] | None = None, trust: Trust | None = None, **kwargs: Any) -> None:
    """Make every check of ``launch``, and those of offsets, counts and indices, but launch nothing: for debugging.

    The values are copied from the device behind what is queued on ``stream``, and waited for. A launch on host buffers
    makes these checks itself. What the steps of a composite hand on needs none. Raises a ``LoaderError``.
    """
    plan(name, *args, stream=stream, device=device, variant=variant, packs=packs, trust=trust,
         **kwargs).check_values(stream)


class Loaded(NamedTuple):
    """An artifact that ``preload`` has put on a device."""

    kernel: str
    variant: str
    arch: str
    device: int


@breaks_graph
def preload(*names: str, device: int | Sequence[int] | None = None, variant: str | None = None,
            packs: Sequence[str] | None = None, trust: Trust | None = None) -> list[Loaded]:
    """Verify and load every artifact that could run on the device, so that later launches load nothing.

    ``names``: kernels and composites, none for all. ``device``: an ordinal or several, None for the current one.
    Needed before a stream is captured into a graph.
    """
    found = registry.registry(packs, trust)
    families = _families_of(found, names)
    loaded = []
    for place in [ordinal(entry) for entry in (device if isinstance(device, (list, tuple)) else [device])]:
        on = driver.get().device(place)
        for family in families:
            for candidate in select.runnable(found, family, on.facts, variant):
                module.function(candidate, on, 0)
                artifact = candidate.artifact
                loaded.append(Loaded(family.name, artifact.variant, artifact.arch, place))
    return loaded


def _families_of(found: registry.Registry, names: Sequence[str]) -> list[Family]:
    """The families of kernels and composites, all where none is named."""
    kernels = [kernel for name in names for kernel in _kernels_of(found, name)]
    return [found.family(name) for name in dict.fromkeys(kernels)] or list(found.families.values())


def _kernels_of(found: registry.Registry, name: str) -> list[str]:
    """The families that a name stands for: its own, or those of a composite's steps."""
    composite = found.composites.get(name) if isinstance(name, str) else None
    return [step.kernel for step in composite.steps] if composite else [name]


def ordinal(device: Any) -> int:
    """Of the CUDA device that is asked for, or the current one."""
    asked = target(device)
    if asked.kind == "emulated":
        raise DeviceError("device: the emulated device loads nothing", argument="device", expected="a CUDA device",
                          got=device)
    return asked.ordinal if asked.ordinal is not None else driver.get().current_device()


@untraced
def explain(name: str, /, *args: Any, device: Any = None, variant: str | None = None,
            packs: Sequence[str] | None = None, trust: Trust | None = None, **kwargs: Any) -> Explanation:
    """Which artifact a call would run and why, every candidate with its reason. Launches and loads nothing.

    Takes the call's buffers, or its problem as numbers and dtypes: ``explain("grouped_fp4", M=128, N=2048, K=7168,
    E=8, out="bf16", device="120a")``. ``device`` may name an architecture that is not there.
    """
    if isinstance(device, str) and (device[:1].isdigit() or device.startswith(("sm_", "compute_"))):
        device = f"emulated:{device}"  # an architecture, or one that is refused with those that are known
    call, kwargs = call_of(name, device, variant, packs, trust, kwargs)
    return explanation.explain(call, args, kwargs)


@untraced
def workspace_bytes(name: str, /, *args: Any, packs: Sequence[str] | None = None, trust: Trust | None = None,
                    **kwargs: Any) -> int:
    """Bytes of the workspace that a composite needs for a problem in one go, given as for ``explain``.

    A smaller one makes the call go in chunks.
    """
    call, kwargs = call_of(name, None, None, packs, trust, {**kwargs, "workspace": None})
    if not isinstance(call, CompositeCall):
        raise UnknownKernelError(f"{name} is one kernel and takes no workspace", name=name, known=[], closest=[])
    return call.workspace_bytes(explanation.problem_of(call, args, kwargs)[0].values)


@breaks_graph
def kernels(packs: Sequence[str] | None = None, trust: Trust | None = None) -> dict[str, KernelInfo]:
    """Every kernel of the packs by name."""
    return {info.name: info for info in facts.kernels(registry.registry(packs, trust))}


@breaks_graph
def packs(packs: Sequence[str] | None = None, trust: Trust | None = None) -> tuple[PackInfo, ...]:
    """The packs that a call with these ``packs`` and this ``trust`` uses."""
    return facts.packs(registry.registry(packs, trust))


@untraced
def buffers(name: str, /, *args: Any, packs: Sequence[str] | None = None, trust: Trust | None = None,
            **kwargs: Any) -> dict[str, BufferSpec]:
    """What every buffer of a call must be, by argument; a composite's workspace is that of one go.

    Takes what is known of the call: its buffers, or a ``BufferSpec`` or a dtype in the place of one, scalars, and
    dimensions as numbers. What the kernel writes need not be given, nor an input where no buffer is. Raises what a
    launch raises, and a ``MissingArgumentError`` that names a dimension that follows from nothing.
    """
    call, kwargs = call_of(name, None, None, packs, trust, kwargs)
    return buffer_specs.buffers(call, args, kwargs)


@untraced
def outputs(name: str, /, *args: Any, packs: Sequence[str] | None = None, trust: Trust | None = None,
            **kwargs: Any) -> dict[str, BufferSpec]:
    """Those of ``buffers`` that the call writes: results, their scales, room for tensor maps, workspace."""
    call, kwargs = call_of(name, None, None, packs, trust, kwargs)
    return buffer_specs.written(call.family, buffer_specs.buffers(call, args, kwargs))


@breaks_graph
def unload(*names: str, packs: Sequence[str] | None = None, trust: Trust | None = None) -> list[Unloaded]:
    """Give the memory of kernels back to the driver, on all devices; later launches load them anew.

    ``names``: kernels and composites. Without ``names`` all kernels of ``packs``, without either all that was loaded.
    Waits for the devices. What a plan, or a launch that has not returned, can still use stays loaded and is marked
    ``held``; CUDA graphs are not seen, and must not be replayed afterwards. ``CaptureError`` during a capture.
    """
    global _calls
    digests = None
    if names or packs is not None:
        found = registry.registry(packs, trust)
        digests = {candidate.artifact.binary.sha256 for family in _families_of(found, names)
                   for candidate in found.candidates(family.name)}
    _calls = {}  # and with it the problems that they have prepared
    return module.unload(digests)


@breaks_graph
def reload() -> None:
    """Find packs and read them and the environment anew from the next call on.

    Plans, and modules in the driver, stay as they are.
    """
    global _calls
    registry.forget()  # first: whoever finds no call makes one of packs that are read from now on
    _calls = {}
