"""Names that no argument, scalar or dimension may have: a call could not give them, or the loader overwrites them."""

import copy
import inspect

import pytest
import sample_pack
from sample_call import arguments
from test_composite import composite

import loader
from loader.composite import WORKSPACE
from loader.manifest import KEYWORDS, OWN_VALUES, is_reserved

RESERVED = sorted({*KEYWORDS, *OWN_VALUES, "sizeof_a", "sizeof_other"})
KINDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def test_every_keyword_of_a_call_is_reserved():
    """All that takes the arguments of a kernel by name keeps for itself the reserved keywords and no others."""
    functions = [*(getattr(loader, name) for name in loader.__all__ if inspect.isfunction(getattr(loader, name))),
                 loader.Plan.bind]
    taking = [signature.parameters.values() for signature in map(inspect.signature, functions)
              if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())]
    assert len(taking) == 8  # launch, plan, check, explain, buffers, outputs, workspace_bytes, Plan.bind
    kept = {parameter.name for parameters in taking for parameter in parameters if parameter.kind in KINDS}
    assert kept | {WORKSPACE.name} == KEYWORDS


def test_values_of_the_loader_are_reserved():
    """Also the dimension that a workspace has."""
    assert set(WORKSPACE.shape) <= OWN_VALUES and "sm_count" in OWN_VALUES
    assert is_reserved("sizeof_a") and not is_reserved("sizeof")


def renamed(family, what, name):
    """The family with its last argument, last scalar, or the dimension E called otherwise."""
    if what == "dimension":
        index, = (i for i, argument in enumerate(family["arguments"]) if argument["shape"] == [["+", "E", 1]])
        family["arguments"][index]["shape"] = [["+", name, 1]]
    else:
        family[what][-1]["name"] = name
    return family


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("what", ["arguments", "scalars", "dimension"])
@pytest.mark.parametrize("section", ["families", "composites"])
def test_a_manifest_with_such_a_name_is_refused(cuda, tmp_path, section, what, name):
    """As an argument, a scalar or a dimension, of a family or of a composite."""
    manifest, files = sample_pack.build()
    manifest |= {"schema": 2, "composites": {"thrice": composite()}}
    key, = {"families": ["scale_rows"], "composites": ["thrice"]}[section]
    manifest[section][key] = renamed(copy.deepcopy(manifest[section][key]), what, name)
    sample_pack.write(tmp_path, manifest, files)
    with pytest.raises(loader.ManifestError) as caught:
        loader.launch("scale_rows", packs=str(tmp_path), **arguments())
    assert str(caught.value) == (f"pack {tmp_path}: {section}.{key}.arguments: expected names that the loader leaves "
                                 f"to a signature, got {name!r}")


@pytest.mark.parametrize("name", ["sm_count", "sizeof_a"])
@pytest.mark.parametrize("place", ["axes", "features"])
def test_axes_and_features_overwrite_nothing(cuda, tmp_path, place, name):
    """They are values beside those of the problem."""
    manifest, files = sample_pack.build()
    if place == "axes":
        manifest["artifacts"][0]["axes"][name] = 1
    else:
        manifest["families"]["scale_rows"]["select"]["features"][name] = "M"
    sample_pack.write(tmp_path, manifest, files)
    with pytest.raises(loader.ManifestError, match=f"{place}: expected names .*{name}"):
        loader.launch("scale_rows", packs=str(tmp_path), **arguments())
