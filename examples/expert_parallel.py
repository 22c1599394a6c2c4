"""A MoE layer whose experts are split over ranks, by torch.distributed: the same bytes as on one device.

    torchrun --nproc-per-node 4 examples/expert_parallel.py
    python examples/expert_parallel.py --ranks 4

Each rank has tokens of its own, any number, and some of the experts:

    x --order by rank, all-to-all--> moe_fp4, one expert a row --all-to-all back--> moe_combine --> out

Every routed slot travels as a row of its own, and its result comes back unsummed: so moe_combine adds them at the
source in the order of k, in fp32, as one device does. Sums made by the expert's rank would save bytes and change the
last bits. As results go back one row a slot, sending a token once to a rank with several of its experts would save
less than half of the bytes; this example does not.

How many rows come is known only when the peers have said it: the host waits once a layer, for these counts. Nothing
else waits, but such a layer cannot be captured into a graph.

A peer that does not answer within the limit is a PeerError that names it, at the latest after twice the limit.
On GPUs rows go through NCCL; without one, or with --emulate ARCH, through gloo, to kernels on the emulated device.

With --fp8 the layer is moe_fp8, on Hopper. Tokens are quantised where they are and travel as bytes and scales, about
half of what bf16 takes, and experts take them by mask: moe_fp8_masked.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from ranks import Peers, end_at_error, spawn  # noqa: E402

import loader  # noqa: E402

ON_GPU = {"tokens": 1024, "experts": 18, "top_k": 4, "hidden": 2048, "between": 1024}
EMULATED = {"tokens": 7, "experts": 9, "top_k": 2, "hidden": 64, "between": 32}
DECODE_SCALE = 8 / (6 * 448)  # of activations, taken to be at most 8
BLOCK = 128  # of K, that has a scale in FP8


def experts_of(rank: int, ranks: int, experts: int) -> range:
    """The experts of a rank. Where they do not divide, the first ranks have one more."""
    if ranks > experts:
        raise ValueError(f"{ranks} ranks for {experts} experts: a rank must have at least one")
    share, more = divmod(experts, ranks)
    return range(rank * share + min(rank, more), (rank + 1) * share + min(rank + 1, more))


class ExpertParallel:
    """moe_fp4 over the peers' experts. ``weights`` are its arguments for this rank's own."""

    composite, kernels = "moe_fp4", ("moe_fp4", "moe_combine")
    words: Mapping[str, Any] = {"global_scale_kind": "decode"}

    def __init__(self, peers: Peers, experts: int, weights: Mapping[str, torch.Tensor],
                 emulate: str | None = None) -> None:
        self.peers, self.experts, self._device = peers, experts, emulate
        self._mine, self._arguments = experts_of(peers.rank, peers.ranks, experts), {**weights, **self.words}
        if peers.device.type == "cuda":
            loader.preload(*self.kernels, device=str(peers.device))
        owners = [rank for rank in range(peers.ranks) for _ in experts_of(rank, peers.ranks, experts)]
        nobody = peers.ranks
        self._owners = torch.tensor([*owners, nobody], device=peers.device)
        self._every_rank = torch.arange(peers.ranks, device=peers.device)

    def __call__(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
        """This rank's tokens: [T, H], ids and weights [T, TOPK], T any number. Every rank must call. Returns [T, H]."""
        peers, top_k, slots = self.peers, topk_ids.shape[1], topk_ids.numel()
        ids = topk_ids.flatten()
        owner = self._owners[torch.where((ids >= 0) & (ids < self.experts), ids, self.experts).long()]
        order = torch.argsort(owner, stable=True)  # by rank, then token, then k; slots without an expert are last
        send, receive = peers.exchange_counts((owner == self._every_rank[:, None]).sum(1))
        order = order[: sum(send)]
        row_of_slot = torch.full((slots,), -1, dtype=torch.int32, device=x.device)
        row_of_slot[order] = torch.arange(len(order), dtype=torch.int32, device=x.device)

        # From here to the end the device may wait for a peer: what may wait for the device comes before.
        tokens = self._travelling(x)
        rows, row_ids = tokens.new_empty(sum(receive), tokens.shape[1]), ids.new_empty(sum(receive), 1)
        ones = topk_weights.new_ones(len(rows), 1)
        results, returned, out = x.new_empty(len(rows), x.shape[1]), x.new_empty(slots, x.shape[1]), torch.empty_like(x)
        sent, sent_ids = tokens[order // top_k], ids[order][:, None]

        peers.all_to_all(rows, sent, receive, send)
        peers.all_to_all(row_ids, sent_ids, receive, send)
        self._compute(rows, row_ids, ones, results)
        peers.all_to_all(returned[: len(order)], results, send, receive)
        loader.launch("moe_combine", rows=returned, row_of_slot=row_of_slot.view_as(topk_ids),
                      topk_weights=topk_weights, out=out, device=self._device)
        return out

    def _travelling(self, x: torch.Tensor) -> torch.Tensor:
        """What of each token goes through the all-to-all."""
        return x

    def _compute(self, rows: torch.Tensor, ids: torch.Tensor, ones: torch.Tensor, out: torch.Tensor) -> None:
        """One expert a row with a weight of 1: its sum over the top-k is the row itself."""
        loader.launch("moe_fp4", x=rows, topk_ids=ids, topk_weights=ones, **self._arguments,
                      first_expert=self._mine.start, out=out, device=self._device)


class ExpertParallelFp8(ExpertParallel):
    """moe_fp8 over the peers' experts. Rows are put into a matrix for each expert by torch, which may allocate then."""

    composite, kernels = "moe_fp8", ("fp8_quantize", "moe_fp8_masked", "moe_combine")
    words: Mapping[str, Any] = {}

    def _travelling(self, x: torch.Tensor) -> torch.Tensor:
        """Elements and scales of each token, as bytes."""
        elements = x.new_empty(x.shape, dtype=torch.uint8)
        scale = x.new_empty(len(x), -(-x.shape[1] // BLOCK), dtype=torch.float32)
        loader.launch("fp8_quantize", x=x, out=elements, out_scale=scale, scale_layout="row_major", device=self._device)
        return torch.cat([elements, scale.view(torch.uint8)], dim=1)

    def _compute(self, rows: torch.Tensor, ids: torch.Tensor, ones: torch.Tensor, out: torch.Tensor) -> None:
        """By mask. A matrix has room for all rows: the host would have to wait to know how many an expert has."""
        (count, hidden), experts, expert = out.shape, len(self._mine), ids.flatten().long() - self._mine.start
        is_of = expert == torch.arange(experts, device=expert.device)[:, None]
        place = expert, (is_of.cumsum(1) - 1).gather(0, expert[None])[0]
        x = rows.new_empty(experts, count, hidden)
        x[place] = rows[:, :hidden]
        scale = out.new_empty(experts, -(-count // 4) * 4, -(-hidden // BLOCK), dtype=torch.float32)
        scale[place] = rows[:, hidden:].contiguous().view(torch.float32)
        results = out.new_empty(experts, count, hidden)
        loader.launch("moe_fp8_masked", x=x, x_scale=scale.transpose(1, 2).contiguous(), mask=is_of.sum(1).int(),
                      **self._arguments, out=results, device=self._device)
        out.copy_(results[place])


def random_weights_fp8(seed: int, experts: int, hidden: int, between: int) -> dict[str, torch.Tensor]:
    """Weights of moe_fp8, random: bytes are E4M3 from 0.125 to 2 of either sign, scales differ by a factor of 2."""
    random = torch.Generator().manual_seed(seed)
    specs = loader.buffers("moe_fp8", T=1, TOPK=1, E=experts, H=hidden, I=between)

    def matrix(name: str) -> dict[str, torch.Tensor]:
        shape, scale = specs[name].shape, specs[f"{name}_scale"].shape
        signs = torch.randint(2, shape, dtype=torch.uint8, generator=random) << 7
        size = shape[-1] ** -0.5
        return {name: torch.randint(0x20, 0x40, shape, dtype=torch.uint8, generator=random) | signs,
                f"{name}_scale": size * (1 + torch.rand(scale, generator=random))}

    return {**matrix("w13"), **matrix("w2")}


def random_weights(seed: int, experts: int, hidden: int, between: int) -> dict[str, torch.Tensor]:
    """Weights of moe_fp4, random in the layout that it takes: any byte is two E2M1, scales are 0.25 to 1."""
    random = torch.Generator().manual_seed(seed)
    specs = loader.buffers("moe_fp4", T=1, TOPK=1, E=experts, H=hidden, I=between, **ExpertParallel.words)

    def matrix(name: str) -> dict[str, torch.Tensor]:
        packed, scale = specs[name].shape, specs[f"{name}_scale"].shape
        decode = 0.5 * (2 * packed[-1]) ** -0.5  # codes times scales have a standard deviation of about 2
        return {
            name: torch.randint(256, packed, dtype=torch.uint8, generator=random),
            f"{name}_scale": torch.randint(0x28, 0x39, scale, dtype=torch.uint8, generator=random),
            f"{name}_alpha": torch.full((experts,), decode * DECODE_SCALE),
        }

    scales = {name: torch.full((experts,), DECODE_SCALE) for name in ("x_global_scale", "h_global_scale")}
    return {**matrix("w13"), **matrix("w2"), **scales}


def random_tokens(seed: int, tokens: int, experts: int, top_k: int, hidden: int) -> list[torch.Tensor]:
    """x [T, H] bf16, top-k ids and weights [T, TOPK]."""
    random = torch.Generator().manual_seed(seed)
    logits, topk_ids = torch.randn(tokens, experts, generator=random).topk(top_k)
    return [torch.randn(tokens, hidden, generator=random).bfloat16(), topk_ids.int(), logits.softmax(1)]


def on_one_device(
    kind: type[ExpertParallel], x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor,
    weights: Mapping[str, torch.Tensor], emulate: str | None,
) -> torch.Tensor:
    """What all ranks together must give."""
    out = torch.empty_like(x)
    loader.launch(kind.composite, x=x, topk_ids=topk_ids, topk_weights=topk_weights, **weights, **kind.words, out=out,
                  device=emulate)
    return out


# By the format of the layer: its class, and what makes weights for it.
KINDS = {"nvfp4": (ExpertParallel, random_weights), "fp8": (ExpertParallelFp8, random_weights_fp8)}


def run(store: dist.Store, rank: int, ranks: int, emulate: str | None, seed: int, limit: float, form: str) -> None:
    """One rank: the layer on its share of a batch, compared with the whole batch on one device."""
    device = device_of(rank, emulate)
    sizes = EMULATED if emulate else ON_GPU
    tokens, experts = sizes["tokens"], sizes["experts"]
    kind, draw = KINDS[form]
    weights = draw(seed, experts, sizes["hidden"], sizes["between"])
    weights = {name: tensor.to(device) for name, tensor in weights.items()}
    batch = [tensor.to(device) for tensor in random_tokens(seed, tokens, experts, sizes["top_k"], sizes["hidden"])]
    cuts = torch.randint(tokens + 1, (ranks - 1,), generator=torch.Generator().manual_seed(seed)).sort().values
    begin, end = [0, *cuts.tolist(), tokens][rank : rank + 2]

    mine = experts_of(rank, ranks, experts)
    peers = Peers(store, rank, ranks, device, limit)
    layer = kind(peers, experts, {name: tensor[mine.start : mine.stop] for name, tensor in weights.items()}, emulate)
    out = layer(*(tensor[begin:end] for tensor in batch))
    peers.synchronize()
    expected = on_one_device(kind, *batch, weights, emulate)[begin:end]
    same = torch.equal(out.view(torch.int16), expected.view(torch.int16))
    print(f"rank {rank} of {ranks}, experts {mine.start} to {mine.stop - 1}, {end - begin} of {tokens} tokens: "
          f"{'the same bytes as' if same else 'DIFFERS from'} one device", flush=True)
    peers.close()
    if not same:
        raise SystemExit(1)


def device_of(rank: int, emulate: str | None) -> torch.device:
    """The device of a rank of this host, made current."""
    if emulate:
        return torch.device("cpu")
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="processes to start, where torchrun did not")
    parser.add_argument("--emulate", metavar="ARCH", help="run on the emulated device of this arch")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="limit for a peer to answer")
    parser.add_argument("--fp8", action="store_true", help="the layer of DeepSeek-V3, on Hopper, not that in NVFP4")
    options = parser.parse_args()
    emulate = f"emulated:{options.emulate}" if options.emulate else None if torch.cuda.is_available() else "emulated"

    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    ranks = int(os.environ["WORLD_SIZE"]) if by_torchrun else options.ranks
    if not emulate and ranks > torch.cuda.device_count():
        parser.error(f"{ranks} ranks need as many GPUs, and there are {torch.cuda.device_count()}; or give --emulate")
    arguments = emulate, options.seed, options.timeout, "fp8" if options.fp8 else "nvfp4"
    if by_torchrun:
        end_at_error(run, *next(dist.rendezvous("env://")), *arguments)
        return 0
    return max(map(abs, spawn(ranks, options.timeout, run, *arguments)))


if __name__ == "__main__":
    sys.exit(main())
