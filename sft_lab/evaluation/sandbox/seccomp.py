"""Refuse system calls of generated programs in the kernel, by a seccomp filter.

A filter binds root, threads and machine code alike, and cannot be removed.
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
PR_SET_NO_NEW_PRIVS = 38
MS_RDONLY, MS_NOSUID, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 8, 32, 4096  # linux/mount.h
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026  # SECCOMP_RET_ALLOW, _ERRNO | errno
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
NUMBER, ARCH, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
CLONE_THREAD = 0x00010000
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
        },
    ),
}
# pidfd_send_signal, io_uring_*, open_tree to fspick, pidfd_open, pidfd_getfd, process_madvise,
# mount_setattr, memfd_secret
REFUSED_EVERYWHERE = (424, *range(425, 428), *range(428, 434), 434, 438, 440, 442, 447)
CLONE3 = 435


def install_filter() -> None:
    """Forbid this process new processes, signals to others, sockets and namespaces, for good.

    Threads and signals to itself stay allowed.

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
    special = {name: numbers[name] for name in ("clone", "kill", "tgkill")}
    refused = {*numbers.values(), *REFUSED_EVERYWHERE} - {*special.values()}
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
    for number in sorted(refused):
        lines += [(EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    lines += _when_argument(special["clone"], ANY_BIT, CLONE_THREAD)
    lines += _when_argument(special["kill"], EQUAL, pid)
    lines += _when_argument(special["tgkill"], EQUAL, pid)
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _when_argument(number: int, test: int, value: int) -> list[tuple[int, int, int, int]]:
    """Allow a call only if its first argument passes a test."""
    return [
        (EQUAL, 0, 4, number),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (test, 0, 1, value),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ]


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
