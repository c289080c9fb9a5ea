"""Where the claims of a process go on: cursors and shares, by a clock that the test sets."""

from __future__ import annotations

from flq.link.arrays import bigints, doubles
from flq.link.cursors import FULL_LOOK_SECONDS, MOST_RUNS, Cursors, Dealt, Look, columns
from flq.wire.ids import NodeId, RunId, TaskId

A, B = NodeId(2), NodeId(3)
TOKENS = iter(range(1, 10**6))


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def cursors(*nodes: NodeId, clock: Clock | None = None) -> Cursors:
    """Cursors of a process that has claimed once, in vain: nothing is due for a look in full."""
    found = Cursors(clock or Clock())
    found.host(nodes or (A,))
    found.look(nodes or (A,), next(TOKENS))
    return found


def look(of: Cursors, *nodes: NodeId) -> Look:
    return of.look(nodes or (A,), next(TOKENS))


def stands(seen: Look) -> dict[tuple[int, int], tuple[int, float]]:
    """Where a look begins in each run on each node: behind which task, and at which tag."""
    places = zip(seen.known_nodes, seen.known_runs, strict=True)
    return dict(zip(places, zip(seen.known_after, seen.known_tags, strict=True), strict=True))


def dealt(run: int, task: int, tag: float | None, weight: float = 1.0, node: NodeId = A) -> Dealt:
    return node, RunId(run), TaskId(task), tag, weight


def test_a_first_look_is_full_and_knows_nothing():
    of = Cursors(Clock())
    of.host([A, B])
    first = of.look([A], 1)
    assert (first.full, first.again, first.beyonds, first.clocks) == (frozenset({A}), True, [0], [0.0])
    assert stands(first) == {}
    assert list(first.nodes) == [A]
    second = of.look([A, B], 2)  # b has not been looked at yet
    assert (second.full, second.again) == (frozenset({B}), False)


def test_only_the_token_of_the_last_claim_is_a_repetition():
    of = cursors()
    assert not of.look([A], 10**7).again
    assert of.look([A], 10**7).again
    assert not of.look([A], 10**7 + 1).again
    assert not of.look([A], 10**7).again


def test_who_begins_anew_knows_nothing_and_may_repeat_a_claim_of_before():
    of = cursors()
    of.found([(A, RunId(7))])
    of.host([A, B])
    anew = look(of, A, B)
    assert (anew.again, anew.full, stands(anew)) == (True, frozenset({A, B}), {})


def test_a_run_that_was_found_is_looked_at_behind_its_last_task():
    of = cursors()
    of.found([(A, RunId(7))])
    assert stands(look(of)) == {(A, 7): (0, 0.0)}
    of.brought([dealt(7, 20, 0.0), dealt(7, 21, 1.0), dealt(7, 19, 2.0)])
    assert stands(look(of)) == {(A, 7): (21, 3.0)}
    of.found([(A, RunId(7))])  # as each look in full finds it
    assert stands(look(of)) == {(A, 7): (21, 3.0)}


def test_runs_above_the_highest_that_was_found_are_looked_for():
    of = cursors()
    of.found([(A, RunId(7)), (A, RunId(5))])
    assert look(of).beyonds == [7]
    of.found([(A, RunId(9))])
    assert look(of).beyonds == [9]


def test_nodes_have_cursors_of_their_own():
    of = cursors(A, B)
    of.found([(A, RunId(7)), (B, RunId(7)), (B, RunId(8))])
    of.brought([dealt(7, 20, 5.0, node=A), dealt(7, 30, 9.0, node=B)])
    both = look(of, A, B)
    assert stands(both) == {(A, 7): (20, 6.0), (B, 7): (30, 10.0), (B, 8): (0, 9.0)}
    assert (both.beyonds, both.clocks) == ([7, 8], [5.0, 9.0])
    assert stands(look(of, B)) == {(B, 7): (30, 10.0), (B, 8): (0, 9.0)}


def test_the_tags_of_a_run_are_one_over_its_weight_apart():
    of = cursors()
    of.found([(A, RunId(7)), (A, RunId(8))])
    of.brought([dealt(7, 1, 0.0, weight=4.0), dealt(8, 2, 0.0, weight=0.5)])
    assert stands(look(of)) == {(A, 7): (1, 0.25), (A, 8): (2, 2.0)}


def test_a_run_that_was_idle_begins_where_the_clock_of_the_node_stands():
    of = cursors()
    of.found([(A, RunId(7))])
    of.brought([dealt(7, 1, 6.0), dealt(7, 2, 5.0)])
    of.found([(A, RunId(8))])
    assert stands(look(of)) == {(A, 7): (2, 7.0), (A, 8): (0, 6.0)}
    of.brought([dealt(8, 3, 20.0)])
    assert stands(look(of)) == {(A, 7): (2, 20.0), (A, 8): (3, 21.0)}


