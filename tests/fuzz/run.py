"""Fuzzes a reader: `python tests/fuzz/run.py TARGET --seconds 60`, from the root of the checkout.

Guided by coverage where atheris is installed (the extra `test` has it for the Pythons that it has wheels for), else by
mutations alone. It begins with `tests/fuzz/corpus/TARGET`; what it learns goes to `tests/.cache/fuzz/TARGET`. A finding
ends the run with a traceback, and its input is left beside that folder. What was found and mended is kept in the
corpus.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import secrets
import sys
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "tests" / ".cache" / "fuzz"
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "unit" / "loader"), str(ROOT)]

import fuzz_limits  # noqa: E402


def inputs(name: str) -> list[bytes]:
    """The committed inputs of a target."""
    return [path.read_bytes() for path in sorted((HERE / "corpus" / name).iterdir())]


def plain(name: str, seconds: float, runs: int, seed: int) -> int:
    """Replay the corpus of a target, then mutate it; returns the number of executions. The first finding is raised,
    after its input was written."""
    from fuzz_mutation import mutate
    from fuzz_targets import TARGETS

    target, corpus, random_ = TARGETS[name], inputs(name), random.Random(seed)
    for data in corpus:
        target.run(data)  # whatever is imported late is imported now
    fuzz_limits.install()
    fuzz_limits.bound_memory()
    end, done = time.monotonic() + seconds, 0
    while done < len(corpus) or (time.monotonic() < end and done < runs):
        data = corpus[done] if done < len(corpus) else mutate(target, random_.choice(corpus), corpus, random_)
        try:
            with fuzz_limits.watched():
                target.run(data)
        except BaseException as finding:
            path = CACHE / f"{name}-finding-{seed}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            raise RuntimeError(f"{name}, seed {seed}, execution {done}: input left in {path}") from finding
        done += 1
    return done


def guided(name: str, seconds: int, runs: int, seed: int) -> None:
    """Fuzz with libFuzzer, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["loader", "emulator", "generator", "integrations"]):
        from fuzz_targets import TARGETS
    from fuzz_mutation import MAX_BYTES, mutate

    target, corpus, folder = TARGETS[name], inputs(name), CACHE / name
    folder.mkdir(parents=True, exist_ok=True)

    def run(data: bytes) -> None:
        with fuzz_limits.watched():
            target.run(data)

    def mutated(data: bytes, size: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        return atheris.Mutate(data, size) if seed & 1 else mutate(target, data, corpus, random_)[:size]

    for data in corpus:
        target.run(data)
    fuzz_limits.install()
    # Memory is bounded below: what libFuzzer counts begins with the size of the process that started this one.
    options: dict[str, Any] = {
        "seed": seed or 1, "max_total_time": seconds, "runs": runs, "max_len": MAX_BYTES, "timeout": 20,
        "rss_limit_mb": 0, "artifact_prefix": f"{CACHE}/{name}-", "print_final_stats": 1, "verbosity": 1,
    }  # fmt: skip
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(folder),
                   str(HERE / "corpus" / name)], run, custom_mutator=mutated)
    fuzz_limits.bound_memory()
    atheris.Fuzz()


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("target", choices=sorted(path.name for path in (HERE / "corpus").iterdir()))
    command.add_argument("--seconds", type=int, default=60)
    command.add_argument("--runs", type=int, default=1 << 31, help="executions at most")
    command.add_argument("--seed", type=int, default=secrets.randbits(31), help="repeats the run of a printed seed")
    command.add_argument("--plain", action="store_true", help="mutations alone, as the tests run them")
    given = command.parse_args()
    warnings.simplefilter("ignore")  # of Python about odd expressions, and of numpy about large constants
    sys.stderr.write(f"{given.target}, seed {given.seed}\n")
    if given.plain or importlib.util.find_spec("atheris") is None:
        done = plain(given.target, given.seconds, given.runs, given.seed)
        sys.stdout.write(f"{given.target}: {done} executions\n")
    else:
        guided(given.target, given.seconds, min(given.runs, (1 << 31) - 1), given.seed)


if __name__ == "__main__":
    main()
