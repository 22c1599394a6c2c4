"""The plug-in for vLLM held against a record of ``contracts``: both are read as text, nothing is imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import contracts
from contract_names import ENGINES
from contract_reader import Record, signature

# What variables of the plug-in are.
OBJECTS = {
    "moe_config": "FusedMoEConfig",
    "self.moe": "FusedMoEConfig",
    "self.moe_config": "FusedMoEConfig",
    "parallel": "FusedMoEParallelConfig",
    "layer": None,  # a module; of its parameters, those that create_weights registers
    "current_platform": "Platform",
    "capability": "DeviceCapability",
    "MoEActivation": "MoEActivation",
    "modular_kernel.FusedMoEActivationFormat": "FusedMoEActivationFormat",
}
# Of our own classes those that vLLM makes objects of, by the parameters of the class that ours is made from.
MADE_BY_VLLM = {"Nvfp4Experts"}
METHODS = {"vllm_moe.py": "Nvfp4Experts", "vllm_mxfp4.py": "GptOssExperts"}  # with their tables of parameters
KINDS = {*contracts.KINDS} - {"abstractmethod"}


class Moved(AssertionError):
    """What the plug-in relies on is not there any more, or not as it was."""


class Ours(NamedTuple):
    """A class of the plug-in."""

    node: ast.ClassDef
    path: str

    @property
    def methods(self) -> dict[str, ast.FunctionDef]:
        return {part.name: part for part in self.node.body if isinstance(part, ast.FunctionDef)}

    @property
    def sets(self) -> set[str]:
        """Attributes of ``self`` that a method sets, and of the class."""
        found = {node.attr for node in ast.walk(self.node) if isinstance(node, ast.Attribute)
                 and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}  # fmt: skip
        return found | {target.id for part in self.node.body if isinstance(part, ast.Assign) for target in part.targets}


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {path.name: ast.parse(path.read_text()) for path in ENGINES["vllm"].paths}


@functools.cache
def classes() -> dict[str, Ours]:
    return {node.name: Ours(node, path) for path, tree in trees().items() for node in tree.body
            if isinstance(node, ast.ClassDef) and node.bases}  # fmt: skip


def own(name: str) -> set[str]:
    """Methods of a class of ours, and of those of ours that it is made from."""
    bases = (ast.unparse(base) for base in classes()[name].node.bases)
    return set(classes()[name].methods).union(*(own(base) for base in bases if base in classes()))


def check(record: Record) -> None:
    """Raises ``Moved``, which names the version and what it is about, where the plug-in does not fit."""
    facts = Facts(record)
    for line in contracts.missing(record):
        raise facts.moved(line)
    for name, ours in classes().items():
        for rule in (_overrides, _abstract, _inherited):
            rule(facts, name, ours)
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                _call(facts, path, tree, node)
            elif isinstance(node, ast.Attribute):
                _attribute(facts, path, node)
    _parameters(facts)


class Facts:
    """A record by short names."""

    def __init__(self, record: Record) -> None:
        self.version = record["version"]
        self.definitions = {place.rpartition(".")[2]: entry for place, entry in record["definitions"].items()}

    def moved(self, what: str) -> Moved:
        return Moved(f"vLLM {self.version}: {what}")

    def chain(self, name: str) -> Iterator[tuple[str, Record]]:
        """A class and what it is made from, itself first: of ours, those of vLLM alone."""
        if name in classes():
            for base in classes()[name].node.bases:
                yield from self.chain(ast.unparse(base).rpartition(".")[2])
        elif "bases" in self.definitions.get(name, {}):
            yield name, self.definitions[name]
            for base in self.definitions[name]["bases"]:
                yield from self.chain(base.rpartition(".")[2])

    def methods(self, name: str) -> dict[str, tuple[str, Record]]:
        """By name, of which class each is."""
        found: dict[str, tuple[str, Record]] = {}
        for origin, entry in self.chain(name):
            for method, facts in entry["methods"].items():
                found.setdefault(method, (origin, facts))
        return found

    def members(self, name: str) -> set[str]:
        return {member for _, entry in self.chain(name) for member in (*entry["methods"], *entry["fields"])}


def _overrides(facts: Facts, name: str, ours: Ours) -> None:
    """A method of ours can be called in all ways in which vLLM's can."""
    theirs = facts.methods(name)
    for method, node in ours.methods.items():
        if method not in theirs or method == "__init__" and name not in MADE_BY_VLLM:
            continue
        origin, recorded = theirs[method]
        kinds = {ast.unparse(decorator) for decorator in node.decorator_list} & KINDS
        if kinds != set(recorded["kind"]) & KINDS:
            raise facts.moved(f"{origin}.{method} is {recorded['kind'] or 'a method'}, {name}'s is {sorted(kinds)}")
        reason = refused(recorded["parameters"], signature(node.args))
        if reason:
            raise facts.moved(f"{origin}.{method} {reason}, {name}'s differs")


