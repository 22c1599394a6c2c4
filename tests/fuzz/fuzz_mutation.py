"""Mutations of an input: of its bytes, by words of its format, with pieces of others, and as JSON of its values."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

from fuzz_targets import Target

MAX_BYTES = 32 << 10


def mutate(target: Target, data: bytes, others: Sequence[bytes], random_: random.Random) -> bytes:
    """Another input, of one to eight changes."""
    for _ in range(1 << random_.randrange(4)):
        if target.is_json and random_.random() < 0.6:
            data = _json(target, data, random_)
        else:
            data = _bytes(target, data, others, random_)
        data = data[:MAX_BYTES]
    return data


def _bytes(target: Target, data: bytes, others: Sequence[bytes], random_: random.Random) -> bytes:
    start = random_.randint(0, len(data))
    end = min(len(data), start + random_.choice((0, 1, 1, 2, 4, 16, 64, len(data))))
    piece = data[start:end]
    match random_.randrange(7):
        case 0:
            piece = bytes(random_.choice((byte ^ 1 << random_.randrange(8), random_.randrange(256))) for byte in piece)
        case 1:
            piece = b""
        case 2:
            piece *= random_.choice((2, 2, 3, 100))
        case 3 | 4:
            piece = random_.choice(target.words) + random_.choice((b"", piece))
        case 5:
            other = random_.choice(others)
            begin = random_.randint(0, len(other))
            piece = other[begin : begin + random_.choice((1, 8, 64, 512))]
        case 6:
            return data[:start]
    return data[:start] + piece + data[end:]


def _json(target: Target, data: bytes, random_: random.Random) -> bytes:
    """A value somewhere in the document replaced, removed, doubled or moved; the bytes themselves where it is none."""
    try:
        document = [json.loads(data)]
        _edit(target, document, random_)
        return json.dumps(document[0] if document else None).encode()
    except (ValueError, RecursionError):
        return data


def _edit(target: Target, document: list[Any], random_: random.Random) -> None:
    places = list(_places(document, 0))
    holder, key = random_.choice(places)
    match random_.randrange(5):
        case 0 | 1:
            holder[key] = _word(target, random_)
        case 2:
            other, place = random_.choice(places)
            holder[key] = copy.deepcopy(other[place])
        case 3 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 3:
            holder[str(_word(target, random_))] = holder[key]
        case 4:
            del holder[key]


def _word(target: Target, random_: random.Random) -> Any:
    try:
        return json.loads(random_.choice(target.words))
    except ValueError:
        return random_.choice((0, -1, "M", [], {}, 1 << random_.randrange(70)))


def _places(value: Any, depth: int) -> Any:
    """Every place of a document that holds a value, as its container and key."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys) if depth < 60 else ():
        yield value, key
        yield from _places(value[key], depth + 1)
