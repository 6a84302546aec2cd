"""A pool of child processes: what hostile files do to decoders stays in there, and all CPUs decode."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from stdac.cores import count_threads
from stdac.pictures.child import Child

MEMORY_BYTES = 1 << 30
AHEAD_BYTES = 1 << 26

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Decoders:
    """A pool of child processes that call one function of a batch; made by `open_decoders`."""

    threads: ThreadPoolExecutor
    idle: "SimpleQueue[Child]"
    workers: int

    def map(
        self, function: Callable[[Child, T], R], items: Iterable[T], ahead: int, nbytes: Callable[[T], int]
    ) -> Iterator[R]:
        """Call function(child, item) for each item, some ahead of the reader, see `_map_ahead`; results in order."""

        def work(item: T) -> R:
            child = self.idle.get()
            try:
                return function(child, item)
            finally:
                self.idle.put(child)

        return _map_ahead(self.threads, work, items, ahead + self.workers, nbytes)


@contextmanager
def open_decoders(function: str, workers: int | None = None) -> Iterator[Decoders]:
    """Child processes, each started when it is first needed, that run "package.module:name"; None: one a CPU."""
    workers = workers or count_threads()
    with ExitStack() as stack:
        children = [stack.enter_context(Child(function, MEMORY_BYTES)) for _ in range(workers)]
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        idle: SimpleQueue[Child] = SimpleQueue()
        for child in children:
            idle.put(child)
            stack.callback(child.stop)  # Ctrl-C does not wait for a picture that takes long
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield Decoders(pool, idle, workers)


def _map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[T], R],
    items: Iterable[T],
    ahead: int,
    nbytes: Callable[[T], int],
) -> Iterator[R]:
    """Map in a pool, results in order (Executor.map would take all items at once).

    At most `ahead` of them wait, and of large ones, whose sizes `nbytes` tells, as many as AHEAD_BYTES hold.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    held = 0
    for item in items:
        size = nbytes(item)
        while waiting and held + size > AHEAD_BYTES:
            future, freed = waiting.popleft()
            held -= freed
            yield future.result()
        waiting.append((pool.submit(function, item), size))
        held += size
        if len(waiting) >= ahead:
            future, freed = waiting.popleft()
            held -= freed
            yield future.result()
    while waiting:
        yield waiting.popleft()[0].result()
