import os

import pytest

from capsnet import machine


@pytest.mark.parametrize(
    "groups, limits, expected",
    [
        ("0::/a/b", {"a/b/memory.max": "5000", "a/memory.max": "max"}, 5000),
        ("0::/a/b", {"a/b/memory.max": "5000", "a/memory.max": "4000"}, 4000),
        ("0::/", {"memory.max": "3000"}, 3000),
        ("0::/../elsewhere", {"memory.max": "3000", "a/memory.max": "1"}, 3000),
        ("0::/a", {"a/memory.max": "max"}, None),
        ("0::/a", {"a/memory.max": str(2**62)}, None),
        ("0::/a", {}, None),
        ("0::/a:b", {"a:b/memory.max": "2000"}, 2000),
        (
            "3:cpu:/c\n2:memory:/a/b\n0::/u",
            {
                "memory/a/b/memory.limit_in_bytes": "7000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/c/memory.limit_in_bytes": "1",
            },
            7000,
        ),
        (
            "2:cpu,memory:/docker/0123",
            {"memory/memory.limit_in_bytes": "6000"},
            6000,
        ),
        (None, {"memory.max": "1"}, None),
    ],
)
def test_the_memory_that_a_container_is_limited_to_counts(
    tmp_path, groups, limits, expected
):
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, limit in limits.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit + "\n")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.machine_memory(tmp_path) == (expected or whole)
