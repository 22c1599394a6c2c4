"""``python -m loader list | inspect | verify | sign | explain | diff | doctor | tune | push | pull``."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from . import __version__, api, changes, driver, expression, registry, select, signing, tuned
from .errors import LoaderError
from .explanation import signature_text, table
from .manifest import Composite, Family


def _list(options: argparse.Namespace) -> int:
    rows = [("kernel", "variants", "archs", "summary")]
    for info in api.kernels(options.packs).values():
        rows.append((info.name, str(len(info.variants)), " ".join(info.archs), info.summary))
    print(table(rows))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    found = registry.registry(options.packs)
    composite = found.composites.get(options.kernel)
    if composite is not None:
        _inspect_composite(composite)
        return 0
    family = found.family(options.kernel)
    _print_signature(family)
    rows = [("variant", "arch", "registers", "spill", "shared", "block", "bytes")]
    for candidate in found.candidates(family.name):
        a = candidate.artifact
        rows.append((a.variant, f"sm_{a.arch}", str(a.registers), str(a.spill_bytes),
                     str(a.launch.shared + a.static_shared), "x".join(map(str, a.launch.block)),
                     str(a.binary.size)))
    print("\n" + table(rows))
    return 0


def _print_signature(family: Family) -> None:
    print(f"{signature_text(family)}\n{family.summary}\n")
    for item in (*family.arguments, *family.scalars):
        print(f"  {item.name}: {item.doc}")
    for constraint in family.constraints:
        print(f"  requires {constraint.text}")


def _inspect_composite(composite: Composite) -> None:
    _print_signature(composite.signature)
    rows = [("step", "buffers and scalars that are not of the same name")]
    for step in composite.steps:
        given = [f"{name}={buffer}" for name, buffer in step.arguments.items() if name != buffer]
        given += [f"{name}={expression.to_text(value)}" for name, value in step.scalars.items() if name != value]
        rows.append((step.kernel, ", ".join(given)))
    print("\n" + table(rows))


def _verify(options: argparse.Namespace) -> int:
    required = api.Trust(keys=options.key) if options.key else None
    outcomes = api.verify(options.packs, required)
    wrong = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in wrong:
        print(outcome.error)
    total = sum(outcome.size for outcome in outcomes)
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} files verified, {total} bytes")
    for pack in registry.registry(options.packs, required).packs:
        for signer in pack.signers:
            print(f"{pack.directory} is signed by {signer}")
    return 1 if wrong else 0


def _sign(options: argparse.Namespace) -> int:
    if options.packs:
        raise SystemExit("sign: expected the pack behind the command, got --packs")
    signer = signing.sign(options.pack, options.key)
    print(f"{options.pack} is signed by {signer}")
    return 0


def _explain(options: argparse.Namespace) -> int:
    problem: dict[str, int | float | str] = {}
    for entry in options.problem:
        name, equals, value = entry.partition("=")
        if not equals:
            raise SystemExit(f"explain: {entry!r} is no NAME=VALUE")
        problem[name] = _number(value)
    explanation = api.explain(options.kernel, device=options.device, variant=options.variant, packs=options.packs,
                                 **problem)
    print(explanation)
    return 0 if explanation.variant or explanation.skipped else 1


def _diff(options: argparse.Namespace) -> int:
    before, after = map(registry.open_pack, (options.before, options.after))
    found = changes.changes(before, after)
    if found:
        print(table([changes.HEADERS, *changes.rows(found)]))
    print(f"{len(found)} of {len(before.manifest.artifacts)} and {len(after.manifest.artifacts)} artifacts differ")
    if options.html is not None:
        with open(options.html, "w", encoding="utf-8") as stream:
            stream.write(changes.page(f"{options.before} and {options.after}", found))
    return 1 if found else 0


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _doctor(options: argparse.Namespace) -> int:
    """Say what was found and what would run; 1 if no kernel can run on a GPU here."""
    print(f"loader {__version__}, Python {sys.version.split()[0]}")
    found, healthy = None, True
    try:
        found = registry.registry(options.packs)
        print(f"packs from {found.source}:")
        for pack in found.packs:
            nvcc = pack.manifest.toolchain.get("nvcc", "unknown")
            print(f"  {pack.directory}: {len(pack.manifest.artifacts)} artifacts, nvcc {nvcc}")
    except LoaderError as error:
        healthy = False
        print(f"packs: {error}")
    try:
        cuda = driver.get()
    except LoaderError as error:
        print(f"driver: {error}")
        return 1
    print(f"driver: CUDA {cuda.version // 1000}.{cuda.version % 1000 // 10}, {cuda.device_count} devices")
    for ordinal in range(cuda.device_count):
        facts = cuda.device(ordinal).facts
        major, minor = facts.capability
        print(f"  cuda:{ordinal} {facts.name}, compute capability {major}.{minor}, {facts.sm_count} SMs, "
              f"{facts.shared_limit} bytes of shared memory a CTA")
        families = found.families.values() if found else ()
        runs = {family.name: select.runnable(found, family, facts) for family in families}
        for name, those in runs.items():
            archs = ", ".join(sorted({f"sm_{candidate.artifact.arch}" for candidate in those}))
            print(f"    {name}: {f'{len(those)} variants for {archs}' if those else 'no variant runs here'}")
        healthy = healthy and any(runs.values())  # not all of them: a pack may have kernels of other devices alone
    return 0 if healthy and cuda.device_count else 1


def _tune(options: argparse.Namespace) -> int:
    """Time problems on the device, keep what beats the default, and say so; 1 where a problem could not be timed."""
    from . import problems, tune  # only this command times anything

    out = options.out or os.environ.get(tuned.VARIABLE)
    if not out:
        raise SystemExit(f"tune: expected --out FILE, or {tuned.VARIABLE} to name the file of rows")
    found = registry.load(registry.directories_given(options.packs), None, ())
    shapes = problems.read(options.problems, found)
    device = driver.get().device(api.ordinal(options.device))
    rows = list(tuned.read(out)) if os.path.exists(out) else []
    tuned.write(out, rows)  # so that nobody waits for what cannot be written
    lines = [("kernel", "problem", "default", "us", "fastest", "us", "spread", "")]
    failed = 0
    with _progress() as say:
        for number, outcome in enumerate(tune.tune(found, shapes, device, rows, options.seed), 1):
            say(f"{number} of {len(shapes)} problems: {outcome.shape.kernel}")
            rows = tune.merged(rows, outcome, device)
            tuned.write(out, rows)
            failed += outcome.error is not None
            lines.append(_tuned_line(outcome))
    print(table(lines))
    print(f"{out} has {len(rows)} rows; {tuned.VARIABLE}={out} lets them decide")
    return 1 if failed else 0


def _tuned_line(outcome: Any) -> tuple[str, ...]:
    shape, task, times, row, error = outcome
    if task is None:
        return shape.kernel, shape.where, "", "", "", "", "", f"{type(error).__name__}: {str(error).splitlines()[0]}"
    problem = ", ".join(f"{key} {value:g}" for key, value in task.selection.features.items())
    if not times:
        return shape.kernel, problem, task.default, "", "", "", "", "one variant"
    medians = {name: statistics.median(blocks) for name, blocks in times.items()}
    best = min(medians, key=medians.__getitem__) if row is None else row.variant
    spread = (max(times[best]) - min(times[best])) / medians[best]
    verdict = "the default" if best == task.default else "within the noise" if row is None else "kept"
    return (shape.kernel, problem, task.default, f"{medians[task.default]:.2f}", best, f"{medians[best]:.2f}",
            f"{spread:.1%}", verdict)


def _push(options: argparse.Namespace) -> int:
    from . import oci  # only these two commands open connections

    with _progress() as say:
        pushed = oci.push(options.pack, options.reference, plain_http=options.plain_http, say=say)
    print(pushed)
    return 0


def _pull(options: argparse.Namespace) -> int:
    from . import oci

    with _progress() as say:
        directory = oci.pull(options.reference, options.store, plain_http=options.plain_http, say=say)
    print(directory)
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on standard error that is written over and goes in the end, on a terminal alone."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    try:
        yield lambda text: print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description="Kernel packs and what runs them.")
    parser.add_argument("--packs", action="append", metavar="DIR", help="pack to use instead of the default ones; "
                        "may be repeated")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="kernels of the packs").set_defaults(run=_list)
    inspect = commands.add_parser("inspect", help="arguments and artifacts of a kernel")
    inspect.add_argument("kernel")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser("verify", help="compare every file with its manifest")
    verify.add_argument("--key", action="append", metavar="PUBLIC.pem", help="require the signature of this key, or of "
                        "another that is given; may be repeated")
    verify.set_defaults(run=_verify)
    sign = commands.add_parser("sign", help="add a signature to a pack that is whole")
    sign.add_argument("pack", help="directory of the pack")
    sign.add_argument("--key", required=True, metavar="PRIVATE.pem", help="Ed25519 key that signs")
    sign.set_defaults(run=_sign)
    explain = commands.add_parser("explain", help="which variant a problem runs, and why")
    explain.add_argument("kernel")
    explain.add_argument("problem", nargs="*", metavar="NAME=VALUE", help="dimensions, scalars, dtypes of arguments")
    explain.add_argument("--device", help="cuda:0, or an architecture such as 120a")
    explain.add_argument("--variant")
    explain.set_defaults(run=_explain)
    diff = commands.add_parser("diff", help="kernels that differ between two packs; exits with 1 where there are some")
    diff.add_argument("before", metavar="BEFORE")
    diff.add_argument("after", metavar="AFTER")
    diff.add_argument("--html", metavar="FILE", help="write it as a page, too")
    diff.set_defaults(run=_diff)
    tune = commands.add_parser("tune", help="time variants on a GPU; what beats the default goes to a file of rows")
    tune.add_argument("problems", nargs="+", metavar="PROBLEMS", help="files of problems, or directories of "
                      "them: what LOADER_TRACE_DIR and LOADER_UNMEASURED_DIR wrote")
    tune.add_argument("--out", metavar="FILE", help="rows, which are merged with what is there; else LOADER_TUNED")
    tune.add_argument("--device", help="cuda:0; else the current one")
    tune.add_argument("--seed", type=int, default=0, help="of operands and routing")
    tune.set_defaults(run=_tune)
    _add_transfers(commands)
    commands.add_parser("doctor", help="driver, devices, packs, and what would run").set_defaults(run=_doctor)
    return parser


def _add_transfers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    push = commands.add_parser("push", help="put a pack into an OCI registry; prints its reference by digest")
    push.add_argument("pack", metavar="DIR", help="the pack")
    push.add_argument("reference", metavar="REGISTRY/REPOSITORY:TAG")
    push.set_defaults(run=_push)
    pull = commands.add_parser("pull", help="bring a pack from an OCI registry; prints its directory")
    pull.add_argument("reference", metavar="REFERENCE", help="REGISTRY/REPOSITORY, and :TAG or @sha256:...")
    pull.add_argument("--store", metavar="DIR", help="where packs lie; LOADER_STORE, else the user's cache")
    pull.set_defaults(run=_pull)
    for command in (push, pull):
        command.add_argument("--plain-http", action="store_true", help="speak HTTP, not HTTPS")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except LoaderError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def program() -> int:
    """``main`` of a process. Where nobody reads its output any more, as behind ``| head``, it ends by SIGPIPE, without
    a word. Python ignores that signal, for sockets; what goes wrong with those are other errors."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)
        raise


if __name__ == "__main__":
    sys.exit(program())
