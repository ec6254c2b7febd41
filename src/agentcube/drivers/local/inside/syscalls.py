"""Which system calls a sandbox may make, and why: data only. `seccomp.py` turns it into a filter.

What is in no group answers ENOSYS, as on a kernel without it, so that programs fall back. What is in
`REFUSED` answers EPERM: it exists, and the answer is no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """System calls that are allowed for one reason."""

    title: str
    why: str
    names: tuple[str, ...]


def _group(title: str, why: str, names: str) -> Group:
    return Group(title, why, tuple(names.split()))


ALLOWED: tuple[Group, ...] = (
    _group(
        "Files",
        "Open, read, write and describe files. What can be reached is bounded by the mount namespace, "
        "file modes and Landlock.",
        """
        open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev
        preadv2 pwritev2 lseek stat fstat lstat newfstatat statx access faccessat faccessat2 readlink
        readlinkat getdents getdents64 statfs fstatfs truncate ftruncate fallocate fadvise64 readahead
        fsync fdatasync sync_file_range syncfs sendfile copy_file_range splice tee vmsplice dup dup2
        dup3 fcntl flock umask name_to_handle_at
        """,
    ),
    _group(
        "Names and attributes of files",
        "Make, rename and remove files in the workspace and /tmp; modes, owners and times of one's own files.",
        """
        mkdir mkdirat mknod mknodat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
        symlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat
        utimensat setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
        removexattr lremovexattr fremovexattr chdir fchdir getcwd
        """,
    ),
    _group(
        "Waiting for descriptors",
        "Event loops: every server, asyncio, Node.js and Go stand on these.",
        """
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
        eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime inotify_init
        inotify_init1 inotify_add_watch inotify_rm_watch pipe pipe2
        """,
    ),
    _group(
        "Memory",
        "Allocate, protect and advise on one's own memory; memory files and huge allocations count against "
        "the sandbox's limit.",
        """
        mmap munmap mremap mprotect brk madvise mincore msync mlock mlock2 munlock mlockall munlockall
        remap_file_pages memfd_create membarrier pkey_alloc pkey_free pkey_mprotect map_shadow_stack mseal
        mbind get_mempolicy set_mempolicy set_mempolicy_home_node
        """,
    ),
    _group(
        "Processes and threads",
        "Start, end and wait for processes in this pid namespace. `clone` only without namespace flags; "
        "`clone3` hides its flags from a filter and answers ENOSYS, upon which libc uses `clone`.",
        """
        fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pause getpid getppid gettid
        getpgrp getpgid setpgid getsid setsid set_tid_address set_robust_list get_robust_list futex
        futex_waitv futex_wait futex_wake futex_requeue rseq restart_syscall pidfd_open pidfd_send_signal
        arch_prctl set_thread_area get_thread_area
        """,
    ),
    _group(
        "Signals",
        "Handle and queue signals. Signals reach only this pid namespace (and, by Landlock, this sandbox).",
        """
        rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo
        rt_tgsigqueueinfo rt_sigsuspend sigaltstack
        """,
    ),
    _group(
        "Identity",
        "Read one's ids; change them where a capability allows it. PicoD uses it to become the user, who "
        "has no capability and no_new_privs.",
        """
        getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid
        setresuid setresgid setfsuid setfsgid setgroups capget capset
        """,
    ),
    _group(
        "Limits and scheduling",
        "Ask for and lower one's own limits and priority; raising takes capabilities that nobody has here.",
        """
        getrlimit setrlimit prlimit64 getrusage times sysinfo getpriority setpriority ioprio_get ioprio_set
        sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
        sched_setscheduler sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min
        sched_rr_get_interval getcpu uname
        """,
    ),
    _group(
        "Time",
        "Read clocks, sleep, timers. Setting a clock is refused.",
        """
        time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer setitimer alarm
        timer_create timer_settime timer_gettime timer_getoverrun timer_delete
        """,
    ),
    _group(
        "Sockets",
        "Talk inside the sandbox: its network namespace has only a loopback interface. `socket` only for "
        "unix, IPv4, IPv6 and routing netlink (getifaddrs uses it); other families answer EAFNOSUPPORT.",
        """
        connect accept accept4 bind listen getsockname getpeername getsockopt setsockopt shutdown sendto
        recvfrom sendmsg recvmsg sendmmsg recvmmsg
        """,
    ),
    _group(
        "System V and POSIX IPC",
        "Shared memory, semaphores and queues of this ipc namespace; multiprocessing and databases use them.",
        """
        shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open
        mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
        """,
    ),
    _group(
        "Randomness",
        "Seeds for everything.",
        "getrandom",
    ),
    _group(
        "Confining oneself",
        "Browsers and tools tighten their own sandbox; these can only take rights away.",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
)
"""Allowed with any argument, but for those in `CHECKED`."""

REFUSED: tuple[Group, ...] = (
    _group(
        "Namespaces and mounts",
        "They undo the walls, and are the largest attack surface for an unprivileged user.",
        """
        unshare setns mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig
        fsmount fspick mount_setattr statmount listmount quotactl quotactl_fd swapon swapoff
        """,
    ),
    _group(
        "Looking into other processes",
        "PicoD serves this sandbox's session; its memory is nobody's business.",
        """
        ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
        move_pages migrate_pages
        """,
    ),
    _group(
        "Kernel features with a history of holes",
        "Each has led from an unprivileged process into the kernel, or hides work from filters.",
        """
        bpf userfaultfd io_uring_setup io_uring_enter io_uring_register perf_event_open keyctl add_key
        request_key fanotify_init fanotify_mark open_by_handle_at memfd_secret modify_ldt
        """,
    ),
    _group(
        "The machine",
        "Its modules, clock, names, power, ports, accounting and log.",
        """
        init_module finit_module delete_module kexec_load kexec_file_load reboot settimeofday clock_settime
        clock_adjtime adjtimex sethostname setdomainname iopl ioperm acct syslog vhangup
        """,
    ),
)
"""Answers EPERM whatever the arguments."""

CHECKED: Mapping[str, str] = {
    "clone": "without namespace flags (CLONE_NEW*), else EPERM",
    "clone3": "never: ENOSYS, so that libc uses clone",
    "socket": "AF_UNIX; AF_NETLINK with NETLINK_ROUTE; AF_INET and AF_INET6 with TCP, UDP and ICMP (another "
    "protocol: EPROTONOSUPPORT); another family: EAFNOSUPPORT",
    "socketpair": "AF_UNIX; else EAFNOSUPPORT",
    "ioctl": "but for TIOCSTI, TIOCLINUX, TIOCSETD and TIOCCONS (typing into, or taking over, a terminal): EPERM",
    "personality": "only asking (0xffffffff) and the plain Linux one (0); else EPERM",
    "prctl": "but for PR_SET_MM (rewriting one's own memory map): EPERM",
}
"""Allowed for some arguments only; `seccomp.py` has the comparison for each."""
