"""How much a process may take, in the trees of /proc and /sys that systems show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from srgan.machine import available_bytes, available_cores, bfloat16_pays

MIB = 2**20
UNLIMITED_V1 = 9223372036854771712
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
MEMORY_MOUNT = "35 31 0:32 {tree} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
CPU_MOUNT = "36 31 0:33 {tree} /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct"


def system(root: Path, groups: str, mounts: list[str], files: dict[str, str], free_mib: int = 8000) -> Path:
    """Write a system's files below `root`; those of `files` are in /sys/fs/cgroup."""
    written = {
        "proc/meminfo": f"MemTotal: {16000 * 1024} kB\nMemAvailable: {free_mib * 1024} kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "\n".join(["21 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]) + "\n",
    } | {f"sys/fs/cgroup/{path}": f"{content}\n" for path, content in files.items()}
    for path, content in written.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def v2_memory(group: str, limit: object, used_mib: int, cached: tuple[int, int] = (0, 0)) -> dict[str, str]:
    """Files of a group of version 2. `cached`: MiB of files, not used lately and used lately."""
    return {
        f"{group}memory.max": str(limit),
        f"{group}memory.current": str(used_mib * MIB),
        f"{group}memory.stat": f"anon 5\ninactive_file {cached[0] * MIB}\nactive_file {cached[1] * MIB}",
    }


def v1_memory(group: str, limit: int, used_mib: int, cached: tuple[int, int] = (0, 0)) -> dict[str, str]:
    return {
        f"memory/{group}memory.limit_in_bytes": str(limit),
        f"memory/{group}memory.usage_in_bytes": str(used_mib * MIB),
        f"memory/{group}memory.stat": (
            "inactive_file 1\nactive_file 1\n"  # without the groups below
            f"total_inactive_file {cached[0] * MIB}\ntotal_active_file {cached[1] * MIB}"
        ),
    }


def test_a_systemd_slice_of_version_2(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        "0::/user.slice/job.scope\n",
        [V2_MOUNT],
        v2_memory("user.slice/", "max", 300) | v2_memory("user.slice/job.scope/", 500 * MIB, 100),
    )
    assert available_bytes(root) == 400 * MIB


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        "0::/a/b/c\n",
        [V2_MOUNT],
        v2_memory("a/", 600 * MIB, 500) | v2_memory("a/b/", 900 * MIB, 200) | v2_memory("a/b/c/", "max", 100),
    )
    assert available_bytes(root) == 100 * MIB


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", [V2_MOUNT], v2_memory("", 700 * MIB, 100))
    assert available_bytes(root) == 600 * MIB


def test_what_is_slowed_down_above_a_limit_stays_below_it(tmp_path: Path) -> None:
    files = v2_memory("", 700 * MIB, 100) | {"memory.high": str(300 * MIB)}
    assert available_bytes(system(tmp_path, "0::/\n", [V2_MOUNT], files)) == 200 * MIB


@pytest.mark.parametrize(
    ("tree", "group", "folder"),
    [
        ("/", "/docker/1a", "docker/1a/"),  # a process of the machine
        ("/docker/1a", "/docker/1a", ""),  # a container that sees the group's name outside
        ("/docker/1a", "/docker/1a/inner", "inner/"),
        ("/", "/../2b", ""),  # a group outside of what this process may see
        ("/kubepods/x", "/elsewhere", ""),
    ],
)
def test_version_1(tmp_path: Path, tree: str, group: str, folder: str) -> None:
    root = system(
        tmp_path,
        f"5:cpuset:/other\n4:memory:{group}\n0::/\n",
        [MEMORY_MOUNT.format(tree=tree), V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")],
        v1_memory("", UNLIMITED_V1, 3000) | v1_memory(folder, 512 * MIB, 112),
    )
    assert available_bytes(root) == 400 * MIB


def test_copies_of_files_are_free_and_half_of_those_used_lately(tmp_path: Path) -> None:
    two = system(tmp_path / "2", "0::/\n", [V2_MOUNT], v2_memory("", 500 * MIB, 450, (300, 100)))
    one = system(
        tmp_path / "1",
        "4:memory:/\n",
        [MEMORY_MOUNT.format(tree="/")],
        v1_memory("", 500 * MIB, 450, (300, 100)),
    )
    assert available_bytes(two) == available_bytes(one) == 400 * MIB


def test_no_more_than_what_the_machine_has_free(tmp_path: Path) -> None:
    files = v2_memory("", 500 * MIB, 100)
    assert available_bytes(system(tmp_path, "0::/\n", [V2_MOUNT], files, free_mib=50)) == 50 * MIB


def test_a_group_that_is_full(tmp_path: Path) -> None:
    files = v2_memory("", 500 * MIB, 510)
    assert available_bytes(system(tmp_path, "0::/\n", [V2_MOUNT], files)) == 0


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == 2 * 2**30
    assert available_cores(tmp_path) == bound_cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
@pytest.mark.parametrize(
    ("groups", "mount", "files", "cores"),
    [
        ("0::/a/b\n", V2_MOUNT, {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/a\n", V2_MOUNT, {"a/cpu.max": "20000 100000"}, 1),  # a fifth of a core is one
        ("0::/a\n", V2_MOUNT, {"a/cpu.max": "max 100000"}, None),
        (
            "3:cpu,cpuacct:/a\n",
            CPU_MOUNT.format(tree="/"),
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "50000"},
            1,
        ),
        (
            "3:cpu,cpuacct:/a\n",
            CPU_MOUNT.format(tree="/"),
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_a_quota_of_time(
    tmp_path: Path, groups: str, mount: str, files: dict[str, str], cores: int | None
) -> None:
    root = system(tmp_path, groups, [mount], files)
    assert available_cores(root) == (cores or bound_cores())


def test_the_tightest_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    files = {"a/cpu.max": "350000 100000", "a/b/cpu.max": "800000 100000"}
    assert available_cores(system(tmp_path, "0::/a/b\n", [V2_MOUNT], files)) == 4


def test_cores_are_those_that_the_process_is_bound_to() -> None:
    code = (
        "import os, srgan.machine as e; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "print(e.available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_available_bytes_are_plausible() -> None:
    assert 2**20 < available_bytes() < 2**50


def bound_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("processor", "limit", "pays"),
    [
        ("GenuineIntel\nflags : avx512_bf16 amx_bf16 amx_tile", None, True),
        ("GenuineIntel\nflags : avx512_bf16 amx_bf16 amx_tile", "AVX512_CORE_BF16", False),
        ("GenuineIntel\nflags : avx512_bf16 amx_bf16 amx_tile", "avx512_core_amx", True),
        ("GenuineIntel\nflags : avx512_bf16", None, False),  # AMX hidden from a virtual machine, Cooper Lake
        ("AuthenticAMD\nflags : avx512_bf16", None, True),  # Zen 4
        (None, None, True),  # not Linux
    ],
)
def test_bfloat16_pays_by_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: str | None, limit: str | None, pays: bool
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    if processor is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(f"vendor_id : {processor}\n")
    assert bfloat16_pays(tmp_path) == pays
