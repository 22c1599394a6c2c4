"""Who one is to a registry: what docker's configuration says, and no other place.

``$DOCKER_CONFIG/config.json``, else ``~/.docker/config.json``: entries of ``auths``, and the programs that
``credHelpers`` and ``credsStore`` name. Read where a registry asks, not before.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from .errors import UnauthorizedError

# A registry that docker's configuration knows by an older name.
_NAMES = {"docker.io": "https://index.docker.io/v1/"}
_NOT_FOUND = "credentials not found"  # what every helper says, by its protocol


def find(registry: str) -> tuple[str, str] | None:
    """User and password for a registry, None where none are configured."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    path, name = os.path.join(folder, "config.json"), _NAMES.get(registry, registry)
    try:
        with open(path, encoding="utf-8") as stream:
            config = json.load(stream)
        helper = config.get("credHelpers", {}).get(name) or config.get("credsStore")
        entry = config.get("auths", {}).get(name, {})
        if not helper:
            return _decoded(entry["auth"]) if entry.get("auth") else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UnauthorizedError(f"{path} has no credentials for {registry} that can be read: {error}",
                                registry=registry, file=path) from error
    return _asked(f"docker-credential-{helper}", name, registry, path)


def _decoded(text: str) -> tuple[str, str]:
    user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    if not colon:
        raise ValueError("auth is no user:password")
    return user, password


def _asked(program: str, name: str, registry: str, path: str) -> tuple[str, str] | None:
    facts = {"registry": registry, "file": path}
    try:
        done = subprocess.run([program, "get"], input=name, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnauthorizedError(f"{path} names the program {program}, which cannot run: {error.strerror}",
                                **facts) from error
    if done.returncode:
        said = (done.stdout or done.stderr).strip()
        if _NOT_FOUND in said:
            return None
        raise UnauthorizedError(f"{program}, named by {path}, exited with {done.returncode}: {said}", **facts)
    try:
        answer: Mapping[str, Any] = json.loads(done.stdout)
        return answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):
        raise UnauthorizedError(f"{program}, named by {path}, gave no Username and Secret", **facts) from None
