from types import SimpleNamespace

moe = SimpleNamespace(enable_eplb=False, runner_backend="auto", a2a_backend="none")


def get_exec():
    return SimpleNamespace(moe=moe)
