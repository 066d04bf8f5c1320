"""Prompts that change while a picture is drawn: ``[from:to:when]`` and ``[a|b]``, as in A1111.

A prompt becomes a `Script`; at each step it says what the text is. What forms no such bracket is
text, brackets included, for `attention` to read: so only a ``[`` with its ``]``, at most two
colons and a number after the last, or pipes and no colon, is more than text, and only when
everything in it is well-formed itself.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_TOKEN = re.compile(r"[^\\\[\]():|]+|\\.|[\\\[\]():|]", re.DOTALL)
_NUMBER = re.compile(r"\s*+([+-]?+(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?+\d++)?+)\s*+")


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The pass before a second one, in which prompts go on to change; as in A1111.

    Whole numbers in prompts then count on from the first pass, and fractions from 1.0: after the
    half of the second pass is ``1.5``.

    Attributes:
        steps: of the first pass.
        total: of the second pass, before some are left out because of its strength.
    """

    steps: int
    total: int


@dataclass(frozen=True, eq=False)
class Switch:
    """``[before:after:when]``.

    Attributes:
        before, after: what the text is until, and from, that step on.
        when: the last step of ``before``; with ``share`` as a share of all steps.
    """

    before: Sequence[Node]
    after: Sequence[Node]
    when: float
    share: bool

    def last_step(self, steps: int, earlier: Earlier | None = None) -> int:
        """The last step with ``before``, of ``steps``; 0 or less for none."""
        if earlier is None:
            when = self.when * steps if self.share else self.when
        elif self.share:
            when = (self.when - 1) * earlier.total
        else:
            when = self.when - earlier.steps
        return int(max(-1.0, min(float(steps), when)))


@dataclass(frozen=True, eq=False)
class Alternate:
    """``[a|b|c]``: an option per step, in turn."""

    options: Sequence[Sequence[Node]]


Node = str | Switch | Alternate


@dataclass(frozen=True, eq=False)
class Script:
    """A prompt that may change from step to step.

    Attributes:
        nodes: texts, and brackets that choose between texts.
    """

    nodes: Sequence[Node]

    def at(self, step: int, steps: int, earlier: Earlier | None = None) -> str:
        """The text at one of ``steps`` steps; they count from 1."""
        texts: list[str] = []
        stack = [iter(self.nodes)]
        while stack:
            for node in stack[-1]:
                if isinstance(node, str):
                    texts.append(node)
                else:
                    stack.append(iter(_chosen(node, step, steps, earlier)))
                    break
            else:
                stack.pop()
        return "".join(texts)

    def timetable(self, steps: int, earlier: Earlier | None = None) -> list[tuple[int, str]]:
        """The texts over a run: ``(last step, text)``, the last steps ascending to ``steps``.

        Args:
            steps: of the run.
            earlier: the pass before, if the run is a second one.

        >>> parse_script("a [red:blue:0.5] cat").timetable(10)
        [(5, 'a red cat'), (10, 'a blue cat')]
        """
        return [(step, self.at(step, steps, earlier)) for step in self._ends(steps, earlier)]

    def _ends(self, steps: int, earlier: Earlier | None) -> list[int]:
        """The steps after which the text may change, and the last."""
        ends, stack = {steps}, [self.nodes]
        while stack:
            for node in stack.pop():
                if isinstance(node, Alternate):
                    return list(range(1, steps + 1))
                if isinstance(node, Switch):
                    stack += (node.before, node.after)
                    if node.last_step(steps, earlier) >= 1:
                        ends.add(node.last_step(steps, earlier))
        return sorted(ends)


def _chosen(
    node: Switch | Alternate, step: int, steps: int, earlier: Earlier | None
) -> Sequence[Node]:
    if isinstance(node, Alternate):
        return node.options[(step - 1) % len(node.options)]
    return node.before if step <= node.last_step(steps, earlier) else node.after


def parse_script(text: str) -> Script:
    """Read a prompt; every text is a prompt.

    The time is linear in the text, however deep it is nested.

    >>> parse_script("[fe|]male").timetable(3)
    [(1, 'female'), (2, 'male'), (3, 'female')]
    >>> parse_script("[a:b] and (c:1.2)").at(1, 10)
    '[a:b] and (c:1.2)'
    """
    reader = _Reader()
    for match in _TOKEN.finditer(text):
        reader.take(match[0])
    return Script(reader.nodes)


class _Reader:
    """Reads tokens into one flat list; a bracket that closes takes its part out of it.

    What is open is kept as places in that list. As soon as one of the open brackets cannot be
    completed, none around it can, since they would hold a bracket that is no bracket; then all
    that are open stay text.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._open = array("q")  # places of "(" and "["
        self._first_mark = array("q")  # for each, where its separators begin in:
        self._marks = array("q")  # places of ":" and "|"

    def take(self, token: str) -> None:
        """Read the next token."""
        nodes = self.nodes
        if token in ("(", "["):
            self._open.append(len(nodes))
            self._first_mark.append(len(self._marks))
        elif token in (":", "|") and self._open:
            self._marks.append(len(nodes))
        elif token == ")" and not self._close_round():
            self._give_up()
        elif token == "]" and self._close_square():
            return
        nodes.append(token)

    def _close_round(self) -> bool:
        """Whether this is a bracket with at most one colon, as in ``(text:1.2)``."""
        if not self._innermost_is("("):
            return False
        _, marks = self._pop()
        return sum(self.nodes[place] == ":" for place in marks) <= 1

    def _close_square(self) -> bool:
        """Replace a bracket by what it means; False when it is text."""
        if not self._innermost_is("["):
            self._give_up()
            return False
        start, marks = self._pop()
        if not marks:
            return False
        colons = [place for place in marks if self.nodes[place] == ":"]
        made = self._switch(start, colons) if colons else self._alternate(start, marks)
        if made is None:
            self._give_up()
            return False
        self.nodes[start:] = [made]
        return True

    def _alternate(self, start: int, pipes: Sequence[int]) -> Alternate:
        edges = [start, *pipes, len(self.nodes)]
        return Alternate([self.nodes[a + 1 : b] for a, b in pairwise(edges)])

    def _switch(self, start: int, colons: Sequence[int]) -> Switch | None:
        tail = self.nodes[colons[-1] + 1 :]
        if len(tail) != 1 or not isinstance(tail[0], str):
            return None
        number = _NUMBER.fullmatch(tail[0])
        if number is None or len(colons) > 2:
            return None
        before = self.nodes[start + 1 : colons[0]] if len(colons) == 2 else []
        after = self.nodes[(colons[0] if len(colons) == 2 else start) + 1 : colons[-1]]
        return Switch(before, after, float(number[1]), share="." in number[1])

    def _innermost_is(self, opening: str) -> bool:
        return bool(self._open) and self.nodes[self._open[-1]] == opening

    def _pop(self) -> tuple[int, Sequence[int]]:
        """Forget the innermost open bracket; its place and those of its separators."""
        first = self._first_mark.pop()
        marks = self._marks[first:]
        del self._marks[first:]
        return self._open.pop(), marks

    def _give_up(self) -> None:
        """Everything that is open stays text."""
        del self._open[:], self._first_mark[:], self._marks[:]
