from hypothesis import given
from hypothesis import strategies as st

from rewarddance.vlm import plan
from rewarddance.vlm.plan import batches, bucketed, build_tree, common_prefix

KEYS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=14, unique=True)


@given(KEYS)
def test_the_nodes_on_the_way_to_a_sequences_end_hold_its_tokens(keys):
    keys = sorted(keys)
    tree = build_tree(keys)
    for key, end in zip(keys, tree.ends, strict=True):
        path = [end]
        while (parent := tree.nodes[path[0]].parent) >= 0:
            path.insert(0, parent)
        assert (
            tuple(t for i in path for t in keys[tree.nodes[i].member][tree.nodes[i].start : tree.nodes[i].stop]) == key
        )


@given(KEYS)
def test_the_tree_holds_every_distinct_prefix_once(keys):
    keys = sorted(keys)
    assert build_tree(keys).num_tokens == len({k[:n] for k in keys for n in range(1, len(k) + 1)})


@given(KEYS)
def test_parents_come_first_and_no_node_is_empty(keys):
    tree = build_tree(sorted(keys))
    assert all(n.parent < i and n.length > 0 for i, n in enumerate(tree.nodes))


@given(KEYS, st.integers(1, 40))
def test_batches_partition_and_keep_to_the_budget(keys, budget):
    keys = sorted(keys)
    found = batches(keys, budget)
    assert [i for b in found for i in b] == list(range(len(keys)))
    for b in found:
        assert len(b) == 1 or build_tree(keys[b.start : b.stop]).num_tokens <= max(budget, len(keys[b.start]) * 3 // 2)


def test_a_prefix_as_long_as_the_budget_is_read_once():
    keys = sorted((*range(1000), 2000 + i) for i in range(60))
    assert batches(keys, 900) == batches(keys, 1010) == [range(60)]
    assert len(batches([(i, *range(1000)) for i in range(4)], 900)) == 4


@given(KEYS, st.sampled_from([1, 100]))
def test_buckets_hold_every_node_once_with_its_parent(keys, few):
    tree = build_tree(sorted(keys))
    old, plan.FEW = plan.FEW, few
    try:
        found = bucketed(tree)
    finally:
        plan.FEW = old
    assert sorted(i for b in found for i in b.nodes) == list(range(len(tree.nodes)))
    for b in found:
        assert len(b.nodes) == b.siblings * len(b.parents)
        for k, i in enumerate(b.nodes):
            assert tree.nodes[i].parent == b.parents[k // b.siblings]
            assert 0 <= b.length - tree.nodes[i].length < plan.STEP
    padded = any(b.length > tree.nodes[i].length for b in found for i in b.nodes)
    assert not padded or few < len({n.length for n in tree.nodes})


def test_common_prefix():
    assert common_prefix((1, 2), (1, 2)) == 2
    assert common_prefix((), (1,)) == 0
    assert common_prefix(tuple(range(50)), (*range(33), 99, *range(34, 50))) == 33
