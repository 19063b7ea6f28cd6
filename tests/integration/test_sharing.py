"""One store, many ways to come by it: pickled, forked, spawned, from a fork server, in threads."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from typing import Any

import numpy
import pytest

import crailpy

METHODS = ["fork", "spawn", "forkserver"]


def work(store: crailpy.Store, who: str) -> str:
    """Small and large values, from two threads; ends with what it read of its parent."""
    failures: list[BaseException] = []

    def turn(n: int) -> None:
        try:
            for i in range(20):
                key = f"/share/{who}/{n}-{i}"
                store.put(key, key.encode())
                assert store.get(key) == key.encode()
            bulk = numpy.full(50_000, n)
            store.put(f"/share/{who}/bulk{n}", bulk)
            view = store.get_view(f"/share/{who}/bulk{n}")
            assert (numpy.frombuffer(view, dtype=bulk.dtype) == bulk).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=turn, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    said: str = store.get("/share/said").decode()
    return said


def in_child(store: crailpy.Store, who: str, answers: Any) -> None:
    try:
        answers.put((who, work(store, who), store._session.number))
    except BaseException as error:
        answers.put((who, repr(error), 0))
    store.close()


@pytest.fixture
def store(cluster):
    with cluster.connect() as store:
        store.put("/share/said", b"hello")
        yield store
        store.rmtree("/share")


@pytest.mark.parametrize("from_thread", [False, True], ids=["from main", "from a thread"])
@pytest.mark.parametrize("method", METHODS)
def test_a_store_given_to_a_child_has_a_session_of_its_own_there(store, method, from_thread):
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    whos = [f"{method}{i}" for i in range(2)]
    children = [context.Process(target=in_child, args=(store, who, answers)) for who in whos]

    def start() -> None:
        for child in children:
            child.start()

    if from_thread:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    else:
        start()
    assert work(store, "parent") == "hello"
    told = sorted(answers.get(timeout=60) for _ in whos)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert [(who, said) for who, said, _ in told] == [(who, "hello") for who in whos]
    sessions = {store._session.number, *(number for _, _, number in told)}
    assert len(sessions) == 3
    assert store.get(f"/share/{whos[0]}/0-0") == f"/share/{whos[0]}/0-0".encode()


def test_grandchildren_by_fork_each_have_their_own_session(store):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert store.get("/share/said") == b"hello"
            inner = os.fork()
            assert store.get("/share/said") == b"hello"
            os.write(write, f"{store._session.number}\n".encode())
            if inner:
                assert os.waitpid(inner, 0)[1] == 0
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(read) as told:
        sessions = {int(line) for line in told}
    assert len(sessions | {store._session.number}) == 3


def test_a_forked_child_that_never_uses_the_store_harms_nothing(store):
    view = store.get_view("/share/said")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert bytes(view) == store.get("/share/said") == b"hello"


def test_every_option_survives_pickling(cluster):
    with cluster.connect(
        transport="tcp", timeout=7, namespace="/share/ns", on_unavailable="miss"
    ) as store:
        store.put("/x", b"1")
        with pickle.loads(pickle.dumps(store)) as again:
            assert type(again) is crailpy.Store
            assert again._options == store._options
            assert again.get("/x") == b"1"
            assert again._session.number != store._session.number
    with cluster.connect() as store:
        assert store.get("/share/ns/x") == b"1"
        store.rmtree("/share")


def test_a_closed_store_pickles_as_its_address(cluster):
    store = cluster.connect()
    store.close()
    with pickle.loads(pickle.dumps(store)) as again:
        again.listdir("/")
