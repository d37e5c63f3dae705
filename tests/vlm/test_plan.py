from hypothesis import given
from hypothesis import strategies as st

from rewarddance.vlm.plan import Group, common_prefix, group_by_prefix, pack

KEYS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=12)


def cost(groups, keys):
    return sum(g.shared + sum(len(keys[m]) - g.shared for m in g.members) for g in groups)


def partitions(items):
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in partitions(rest):
        yield [[first], *smaller]
        for i, part in enumerate(smaller):
            yield [*smaller[:i], [first, *part], *smaller[i + 1 :]]


@given(KEYS)
def test_groups_partition_and_share_what_they_say(keys):
    groups = group_by_prefix(keys)
    assert sorted(m for g in groups for m in g.members) == list(range(len(keys)))
    for g in groups:
        assert len({keys[m][: g.shared] for m in g.members}) == 1
        assert all(g.shared < len(keys[m]) for m in g.members)


# dialogs end in the template's end-of-turn tokens, so none is a beginning of another
ENDED = st.lists(st.integers(0, 1), max_size=5).map(lambda x: (*x, 9))


@given(st.lists(ENDED, min_size=1, max_size=6, unique=True))
def test_no_other_partition_processes_fewer_tokens(keys):
    def shared(part):
        if len(part) == 1:
            return 0
        least = min(len(keys[m]) for m in part) - 1
        return min(least, *(common_prefix(keys[part[0]], keys[m]) for m in part[1:]))

    best = min(cost([Group(shared(p), tuple(p)) for p in parts], keys) for parts in partitions(list(range(len(keys)))))
    assert cost(group_by_prefix(keys), keys) == best


@given(KEYS, st.integers(8, 60))
def test_packing_keeps_every_member_once(keys, budget):
    batches = pack(group_by_prefix(keys), [len(k) for k in keys], budget)
    assert sorted(m for b in batches for g in b for m in g.members) == list(range(len(keys)))
