"""The tree of visits: what it costs, and orders that make each node once. All counts are checked by plain lists."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from david.engine.prefix_tree import ROOT, PrefixTree
from david.engine.schedule import Schedule, split_recipes
from david.recipe.recipe import Recipe

DEPTH = 6
ORDERS = [PrefixTree.depth_first_order, PrefixTree.layer_sweep_order]
Visits = tuple[tuple[int, float], ...]


def scan(n_layers: int) -> list[Recipe]:
    """The base, and every repeat of one block, put together from plain lists."""
    base = list(range(n_layers))
    blocks = [(i, j) for i in range(n_layers) for j in range(i + 1, n_layers + 1)]
    return [Recipe(base), *(Recipe(base[:j] + base[i:]) for i, j in blocks)]


def beginnings(recipe: Recipe, n_layers: int) -> list[Visits]:
    """All beginnings of a recipe, the end as one more visit."""
    whole = (*recipe, (n_layers, 1.0))
    return [whole[:size] for size in range(1, len(whole) + 1)]


def way(tree: PrefixTree, node: int) -> Visits:
    """The visits that lead to a node."""
    visits: Visits = ()
    while node != ROOT:
        visits = ((tree.layers[node], tree.scales[node]), *visits)
        node = tree.parents[node]
    return visits


def groups(recipes: list[Recipe], n_layers: int, states: int, *, layer_sweep: bool) -> list[list[int]]:
    """The numbers of the recipes of each group."""
    return [list(group.numbers) for group in split_recipes(recipes, n_layers, states, layer_sweep=layer_sweep)]


def most_held(tree: PrefixTree, order: list[int]) -> int:
    """States that are made and still needed, at the moment of an order that has most of them."""
    moments = range(len(order) + 1)
    needed = [{tree.parents[node] for node in order[moment:]} for moment in moments]
    return max(len(needed[moment] & {ROOT, *order[:moment]}) for moment in moments)


recipes = st.builds(
    lambda visits: Recipe(*zip(*visits, strict=True)),
    st.lists(st.tuples(st.integers(0, DEPTH - 1), st.sampled_from([1.0, 0.5, -0.25])), min_size=1, max_size=9),
)
scanned = st.sampled_from(scan(DEPTH))  # recipes that share much
some = st.lists(recipes | scanned, min_size=1, max_size=12)


@pytest.mark.parametrize("n_layers", [8, 13, 30])
def test_a_full_scan_makes_as_many_visits_as_the_formula_says(n_layers: int) -> None:
    every = scan(n_layers)
    cost = PrefixTree.of(every, n_layers).cost
    assert cost.visits == sum((n_layers - i) ** 2 for i in range(n_layers)) + n_layers
    assert cost.visits_one_by_one == sum(map(len, every))
    assert cost.recipes == cost.ends == n_layers * (n_layers + 1) // 2 + 1
    assert (cost.sweeps, cost.states) == (2, 2)
    assert cost.sweep_states > 2


def test_equal_recipes_have_one_end() -> None:
    cost = PrefixTree.of([Recipe((0, 1)), Recipe((1,)), Recipe((0, 1))], 2).cost
    assert (cost.recipes, cost.ends, cost.visits, cost.visits_one_by_one) == (3, 2, 3, 5)


def test_another_scale_is_another_visit() -> None:
    tree = PrefixTree.of([Recipe((0, 1)), Recipe((0, 1), (0.5, 1)), Recipe((0, 1), (1, 0.5))], 2)
    assert tree.cost.visits == 5
    assert sorted(tree.paths().values()) == [
        ((0, 0.5),),
        ((0, 0.5), (1, 1.0)),
        ((0, 1.0),),
        ((0, 1.0), (1, 0.5)),
        ((0, 1.0), (1, 1.0)),
    ]


def test_the_ratio_counts_ends_as_visits() -> None:
    cost = PrefixTree.of([Recipe.parse("0:4"), Recipe.parse("0:2, 1:4"), Recipe.parse("0:4")], 4).cost
    assert cost.ratio(9) == (4 + 5 + 4 + 3 * 9) / (7 + 2 * 9)
    assert cost.ratio(0) == 13 / 7


def test_a_plan_refuses_a_layer_that_the_base_does_not_have() -> None:
    with pytest.raises(ValueError, match="layer 4 is out of range"):
        PrefixTree.of([Recipe((0, 4))], 4)


def test_no_recipes_cost_nothing() -> None:
    tree = PrefixTree.of([], 4)
    assert tree.depth_first_order() == tree.layer_sweep_order() == []
    assert (tree.cost.visits, tree.cost.sweeps, tree.cost.states) == (0, 0, 0)
    assert groups([], 4, 1, layer_sweep=False) == []


@pytest.mark.parametrize("recipe", ["0:6", "0:6, 2:6", "5, 0, 0, 3"])
def test_one_recipe_holds_one_state(recipe: str) -> None:
    tree = PrefixTree.of([Recipe.parse(recipe)], 6)
    assert tree.depth_first_order() == list(range(len(tree.parents)))
    assert tree.cost.states == tree.cost.sweep_states == 1


@given(some, st.data())
def test_an_order_makes_what_is_wanted_once_and_parents_first(these: list[Recipe], data: st.DataObject) -> None:
    tree = PrefixTree.of(these, DEPTH)
    visits = [node for node in range(len(tree.parents)) if not tree.is_end(node)]
    known = data.draw(st.sets(st.sampled_from(visits)))
    ways = {way(tree, node) for node in known}
    wanted: set[Visits] = set()
    for recipe in these:
        all_of_it = beginnings(recipe, DEPTH)
        wanted |= set(all_of_it[max((len(one) for one in all_of_it if one in ways), default=0) :])
    for order_of in ORDERS:
        order = order_of(tree, known)
        assert len(order) == len(set(order))
        assert {way(tree, node) for node in order} == wanted
        made = {ROOT, *known}
        for node in order:
            assert tree.parents[node] in made
            made.add(node)


@given(some)
def test_nodes_are_the_distinct_beginnings(these: list[Recipe]) -> None:
    tree = PrefixTree.of(these, DEPTH)
    distinct = {one for recipe in these for one in beginnings(recipe, DEPTH)}
    assert sorted(way(tree, node) for node in range(len(tree.parents))) == sorted(distinct)
    assert [way(tree, end) for end in tree.ends] == [(*recipe, (DEPTH, 1.0)) for recipe in these]
    assert tree.cost.visits + tree.cost.ends == len(distinct)
    assert tree.cost.ends == len(set(these))


@given(some)
def test_the_peak_of_an_order_is_the_most_states_that_wait_for_a_child(these: list[Recipe]) -> None:
    tree = PrefixTree.of(these, DEPTH)
    for order in (tree.depth_first_order(), tree.layer_sweep_order()):
        assert tree.peak_states(order) == most_held(tree, order)


@given(some, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_no_other_order_holds_fewer_states_than_depth_first(these: list[Recipe], chance: random.Random) -> None:
    tree = PrefixTree.of(these, DEPTH)
    least = tree.peak_states(tree.depth_first_order())
    for _ in range(5):
        ready, order = list(tree.children[ROOT]), []
        while ready:
            node = ready.pop(chance.randrange(len(ready)))
            order.append(node)
            ready += tree.children[node]
        assert least <= most_held(tree, order)


@given(some)
def test_a_layer_sweep_walks_up_once_more_than_the_most_seams(these: list[Recipe]) -> None:
    seams = max(sum(after < before for before, after in pairwise(recipe.repeat_map)) for recipe in these)
    tree = PrefixTree.of(these, DEPTH)
    assert tree.count_sweeps(tree.layer_sweep_order()) == tree.cost.sweeps == 1 + seams


@given(some, st.integers(1, 4), st.booleans())
def test_groups_hold_no_more_states_than_they_may(these: list[Recipe], states: int, layer_sweep: bool) -> None:
    found = groups(these, DEPTH, states, layer_sweep=layer_sweep)
    assert sorted(number for group in found for number in group) == list(range(len(these)))
    for group in found:
        tree = PrefixTree.of([these[number] for number in group], DEPTH)
        order = tree.layer_sweep_order() if layer_sweep else tree.depth_first_order()
        assert len(group) == 1 or most_held(tree, order) <= states


def test_groups_keep_recipes_together_that_begin_alike() -> None:
    mixed = [Recipe((first, last)) for last in range(3) for first in (0, 1)]
    found = groups(mixed, 3, 2, layer_sweep=True)
    assert len(found) > 1
    assert [number for group in found for number in group] == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(("states", "number"), [(2, 1), (1, 45)])
def test_a_full_scan_is_one_group_where_two_states_are_held(states: int, number: int) -> None:
    every = scan(9)  # the base and the repeat of its last layer need one state: 46 recipes, 45 groups
    assert len(groups(every, 9, states, layer_sweep=False)) == number


@given(some, st.data())
def test_the_tree_of_a_slice_of_sorted_recipes_is_cut_as_it_would_be_built(
    these: list[Recipe], data: st.DataObject
) -> None:
    every = sorted(these, key=tuple)
    start = data.draw(st.integers(0, len(every) - 1))
    stop = data.draw(st.integers(start + 1, len(every)))
    cut, built = PrefixTree.of(every, DEPTH).subset(start, stop), PrefixTree.of(every[start:stop], DEPTH)
    assert vars(cut) == vars(built)


def test_groups_are_made_once_for_each_limit_and_shared_if_all_recipes_fit() -> None:
    every = scan(9)
    schedule = Schedule(tuple(every), 9, {}, tuple(range(len(every))))
    assert schedule.groups(2) is schedule.groups(5) is schedule.groups()
    assert schedule.groups(1) is schedule.groups(1)
    assert len(schedule.groups(1)) == 45


def test_some_recipes_of_a_schedule_keep_their_numbers() -> None:
    every = scan(4)
    schedule = Schedule(tuple(every), 4, {}, tuple(range(len(every))))
    (group,) = schedule.only([1, 3]).groups()
    assert group.numbers == (1, 3)
    assert group.tree.cost == PrefixTree.of([every[1], every[3]], 4).cost
    assert schedule.only(range(len(every))) is schedule
