"""Refuse system calls of generated programs in the kernel, by a seccomp filter.

A filter binds root, threads and machine code alike, and cannot be removed.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Sequence

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
PR_SET_NO_NEW_PRIVS = 38
MS_RDONLY, MS_NOSUID, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 8, 32, 4096  # linux/mount.h
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026  # SECCOMP_RET_ALLOW, _ERRNO | errno
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
# Offsets in struct seccomp_data; of the 64-bit arguments, the lower halves.
NUMBER, ARCH, ARGUMENTS = 0, 4, (16, 24, 32)
CLONE_THREAD = 0x00010000
PRIO_PROCESS, IOPRIO_WHO_PROCESS = 0, 1
F_SETOWN, F_SETOWN_EX = 8, 15  # of fcntl: who gets a file's signals
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902  # the same by ioctl
# A lease on a library makes other processes wait to open it, even through a read-only mount.
F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ = 1024, 1026, 1031
PR_SET_PDEATHSIG, PR_SCHED_CORE = 1, 62
AF_UNIX = 1  # another family makes the kernel load its module
X32 = 0x40000000  # first number of the other table of x86-64 kernels

# linux/unistd.h by machine: (AUDIT_ARCH, numbers by name). Numbers from 424 on are common to all.
MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            **{"clone": 56, "kill": 62, "tgkill": 234},
            **{"fork": 57, "vfork": 58, "execve": 59, "execveat": 322},
            **{"tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297},
            **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
            **{"unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155},
            **{"chroot": 161, "socket": 41, "bpf": 321, "perf_event_open": 298},
            **{"userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250},
            **{"memfd_create": 319, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240},
            **{"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "flock": 73},
            **{"inotify_init": 253, "inotify_init1": 294, "fanotify_init": 300},
            **{"prlimit64": 302, "setpgid": 109, "migrate_pages": 256, "move_pages": 279},
            **{"sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203},
            **{"sched_setattr": 314, "setpriority": 141, "ioprio_set": 251},
            **{"io_setup": 206, "syslog": 103, "sync": 162, "syncfs": 306},
            **{"fcntl": 72, "ioctl": 16, "prctl": 157, "socketpair": 53},
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            **{"clone": 220, "kill": 129, "tgkill": 131},
            **{"execve": 221, "execveat": 281},  # it has neither fork nor vfork
            **{"tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240},
            **{"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272},
            **{"unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41},
            **{"chroot": 51, "socket": 198, "bpf": 280, "perf_event_open": 241},
            **{"userfaultfd": 282, "add_key": 217, "request_key": 218, "keyctl": 219},
            **{"memfd_create": 279, "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180},
            **{"setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "flock": 32},
            **{"inotify_init1": 26, "fanotify_init": 262},
            **{"prlimit64": 261, "setpgid": 154, "migrate_pages": 238, "move_pages": 239},
            **{"sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122},
            **{"sched_setattr": 274, "setpriority": 140, "ioprio_set": 30},
            **{"io_setup": 0, "syslog": 116, "sync": 81, "syncfs": 267},
            **{"fcntl": 25, "ioctl": 29, "prctl": 167, "socketpair": 199},
        },
    ),
}
# pidfd_send_signal, io_uring_*, open_tree to fspick, pidfd_open, pidfd_getfd, process_madvise,
# mount_setattr, memfd_secret, process_mrelease, setxattrat, open_tree_attr, file_setattr
REFUSED_EVERYWHERE = (
    *(424, *range(425, 428), *range(428, 434), 434, 438, 440, 442, 447, 448, 463, 467, 469),
)
# These change the process that their first argument names; 0 is the caller.
ON_A_PROCESS = (
    *("prlimit64", "setpgid", "migrate_pages", "move_pages"),
    *("sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"),
)
CLONE3 = 435


def install_filter() -> None:
    """Forbid this process new processes, sockets, namespaces and any effect on other processes.

    Threads stay allowed, and signals, limits and priorities of the process itself. It can no longer
    outlive its parent.

    Raises:
        OSError: If the machine is not among ``MACHINES`` or its kernel has no filters.
    """
    machine = os.uname().machine
    if machine not in MACHINES or sys.maxsize < 2**32:
        raise OSError(f"no system call filter for a {machine} machine, only {', '.join(MACHINES)}")
    program = filter_program(machine, os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of 8-byte instructions, and their address.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))


def filter_program(machine: str, pid: int) -> bytes:
    """Return the BPF program of one machine for the process ``pid``."""
    arch, numbers = MACHINES[machine]
    own = (EQUAL, (0, pid))
    checked = {
        "clone": _allow_when(0, ANY_BIT, (CLONE_THREAD,)),
        "kill": _allow_when(0, EQUAL, (pid,)),
        "tgkill": _allow_when(0, EQUAL, (pid,)),
        **{name: _allow_when(0, *own) for name in ON_A_PROCESS},
        "setpriority": [*_refuse_unless(0, PRIO_PROCESS), *_allow_when(1, *own)],
        "ioprio_set": [*_refuse_unless(0, IOPRIO_WHO_PROCESS), *_allow_when(1, *own)],
        "fcntl": [
            # The process of F_SETOWN_EX is in memory, where no filter looks.
            *_refuse_when(1, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ),
            *((EQUAL, 1, 0, F_SETOWN), (RETURN, 0, 0, ALLOW)),
            *_allow_when(2, *own),
        ],
        "ioctl": [*_refuse_when(1, FIOSETOWN, SIOCSPGRP), (RETURN, 0, 0, ALLOW)],
        "prctl": [*_refuse_when(0, PR_SET_PDEATHSIG, PR_SCHED_CORE), (RETURN, 0, 0, ALLOW)],
        "socketpair": _allow_when(0, EQUAL, (AF_UNIX,)),
    }
    refused = {number for name, number in numbers.items() if name not in checked}
    # Jumps count instructions to skip: the first number if the comparison holds, else the second.
    lines = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, arch),
        (RETURN, 0, 0, EPERM),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, EPERM),
        # ENOSYS makes the C library start threads with clone, whose flags a filter can see.
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, ENOSYS),
    ]
    for number in sorted(refused.union(REFUSED_EVERYWHERE)):
        lines += [(EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    for name, check in checked.items():
        lines += [(EQUAL, 0, len(check), numbers[name]), *check]
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


_Line = tuple[int, int, int, int]


def _allow_when(argument: int, test: int, values: Sequence[int]) -> list[_Line]:
    """Allow the call if an argument passes a test with one of the values, else refuse it."""
    tests = [(test, len(values) - place, 0, value) for place, value in enumerate(values)]
    end = [(RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    return [(LOAD, 0, 0, ARGUMENTS[argument]), *tests, *end]


def _refuse_when(argument: int, *values: int) -> list[_Line]:
    """Refuse the call if an argument is one of the values, else go to the next instruction."""
    tests = [line for value in values for line in ((EQUAL, 0, 1, value), (RETURN, 0, 0, EPERM))]
    return [(LOAD, 0, 0, ARGUMENTS[argument]), *tests]


def _refuse_unless(argument: int, value: int) -> list[_Line]:
    """Refuse the call unless an argument is the value, else go to the next instruction."""
    return [(LOAD, 0, 0, ARGUMENTS[argument]), (EQUAL, 1, 0, value), (RETURN, 0, 0, EPERM)]


def prctl(option: int, value: int, pointer: object = None) -> None:
    """Set a process attribute that Python has no function for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), pointer, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def drop_capabilities() -> None:
    """Drop root's powers over limits, files and other processes; permanent under a filter."""
    libc = ctypes.CDLL(None, use_errno=True)
    version_3 = struct.pack("@Ii", 0x20080522, 0)  # linux/capability.h; 0 is this process
    if libc.capset(version_3, bytes(24)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"capset: {os.strerror(error)}")


def make_read_only(mount_point: str) -> None:
    """Make a bind mount read-only; a device can still be written to, but its mode is fixed."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC
    if libc.mount(None, mount_point.encode(), None, ctypes.c_ulong(flags), None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount {mount_point}: {os.strerror(error)}")
