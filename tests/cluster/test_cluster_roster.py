"""The roster: who is awake is told by heartbeats and this process' clock, whatever the others' clocks say."""

import pytest

from knnstore.scheduling.roster import Roster


@pytest.fixture
def world():
    class World:
        def __init__(self):
            self.now = 1000.0
            self.heard = {"a": 5.0, "b": 9e9}  # clocks an age apart
            self.said = []

        def identity(self):
            return {"workers": {address: {"last_seen": heard} for address, heard in self.heard.items()}}

        def passes(self, seconds, *beating):
            self.now += seconds
            for address in beating:
                self.heard[address] += seconds

    return World()


@pytest.fixture
def roster(world):
    return Roster(world.identity, 30.0, world.said.append, clock=lambda: world.now)


def test_whoever_keeps_beating_is_awake(world, roster):
    for _ in range(10):
        roster.look()
        world.passes(10, "a", "b")
    assert roster.awake == ["a", "b"]
    assert not roster.frozen


def test_whoever_stops_is_frozen_and_wakes_again(world, roster):
    roster.look()
    for _ in range(5):
        world.passes(10, "b")
        roster.look()
    assert (roster.frozen, roster.awake) == ({"a"}, ["b"])
    assert world.said == ["worker a hasn't answered for 30 seconds: its tasks are also run elsewhere"]
    world.passes(10, "a", "b")
    roster.look()
    assert roster.awake == ["a", "b"]


def test_it_looks_once_a_second(world, roster):
    roster.look()
    world.heard["c"] = 1.0
    world.passes(0.5)
    roster.look()
    assert len(roster) == 2
    world.passes(0.6)
    roster.look()
    assert len(roster) == 3


def test_a_cluster_without_workers_is_said_once(world, roster):
    world.heard.clear()
    for _ in range(3):
        roster.look()
        world.passes(2)
    assert world.said == ["the cluster has no workers: waiting for one"]
