"""The turns of batches: two halves side by side, or one with everything."""

import threading
from concurrent.futures import ThreadPoolExecutor

from app.serving.turns import HALVES, Turns


def test_two_halves_run_side_by_side() -> None:
    turns, both = Turns(), threading.Barrier(2, timeout=30)

    def half() -> None:
        with turns.take(1):
            both.wait()

    with ThreadPoolExecutor(2) as threads:
        for job in [threads.submit(half), threads.submit(half)]:
            job.result()


def test_who_needs_everything_waits_and_is_not_overtaken() -> None:
    turns, order = Turns(), list[str]()
    begun = [threading.Semaphore(0), threading.Semaphore(0)]

    def take(name: str, halves: int, number: int) -> None:
        begun[number].release()
        with turns.take(halves):
            order.append(name)

    with ThreadPoolExecutor(2) as threads:
        with turns.take(1):
            whole = threads.submit(take, "whole", HALVES, 0)
            begun[0].acquire()
            while not turns._next.locked():  # nearly at once after it has begun
                threading.Event().wait(0.001)
            half = threads.submit(take, "half", 1, 1)
            begun[1].acquire()
            assert not order
        whole.result()
        half.result()
    assert order == ["whole", "half"]


def test_threads_do_what_they_were_given_before_they_go() -> None:
    turns, done = Turns(), list[int]()
    for _ in range(3):
        turns.submit(0, done.append)
    turns.submit(1, done.append)
    turns.shutdown()
    assert sorted(done) == [0, 0, 0, 1]
