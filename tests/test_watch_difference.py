"""What a consumer missed, made up from what was touched; and events that cancel each other out."""

from __future__ import annotations

import random

import pytest
from tree_oracle import Replay, differ

from fdtransport import WatchEvent, WatchKind
from fdtransport._core.watch_difference import Difference, compacted
from fdtransport._core.watch_tree import Tree


class Story:
    """Random changes of a tree, all of which are told to a replay."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.everything = Replay()
        self.told: list[WatchEvent] = []
        self.missed: Difference | None = None
        self.tree = Tree(self.tell)
        self.root = self.tree.add_root("/r", 1, False)
        self._number = 1

    def tell(self, change, node):
        self.everything.one(change)
        self.told.append(change)
        if self.missed is not None:
            self.missed.note(change, node)

    def nodes(self):
        found = [self.root]
        for node in found:
            found += [entry for entry in node.entries.values() if entry is not None]
        return found

    def change(self, count: int) -> None:
        for _ in range(count):
            parent, name = self.random.choice(self.nodes()), self.random.choice("abc")
            self.random.choice([self.make, self.make, self.move, self.move, self.remove, self.write])(
                parent, name
            )

    def make(self, parent, name):
        if name not in parent.entries:
            self._number += 1
            if self.random.random() < 0.5:
                self.tree.add(parent, name)
            else:
                self.tree.add_dir(parent, name, self._number)

    def move(self, parent, name):
        to, new = self.random.choice(self.nodes()), self.random.choice("abc")
        if name not in parent.entries or (to, new) == (parent, name):
            return
        node = parent.entries[name]
        free = new not in to.entries or (node is None and to.entries[new] is None)
        if free and not (node is not None and to.is_below(node)):
            self.tree.move(parent, name, to, new)

    def remove(self, parent, name):
        if name in parent.entries:
            self.tree.remove(parent, name, self.random.choice([WatchKind.DELETED, WatchKind.MOVED_OUT]))

    def write(self, parent, name):
        if name in parent.entries:
            is_dir = parent.entries[name] is not None
            self.tree.say(self.random.choice([WatchKind.MODIFIED, WatchKind.WRITTEN]), parent, name, is_dir)


@pytest.mark.parametrize("part", range(4))
def test_what_was_missed_leads_from_the_tree_as_it_was_to_the_tree_as_it_is(part):
    for seed in range(part * 250, part * 250 + 250):
        story = Story(seed)
        story.change(story.random.randrange(30))
        late = Replay()
        late.paths = dict(story.everything.paths)
        story.missed = Difference(story.tree)
        story.change(story.random.randrange(60))
        late.apply(story.missed.changes())
        assert story.everything.faults == []
        assert differ(story.everything.paths, late.paths) == "", seed
        assert late.faults == [], seed


@pytest.mark.parametrize("part", range(4))
def test_events_without_those_that_cancel_each_other_out_lead_to_the_same_tree(part):
    for seed in range(part * 250, part * 250 + 250):
        story = Story(seed)
        story.change(60)
        short = compacted(story.told)
        replay = Replay()
        replay.apply(short)
        assert differ(story.everything.paths, replay.paths) == "", seed
        assert replay.faults == [], seed
        assert len(short) <= len(story.told)


def test_what_came_and_went_meanwhile_is_not_remembered():
    story = Story(0)
    story.missed = Difference(story.tree)
    for n in range(1000):
        story.tree.add(story.root, str(n))
        story.tree.remove(story.root, str(n))
    assert not story.missed._was
    assert story.missed.changes() == []
