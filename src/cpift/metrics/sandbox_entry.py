"""Started as a script by ``sandbox``, with the standard library alone: gives up what it may do, then runs a program.

Arguments: the folder, ``isolated`` or ``open``, then the limits on memory, file size, processes and CPU seconds.
The program is read from standard input. Exit code 97: the isolation could not be set up, which is then the last line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from functools import cache

NO_ISOLATION = 97
_NEW_MOUNTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_RECURSIVE_PRIVATE, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 0x4000 | 0x40000, -100, 0x8000, 1
_MOUNT_SETATTR = 442  # the same number on every architecture
_NO_NEW_PRIVILEGES, _DEATH_SIGNAL = 38, 1
_UID = 1000  # within the namespace; not root, so that starting the program drops every capability


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _isolate(folder: str, room: int) -> None:
    """Own users, processes and network; every file system read-only but for a small one in memory at the folder."""
    user, group = os.geteuid(), os.getegid()
    _checked(_libc().unshare(_NEW_USER | _NEW_MOUNTS | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK), "unshare")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{_UID} {user} 1"), ("gid_map", f"{_UID} {group} 1")):
        with open(f"/proc/self/{file}", "w") as opened:
            opened.write(text)
    _checked(_libc().mount(None, b"/", None, _MS_RECURSIVE_PRIVATE, None), "mount")
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", _READ_ONLY, 0, 0, 0))
    done = _libc().syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.c_size_t(32))
    _checked(done, "mount_setattr")
    options = f"size={room},nr_inodes=1000,mode=700,uid={_UID},gid={_UID}".encode()
    _checked(_libc().mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options), "mount tmpfs")


def _limit(memory: int, size: int, processes: int, seconds: int) -> None:
    import resource  # noqa: PLC0415 - not on Windows

    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: size,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for which, value in limits.items():
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _of_this_user() -> int:
    """Threads that this user has now: without a namespace they count for the limit on processes."""
    count = 0
    for entry in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        try:
            if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:  # it has ended
            continue
    return count


def _exit_of(child: int) -> int:
    """Wait for a child, and for orphans that are handed over in the meantime."""
    while True:
        process, status = os.wait()
        if process == child:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    """Give up rights, set limits, and become the program, or wait for it and return its exit code."""
    folder, isolated = sys.argv[1], sys.argv[2] == "isolated"
    memory, size, processes, seconds = map(int, sys.argv[3:])
    if isolated:
        try:
            _isolate(folder, size)
        except OSError as error:
            print(error.strerror, flush=True)
            return NO_ISOLATION
    else:
        processes += _of_this_user()
    if sys.platform == "linux":
        _libc().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    os.chdir(folder)
    if isolated:
        first = os.fork()  # process 1 of the namespace: as it ends, the kernel ends all others in it
        if first:
            return abs(_exit_of(first))
        _libc().prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        program = os.fork()
        if program:
            return abs(_exit_of(program))
        os.setsid()  # signals to its process group do not reach the processes above
    _limit(memory, size, processes, seconds)
    os.execv(sys.executable, [sys.executable, "-I", "-"])


if __name__ == "__main__":
    sys.exit(main())
