"""Ranks that exchange rows by all-to-all and wait for each other no longer than they are told."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist

START_LIMIT = 300.0  # seconds until every rank has started


class PeerError(RuntimeError):
    """A rank did not answer. The process can but end, by ``os._exit``: others would wait for what its device waits."""


class Peers:
    """The ranks that share a layer: all-to-all with a time limit.

    ``store`` must outlive any rank: by it those that are left find out who is missing. ``limit`` is in seconds, and
    counts from when this rank begins to wait.
    """

    def __init__(self, store: dist.Store, rank: int, ranks: int, device: torch.device, limit: float) -> None:
        self.rank, self.ranks, self.device, self.limit = rank, ranks, device, limit
        self._store = store
        missing = self._roll_call("start", START_LIMIT)
        if missing:
            raise PeerError(f"rank {rank}: {_names(missing)} did not start within {START_LIMIT:g} s")
        on_gpu = device.type == "cuda"
        # On a GPU this class looks at the clock; NCCL's own ends the process where nobody calls ``synchronize``.
        dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=ranks,
                                timeout=timedelta(seconds=3 * limit if on_gpu else limit),
                                device_id=device if on_gpu else None)
        self._counts = torch.empty(2, ranks, dtype=torch.int64, pin_memory=on_gpu)
        # NCCL connects at the first exchange, and waits without a limit then: now, while all are known to be there.
        self.exchange_counts(torch.zeros(ranks, dtype=torch.int64, device=device))

    def all_to_all(self, out: torch.Tensor, rows: torch.Tensor, receive: Sequence[int], send: Sequence[int]) -> None:
        """``send[r]`` of ``rows`` [n, bytes] to each rank r, and ``receive[r]`` into ``out``; both by rank."""
        try:
            dist.all_to_all_single(out.view(torch.uint8), rows.view(torch.uint8), list(receive), list(send))
        except RuntimeError as error:
            raise self._unanswered() from error

    def exchange_counts(self, send: torch.Tensor) -> tuple[list[int], list[int]]:
        """``send`` [ranks] int64 on the device, and what the peers sent to this one, both on the host."""
        counts = torch.stack([send, torch.empty_like(send)])
        self.all_to_all(counts[1][:, None], counts[0][:, None], [1] * self.ranks, [1] * self.ranks)
        self._counts.copy_(counts, non_blocking=True)
        self.synchronize()
        sent, received = self._counts.tolist()
        return sent, received

    def synchronize(self) -> None:
        """Waits for the current stream of the device; PeerError where the limit passes."""
        if self.device.type != "cuda":
            return
        done, deadline = torch.cuda.Event(), time.monotonic() + self.limit
        done.record()
        while not done.query():
            if time.monotonic() > deadline:
                raise self._unanswered()
            time.sleep(1e-5)

    def close(self) -> None:
        """Leaves the others in peace: every rank must call."""
        dist.destroy_process_group()

    def _unanswered(self) -> PeerError:
        missing = self._roll_call("left", self.limit)
        who = f"{_names(missing)} did not answer" if missing else "every rank is alive, but the exchange did not end"
        return PeerError(f"rank {self.rank}: {who} within {self.limit:g} s")

    def _roll_call(self, name: str, limit: float) -> list[int]:
        """The ranks that do not make this call, too, before the limit has passed."""
        keys = [f"{name}/{rank}" for rank in range(self.ranks)]
        try:
            self._store.set(keys[self.rank], "")
            try:
                self._store.wait(keys, timedelta(seconds=limit))
            except dist.DistStoreError:
                return [rank for rank, key in enumerate(keys) if not self._store.check([key])]
        except RuntimeError as error:
            raise PeerError(f"rank {self.rank}: a peer did not answer within {self.limit:g} s, and neither did the "
                            "store that could tell which") from error
        return []


def _names(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def spawn(ranks: int, limit: float, work: Callable[..., None], *arguments: Any) -> list[int | None]:
    """``work(store, rank, ranks, *arguments)`` in a process a rank; returns their exit codes. Where one fails, the
    others have three limits to find out, and are ended then."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(work, store.port, rank, ranks, *arguments))
                 for rank in range(ranks)]
    for process in processes:
        process.start()
    running, end = {process.sentinel: process for process in processes}, None
    while running and (end is None or time.monotonic() < end):
        for sentinel in wait(list(running), end and max(end - time.monotonic(), 0)):
            process = running.pop(sentinel)
            process.join()
            if process.exitcode and end is None:
                end = time.monotonic() + 3 * limit
    for process in running.values():
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _work(work: Callable[..., None], port: int, *arguments: Any) -> None:
    end_at_error(work, dist.TCPStore("127.0.0.1", port, is_master=False), *arguments)


def end_at_error(work: Callable[..., None], *arguments: Any) -> None:
    """``work(*arguments)``, an error of which ends the process with status 1."""
    try:
        work(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # an ordinary exit would wait for the device, which may wait for a peer