def test_a_notice_lowers_the_cursor_to_the_task_before_it():
    of = cursors()
    of.found([(A, RunId(7))])
    of.brought([dealt(7, 20, 0.0)])
    of.hear("7 3 15")
    of.hear("7 3 12")
    of.hear("7 3 18")
    assert stands(look(of)) == {(A, 7): (11, 1.0)}
    assert stands(look(of)) == {(A, 7): (11, 1.0)}
    of.brought([dealt(7, 25, 1.0)])
    assert stands(look(of)) == {(A, 7): (25, 2.0)}, "a notice counts once"


def test_a_notice_of_tasks_behind_the_cursor_changes_nothing():
    of = cursors()
    of.found([(A, RunId(7))])
    of.brought([dealt(7, 20, 0.0)])
    of.hear("7 3 30")
    seen = look(of)
    assert (stands(seen), seen.full) == ({(A, 7): (20, 1.0)}, frozenset())


def test_a_run_that_is_not_known_is_looked_for_once_when_it_is_told():
    """One above the highest that was found would be found anyway."""
    of = cursors(A, B)
    of.found([(A, RunId(7))])
    of.brought([dealt(7, 20, 5.0)])
    for run in (6, 4, 5, 8):
        of.hear(f"{run} 3 9")
    told = look(of, A, B)
    assert (told.beyonds, stands(told), told.full) == ([3, 0], {(A, 7): (20, 6.0)}, frozenset())
    assert look(of, A, B).beyonds == [7, 0]
    of.forget([RunId(7)])
    of.hear("7 3 9")  # the highest that was ever found
    assert look(of, A).beyonds == [6]
    assert look(of, A).beyonds == [7]


def test_what_is_no_notice_makes_every_look_full():
    for payload in ("", "7", "7 3", "seven 3 9", "7 3 nine", "7 3 -9"):
        of = cursors(A, B)
        look(of, A, B)
        of.hear(payload)
        assert look(of, A, B).full == {A, B}, payload
        assert look(of, A, B).full == frozenset()


def test_a_look_in_full_begins_at_the_start_of_every_run_and_keeps_its_share():
    of = cursors(A, B)
    look(of, A, B)
    of.found([(A, RunId(7)), (B, RunId(7))])
    of.brought([dealt(7, 20, 5.0, node=A), dealt(7, 20, 5.0, node=B)])
    of.look_everywhere()
    full = look(of, A)
    assert (full.full, full.beyonds, stands(full)) == (frozenset({A}), [0], {(A, 7): (0, 6.0)})
    assert stands(look(of, A)) == {(A, 7): (20, 6.0)}
    assert look(of, A, B).full == frozenset({B})


def test_a_node_is_looked_at_in_full_every_few_seconds():
    clock = Clock()
    of = cursors(A, B, clock=clock)
    assert look(of, A, B).full == frozenset()
    clock.now += FULL_LOOK_SECONDS / 2
    of.look_everywhere()
    assert look(of, A).full == {A}
    assert look(of, B).full == {B}
    clock.now += FULL_LOOK_SECONDS / 2
    assert look(of, A, B).full == frozenset()
    clock.now += FULL_LOOK_SECONDS / 2
    assert look(of, A, B).full == {A, B}


def test_after_a_failed_claim_its_nodes_are_looked_at_in_full():
    of = cursors(A, B)
    look(of, A, B)
    of.failed(look(of, B))
    assert look(of, A, B).full == {B}


def test_after_a_repeated_claim_the_node_is_looked_at_in_full_and_the_cursor_stays():
    of = cursors()
    of.found([(A, RunId(7))])
    of.brought([dealt(7, 20, None), dealt(7, 10, 0.0)])
    seen = look(of)
    assert seen.full == {A}
    assert stands(seen) == {(A, 7): (0, 1.0)}
    assert stands(look(of)) == {(A, 7): (10, 1.0)}


def test_runs_that_have_ended_are_forgotten_on_every_node():
    of = cursors(A, B)
    of.found([(A, RunId(7)), (A, RunId(8)), (B, RunId(7))])
    of.forget([RunId(7), RunId(99)])
    assert stands(look(of, A, B)) == {(A, 8): (0, 0.0)}
    of.brought([dealt(7, 20, 3.0)])  # a claim that was under way
    seen = look(of, A)
    assert (stands(seen), seen.clocks) == ({(A, 8): (0, 3.0)}, [3.0])


def test_of_very_many_runs_the_oldest_are_left_to_looks_in_full():
    of = cursors()
    of.found((A, RunId(run)) for run in range(1, MOST_RUNS + 1))
    assert len(look(of).known_runs) == MOST_RUNS
    of.found([(A, RunId(MOST_RUNS + 1))])
    assert sorted(look(of).known_runs) == list(range(2, MOST_RUNS + 2))


def test_a_look_becomes_the_columns_of_the_statement():
    of = cursors(A, B)
    of.found([(A, RunId(7))])
    of.brought([dealt(7, 20, 5.0)])
    assert columns(look(of, B, A), {A: 4, B: 6}) == {
        "node_ids": bigints([B, A]), "epochs": bigints([6, 4]), "clocks": doubles([0.0, 5.0]),
        "beyonds": bigints([0, 7]), "known_nodes": bigints([A]), "known_runs": bigints([7]),
        "known_after": bigints([20]), "known_tags": doubles([6.0]),
    }  # fmt: skip