def refused(theirs: list[str], ours: list[str]) -> str | None:
    """A way to call what has the parameters ``theirs`` in which ``ours`` cannot be called."""
    if "**_" in ours or "**__" in ours:
        return None
    names, own = ([word.partition("=")[0] for word in words] for words in (theirs, ours))
    if names != own[: len(names)]:
        return f"is asked with ({', '.join(names)})"
    for word, mine in zip(theirs, ours, strict=False):
        if "=" in word and "=" not in mine:
            return f"may be asked without {mine}"
    rest = [word for word in ours[len(names) :] if "=" not in word and not word.startswith("*")]
    return f"knows no {', '.join(rest)}" if rest else None


def _abstract(facts: Facts, name: str, ours: Ours) -> None:
    """All that vLLM leaves to us is there; a class that others of ours are made from may leave it to these."""
    if any(name == ast.unparse(base) for other in classes().values() for base in other.node.bases):
        return
    for method, (origin, recorded) in facts.methods(name).items():
        if "abstractmethod" in recorded["kind"] and method not in own(name):
            raise facts.moved(f"{origin}.{method} is abstract, {name} has none")


def _inherited(facts: Facts, name: str, ours: Ours) -> None:
    """What ours takes over unchanged reads no attribute that only a constructor sets which ours goes around."""
    starts = [node for node in ast.walk(ours.node) if isinstance(node, ast.Call)
              and ast.unparse(node.func).endswith(".__init__") and "super()" not in ast.unparse(node.func)]  # fmt: skip
    if not starts:
        return
    theirs = facts.methods(name)
    started = ast.unparse(starts[0].func.value)
    known = facts.members(name) | set(ours.methods) | ours.sets
    known |= set(facts.methods(started)["__init__"][1].get("sets", []))
    waiting = [method for method in theirs if not method.startswith("_") and method not in ours.methods]
    seen = set(waiting)
    while waiting:
        origin, recorded = theirs[method := waiting.pop()]
        for attribute in recorded.get("reads", []):
            if attribute not in known and not attribute.startswith("__"):
                raise facts.moved(f"{origin}.{method} reads self.{attribute}, which {name} never sets")
            if attribute in theirs and attribute not in ours.methods and attribute not in seen:
                seen.add(attribute)
                waiting.append(attribute)


def _call(facts: Facts, path: str, tree: ast.Module, node: ast.Call) -> None:
    """A call of vLLM's gives it what it takes."""
    owner, _, called = ast.unparse(node.func).rpartition(".")
    owner = owner.rpartition(".")[2]
    bound = 0
    if owner == "super()":
        owner = next(name for name, ours in classes().items() if node in ast.walk(ours.node))
        bound = 1
    if owner in classes() or "bases" in facts.definitions.get(owner, {}):
        if owner in classes() and called in classes()[owner].methods and not bound:
            return
        found = facts.methods(owner).get(called)
        if found is None:
            raise facts.moved(f"{owner} has no {called}, which {path} calls")
        parameters, bound = found[1]["parameters"], bound or "classmethod" in found[1]["kind"]
    elif called in classes() or called not in facts.definitions:
        return
    elif "parameters" in facts.definitions[called]:
        parameters = facts.definitions[called]["parameters"]
    else:
        parameters, bound = facts.methods(called).get("__init__", ("", {"parameters": ["self"]}))[1]["parameters"], 1
    if reason := unfit(parameters[bound:], len(node.args), {word.arg for word in node.keywords}):
        raise facts.moved(f"{ast.unparse(node.func)} {reason}, as {path} calls it")


def unfit(parameters: list[str], positional: int, keywords: set[Any]) -> str | None:
    """Why so many arguments and these keywords do not fit the parameters."""
    star = next((index for index, word in enumerate(parameters) if word.startswith("*")), len(parameters))
    plain = [word for word in parameters[:star] if word != "/"]
    names = [word.partition("=")[0] for word in parameters if not word.startswith("*") and word != "/"]
    if positional > len(plain):
        return f"takes ({', '.join(plain)})"
    unknown = keywords - set(names[positional:])
    if unknown and not any(word.startswith("**") for word in parameters):
        return f"takes no {', '.join(sorted(unknown))}"
    needed = [word for word in names[positional:] if word in parameters and word not in keywords]
    return f"needs {', '.join(needed)}" if needed else None


def _attribute(facts: Facts, path: str, node: ast.Attribute) -> None:
    """What the plug-in reads of vLLM's objects they have."""
    kind = OBJECTS.get(ast.unparse(node.value))
    if kind and node.attr not in facts.members(kind):
        raise facts.moved(f"{kind} has no {node.attr}, which {path} reads")


def _parameters(facts: Facts) -> None:
    """Parameters of a layer are those that the plug-in converts."""
    for path, name in METHODS.items():
        table = next(node.value for node in trees()[path].body if isinstance(node, ast.Assign)
                     and ast.unparse(node.targets[0]) == "PARAMETERS")  # fmt: skip
        converted = {ast.literal_eval(key) for key in table.keys}
        origin, recorded = facts.methods(name)["create_weights"]
        registered = {*recorded.get("registers", []), *recorded.get("registers_at_times", [])}
        if differing := converted ^ registered:
            raise facts.moved(f"{origin}.create_weights and the plug-in differ in {', '.join(sorted(differing))}")
