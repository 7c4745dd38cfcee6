"""The machine's own memory and disk, not the host's.

A machine's /proc shows its own memory (lxcfs on the host sees to it). Where it
does not, the sizes of the machine's processes are added up, and compared with
what the machine was given.
"""

import os
from pathlib import Path

MB = 1 << 20
PROC = Path("/proc")


def memory():
    """Megabytes: of the machine in all, available, and of swap."""
    info = {}
    for line in (PROC / "meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        info[key] = int(value.split()[0]) * 1024
    total, available = info["MemTotal"], info["MemAvailable"]
    given = int(os.environ.get("FLY_VM_MEMORY_MB", 0)) * MB
    if given and total > given:  # the host's figures
        total = given
        available = max(0, given - sum(map(resident, processes())))
    return {
        "total_mb": total // MB,
        "available_mb": available // MB,
        "swap_total_mb": info["SwapTotal"] // MB,
        "swap_free_mb": info["SwapFree"] // MB,
    }


def processes():
    return [p for p in PROC.iterdir() if p.name.isdigit()]


def resident(process):
    """Bytes of a process, with its share of what it has in common with others."""
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended, or is the kernel's
    return 0


def disk(directory):
    """Megabytes: what lies in the directory, which only this machine writes,
    and how much more the file system below it takes."""
    used = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                used += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass  # the cache has just thrown it away
    fs = os.statvfs(directory)
    return {"used_mb": used // MB, "free_mb": fs.f_bavail * fs.f_frsize // MB}
