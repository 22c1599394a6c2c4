from dataclasses import dataclass
from enum import Enum

from sglang.srt.runtime_context import moe


class MoeA2ABackend(Enum):
    NONE = "none"
    DEEPEP = "deepep"


class _MoeRunnerBackendPredicates:
    pass


@dataclass(frozen=True)
class RegisteredMoeRunnerBackend(_MoeRunnerBackendPredicates):
    value: str


def get_moe_runner_backend():
    return RegisteredMoeRunnerBackend(moe.runner_backend)


def get_moe_a2a_backend():
    return MoeA2ABackend(moe.a2a_backend)


def resolve_moe_runner_backend(backend):
    return RegisteredMoeRunnerBackend(backend)
