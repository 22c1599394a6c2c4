"""What each rank of an expert-parallel test does, for processes that the test starts. Results go to files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import expert_parallel  # noqa: E402
from ranks import PeerError, Peers  # noqa: E402

Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # x, ids, weights of all ranks' tokens, by rank
EXPERTS, TOP_K = 5, 2


def cases(seed: int, ranks: int, hidden: int, tokens: int) -> dict[str, tuple[list[int], Tokens]]:
    """Name -> how many of the tokens each rank has, and the tokens. About ``tokens`` where there are any."""
    random = torch.Generator().manual_seed(seed)
    last = expert_parallel.experts_of(ranks - 1, ranks, EXPERTS)

    def draw(counts: list[int], first: int = 0, ids: torch.dtype = torch.int32) -> tuple[list[int], Tokens]:
        total = sum(counts)
        return counts, (torch.randn(total, hidden, generator=random).bfloat16(),
                        torch.randint(first, EXPERTS, (total, TOP_K), generator=random).to(ids),
                        torch.rand(total, TOP_K, generator=random))

    uneven = torch.randint(1, tokens, (ranks,), generator=random).tolist()
    found = {
        "uneven": draw(uneven),
        "no token anywhere": draw([0] * ranks),
        "a rank without tokens": draw([*uneven[:-1], 0], ids=torch.int64),
        "all tokens on one rank": draw([0] * (ranks - 1) + [tokens]),
        "all routed to one rank": draw(uneven, first=last.start),
        "slots without an expert": draw(uneven),
    }
    _, (_, ids, _) = found["slots without an expert"]
    ids[torch.rand(ids.shape, generator=random) < 0.4] = -1
    ids[0, 0] = EXPERTS  # the first that does not exist
    return found


def compute(store: Any, rank: int, ranks: int, folder: str, seed: int, sizes: dict[str, int], emulate: str | None,
            limit: float, form: str = "nvfp4") -> None:
    """Every case on all ranks, into ``<rank>.pt``; then some of them on one device, into ``one<rank>.pt``."""
    device = expert_parallel.device_of(rank, emulate)
    kind, draw = expert_parallel.KINDS[form]
    weights = _to(device, draw(seed, EXPERTS, sizes["hidden"], sizes["between"]))
    drawn = cases(seed, ranks, sizes["hidden"], sizes["tokens"])
    peers = Peers(store, rank, ranks, device, limit)
    layer = _layer(kind, peers, weights, emulate)
    outputs = {}
    for name, (counts, batch) in drawn.items():
        begin = sum(counts[:rank])
        outputs[name] = layer(*(tensor[begin : begin + counts[rank]].to(device) for tensor in batch))
        peers.synchronize()
    torch.save({name: out.cpu() for name, out in outputs.items()}, Path(folder) / f"{rank}.pt")
    peers.close()
    one = {name: expert_parallel.on_one_device(kind, *(tensor.to(device) for tensor in batch), weights, emulate).cpu()
           for name, (_, batch) in list(drawn.items())[rank::ranks]}
    torch.save(one, Path(folder) / f"one{rank}.pt")


def compare(folder: Path, seed: int, ranks: int, sizes: dict[str, int]) -> None:
    """What ``compute`` left there: each rank's rows are those of one device, in every byte."""
    of_rank = [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
    one = {name: out for rank in range(ranks) for name, out in torch.load(folder / f"one{rank}.pt").items()}
    for name, (counts, (_, ids, _)) in cases(seed, ranks, sizes["hidden"], sizes["tokens"]).items():
        assert [len(outputs[name]) for outputs in of_rank] == counts, name
        out = torch.cat([outputs[name] for outputs in of_rank])
        assert torch.equal(out.view(torch.int16), one[name].view(torch.int16)), name
        routed = ((ids >= 0) & (ids < EXPERTS)).any(1)
        assert out[routed].isfinite().all() and out[routed].any(1).all() and not out[~routed].any(), name


def lose_a_peer(store: Any, rank: int, ranks: int, folder: str, seed: int, sizes: dict[str, int], emulate: str | None,
                limit: float, how: str) -> None:
    """Rank 1 is lost. Ranks that notice leave the text of their error in ``<rank>.txt``."""
    device = expert_parallel.device_of(rank, emulate)
    weights = _to(device, expert_parallel.random_weights(seed, EXPERTS, sizes["hidden"], sizes["between"]))
    _, batch = cases(seed, ranks, sizes["hidden"], sizes["tokens"])["uneven"]
    peers = (_Lost if rank == 1 and how == "exits inside the layer" else Peers)(store, rank, ranks, device, limit)
    layer = _layer(expert_parallel.ExpertParallel, peers, weights, emulate)
    if rank == 1 and how == "hangs":
        time.sleep(3600)
    try:
        layer(*(tensor.to(device) for tensor in batch))
        peers.synchronize()
    except PeerError as error:
        (Path(folder) / f"{rank}.txt").write_text(str(error))
        raise


class _Lost(Peers):
    """Ends its process when the others know what it would send."""

    def exchange_counts(self, send: torch.Tensor) -> tuple[list[int], list[int]]:
        counts = super().exchange_counts(send)
        if send.any():  # the first exchange is empty: it connects
            os._exit(7)
        return counts


def _layer(
    kind: type[expert_parallel.ExpertParallel], peers: Peers, weights: dict[str, torch.Tensor], emulate: str | None
) -> expert_parallel.ExpertParallel:
    mine = expert_parallel.experts_of(peers.rank, peers.ranks, EXPERTS)
    mine_only = {name: tensor[mine.start : mine.stop] for name, tensor in weights.items()}
    return kind(peers, EXPERTS, mine_only, emulate)


def _to(device: torch.device, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
