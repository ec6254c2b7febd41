"""What hostile code would try, as programs that run inside a sandbox and print `held` or what gave way.

Each stands for a line of the isolation list. Arguments are in `A` (JSON): what the test knows of the
host. Standard library only, Python 3.9.
"""

PRELUDE = """
import ctypes, errno, json, os, socket, struct, sys
A = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
broken = []
def syscall(name, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(A["numbers"][name]), *args)
    return result, ctypes.get_errno()
def refused(name, *args, by=("EPERM",)):
    result, number = syscall(name, *args)
    answer = "success" if result >= 0 else errno.errorcode.get(number, number)
    if answer not in by:
        broken.append(f"{name} answers {answer}, not {by}")
def absent(path):
    try:
        os.stat(path)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return
    broken.append(path + " is there")
def denied(what, call, *errors):
    try:
        call()
    except errors or OSError:
        return
    broken.append(what + " works")
"""

END = """
print("held" if not broken else "BROKEN: " + "; ".join(broken))
"""

HOST_PROCESSES = """
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():  # our own arguments tell of the canary
        try:
            line = open(f"/proc/{name}/cmdline").read()
        except OSError:
            continue
        if A["canary"] in line:
            broken.append("sees the host's process " + line)
denied("signalling a host process", lambda: os.kill(A["host_pid"], 0), ProcessLookupError, PermissionError)
if os.getpid() > 10000 or os.getppid() > 10000:
    broken.append("shares the host's pid namespace")
"""

HOST_FILES = """
for path in A["host_files"] + ["/etc/shadow", "/etc/ssh", "/home", "/var/log", "/boot", "/srv", "/host", "/stage"]:
    absent(path)
# Folders on the way to the interpreter may exist; nothing else of /root may be in them.
for path in ("/root", "/root/.ssh", "/root/.cache"):
    try:
        names = [n for n in os.listdir(path) if not A["prefix"].startswith(os.path.join(path, n))]
    except OSError:
        continue
    if names:
        broken.append(f"{path} shows {names}")
absent("/etc/machine-id")
"""

ENVIRONMENT = """
for name in os.listdir("/proc"):
    if name.isdigit():
        try:
            if A["canary"] in open(f"/proc/{name}/environ").read():
                broken.append(f"the server's environment is in process {name}")
        except OSError:
            pass
if A["canary"] in json.dumps(dict(os.environ)):
    broken.append("the server's environment is in ours")
line = open("/proc/1/cmdline").read()
if "/" in line:
    broken.append("process 1 tells of the host: " + line)
if socket.gethostname() != "sandbox":
    broken.append("host name " + socket.gethostname())
"""

OTHER_SANDBOX = """
for folder in ("/workspace", "/tmp", "/dev/shm"):
    if os.listdir(folder):
        broken.append(f"{folder} shows {os.listdir(folder)}")
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect("\\0" + A["abstract"])
denied("the other sandbox's abstract socket", connect)
def tcp():
    socket.create_connection(("127.0.0.1", A["other_port"]), timeout=1)
denied("the other sandbox's port", tcp)
shm, _ = syscall("shmget", A["shm_key"], 4096, 0)
if shm >= 0:
    broken.append("the other sandbox's shared memory")
for path in A["sockets"]:
    absent(path)
"""

NETWORK = """
interfaces = sorted(name for _, name in socket.if_nameindex())
if interfaces != ["lo"]:
    broken.append(f"interfaces {interfaces}")
def tcp(host, port):
    socket.create_connection((host, port), timeout=2)
denied("the host's loopback", lambda: tcp("127.0.0.1", A["host_port"]))
denied("the world by TCP", lambda: tcp("1.1.1.1", 443))
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"x", ("9.9.9.9", 53))
denied("the world by UDP", udp)
denied("resolving a name", lambda: socket.getaddrinfo("example.com", 80))
def abstract():
    s = socket.socket(socket.AF_UNIX)
    s.connect("\\0" + A["host_abstract"])
denied("the host's abstract socket", abstract)
"""

SOCKET_FAMILIES = """
for name, family, kind in (
    ("packet", 17, socket.SOCK_DGRAM), ("vsock", 40, socket.SOCK_STREAM), ("alg", 38, socket.SOCK_SEQPACKET),
    ("bluetooth", 31, socket.SOCK_RAW), ("netlink audit", None, None), ("can", 29, socket.SOCK_RAW),
):
    if family is None:
        result, number = syscall("socket", 16, socket.SOCK_RAW, 9)
    else:
        result, number = syscall("socket", family, int(kind), 0)
    if number != errno.EAFNOSUPPORT:
        broken.append(f"{name} sockets answer {errno.errorcode.get(number, result)}")
for name, kind, protocol in (("sctp", 1, 132), ("mptcp", 1, 262), ("l2tp", 2, 115), ("udplite", 2, 136)):
    result, number = syscall("socket", 2, kind, protocol)
    if number != errno.EPROTONOSUPPORT:
        broken.append(f"{name} sockets answer {errno.errorcode.get(number, result)}")
denied("raw sockets", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), PermissionError)
"""

WRITES = """
ours = ("/workspace", "/tmp", "/dev/shm", "/dev/pts", "/proc")
seen, todo = 0, ["/"]
while todo:
    folder = todo.pop()
    try:
        entries = list(os.scandir(folder))
    except OSError:
        continue
    seen += 1
    try:
        os.mkdir(os.path.join(folder, "probe-x"))
        broken.append("can write in " + folder)
    except OSError:
        pass
    if folder.count("/") < 4:
        todo += [e.path for e in entries if e.is_dir(follow_symlinks=False) and e.path not in ours]
if seen < 50:
    broken.append(f"looked into {seen} folders only")
for path in ("/etc/passwd", "/usr/bin/env", "/etc/hosts", sys.executable):
    denied("opening " + path + " for writing", lambda: open(path, "r+b"))
for folder in ("/workspace", "/tmp", "/dev/shm"):
    open(folder + "/mine", "w").close()
    os.unlink(folder + "/mine")
"""

KERNEL_FILES = """
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
             "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward",
             "/proc/1/oom_score_adj", "/proc/self/uid_map", "/proc/self/setgroups"):
    def write():
        with open(path, "w") as file:
            file.write("1")
    denied("writing " + path, write)
for path in ("/proc/kcore", "/proc/kmsg", "/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/iomem",
             "/proc/cmdline", "/proc/modules", "/proc/config.gz", "/proc/diskstats", "/proc/partitions"):
    try:
        if open(path, "rb").read(64):
            broken.append(path + " tells of the machine")
    except OSError:
        pass
if os.listdir("/sys"):
    broken.append("/sys shows " + str(os.listdir("/sys")))
"""

MOUNTS = """
refused("mount", b"none", b"/tmp", b"tmpfs", 0, None)
refused("mount", b"/usr", b"/tmp", None, 4096, None)
refused("mount", None, b"/", None, 32 | 4096, None)
refused("umount2", b"/proc/sys", 2)
refused("fsopen", b"tmpfs", 0)
refused("open_tree", -100, b"/usr", 1)
refused("move_mount", 0, b"", 0, b"/tmp", 4)
refused("mount_setattr", -100, b"/", 0, None, 0)
refused("pivot_root", b"/tmp", b"/tmp")
refused("chroot", b"/tmp")
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    target, options = fields[4], fields[5].split(",")
    if target in ("/workspace", "/tmp") or target.startswith("/dev"):
        continue
    if not target.startswith("/proc") and "ro" not in options:
        broken.append(target + " is mounted writable")
    if not target.startswith("/proc") and "nosuid" not in options:
        broken.append(target + " is mounted without nosuid")
"""

PICOD = """
refused("ptrace", 16, 1, None, None)
refused("ptrace", 0x4206, 1, None, None)
refused("process_vm_readv", 1, None, 0, None, 0, 0)
refused("process_vm_writev", 1, None, 0, None, 0, 0)
refused("pidfd_getfd", 0, 0, 0)
refused("kcmp", 1, os.getpid(), 0, 0, 0)
for name in ("mem", "environ", "maps", "auxv", "stack", "syscall"):
    denied("reading /proc/1/" + name, lambda: open("/proc/1/" + name, "rb").read(1))
for name in ("fd", "root/etc", "cwd/.", "map_files"):
    denied("listing /proc/1/" + name, lambda: os.listdir("/proc/1/" + name))
for name in ("net", "pid", "mnt", "user"):
    denied("entering PicoD's namespace " + name, lambda: open("/proc/1/ns/" + name))
for number in (1, 2, 3, 9, 11, 15, 19):
    try:
        os.kill(1, number)
    except PermissionError:
        pass
status = open("/proc/1/status").read()
if "State:\\tT" in status or "State:\\tZ" in status:
    broken.append("PicoD was stopped by a signal")
"""

PRIVILEGES = """
fields = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
    if int(fields[name], 16):
        broken.append(f"{name} is {fields[name]}")
if fields["NoNewPrivs"] != "1":
    broken.append("can gain privileges")
if fields["Seccomp"] != "2":
    broken.append("no seccomp filter")
if os.getuid() != 1000 or os.geteuid() != 1000 or 0 in os.getgroups():
    broken.append(f"ids {os.getresuid()} {os.getgroups()}")
for change in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.nice(-5),
               lambda: os.chown("/workspace", 0, 0)):
    denied("taking privileges", change)
links = {}
for name in os.listdir("/proc/self/fd"):
    try:
        links[int(name)] = os.readlink("/proc/self/fd/" + name)
    except OSError:
        pass  # the listing's own
if sorted(links) != [0, 1, 2]:
    broken.append(f"descriptors leaked: {links}")
"""

MODULES_AND_MACHINE = """
refused("init_module", None, 0, b"")
refused("finit_module", 0, b"", 0)
refused("delete_module", b"loop", 0)
refused("kexec_load", 0, 0, None, 0)
refused("reboot", 0xfee1dead, 672274793, 0x1234567, None)
refused("sethostname", b"x", 1)
refused("settimeofday", None, None)
refused("clock_settime", 0, None)
refused("swapon", b"/tmp/x", 0)
refused("acct", None)
refused("syslog", 3, None, 0)
refused("quotactl", 0, None, 0, None)
"""

IO_URING = """
refused("io_uring_setup", 4, ctypes.create_string_buffer(256))
refused("io_uring_enter", 0, 0, 0, 0, None, 0)
refused("io_uring_register", 0, 0, None, 0)
"""

KEYS = """
refused("keyctl", 0, -3, 1)
refused("add_key", b"user", b"x", b"y", 1, -3)
refused("request_key", b"user", b"x", None, 0)
"""

BPF = """
refused("bpf", 0, ctypes.create_string_buffer(128), 128)
refused("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0)
refused("userfaultfd", 1)
refused("fanotify_init", 0, 0)
refused("open_by_handle_at", -100, None, 0)
"""

USER_NAMESPACES = """
def in_child(call):
    pid = os.fork()
    if pid == 0:
        call()
        os._exit(7 if broken else 0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7:
        broken.append("a child may make namespaces")
in_child(lambda: refused("unshare", 0x10000000))
in_child(lambda: refused("unshare", 0x20000))
in_child(lambda: refused("unshare", 0x40000000))
refused("setns", 0, 0)
result, number = syscall("clone", 0x10000000 | 17, None, None, None, None)
if result == 0:
    os._exit(0)
if number != errno.EPERM:
    broken.append("clone makes a user namespace")
result, number = syscall("clone3", None, 0)
if number != errno.ENOSYS:
    broken.append("clone3 answers " + errno.errorcode.get(number, str(result)))
"""

TERMINALS = """
import fcntl, pty, termios
pid, fd = pty.fork()
if pid == 0:
    worst = 0
    for request in (0x5412, 0x541C, 0x5423, 0x541D):
        try:
            fcntl.ioctl(0, request, b"x\\0\\0\\0\\0\\0\\0\\0")
            worst = 9
        except OSError as exc:
            if exc.errno != errno.EPERM:
                worst = 8
    try:  # the kernel looks at 32 bits only, and so must the filter
        result, number = syscall("ioctl", 0, ctypes.c_ulong(0x5412 | 1 << 32), ctypes.c_char_p(b"x"))
        if number != errno.EPERM:
            worst = 9
    except OSError:
        pass
    os._exit(worst)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if code:
    broken.append(f"terminal requests are not refused ({code})")
masters = []
try:
    while len(masters) <= 256:
        masters.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
    broken.append("one sandbox can take the machine's terminals")
except OSError as exc:
    if exc.errno != errno.ENOSPC:
        raise
"""

DEVICE_NODES = """
import stat
for kind in (stat.S_IFCHR, stat.S_IFBLK):
    for device in (os.makedev(0, 0), os.makedev(1, 1), os.makedev(7, 0)):
        # 0:0 is a whiteout, which the kernel lets anybody make: only Landlock is in the way.
        denied(f"making device node {kind:o} {device}", lambda: os.mknod("/workspace/node", kind | 0o600, device))
        if os.path.lexists("/workspace/node"):
            os.unlink("/workspace/node")
nodes = sorted(n for n in os.listdir("/dev") if stat.S_ISCHR(os.lstat("/dev/" + n).st_mode))
if nodes != ["full", "null", "random", "tty", "urandom", "zero"]:
    broken.append(f"devices {nodes}")
"""

OWNERSHIP = """
# Lent by the template: a folder of the host with a file that only the host's uid 1000 may read.
try:
    broken.append("reads a file of the host's user: " + open("/lent/secret").read())
except PermissionError:
    pass
for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
    inside, outside, count = open(path).read().split()
    if int(outside) < 10_000_000:
        broken.append(f"{path} maps to the host's {outside}")
"""

SHARED_OBJECTS = """
made = []
try:
    while len(made) < 100:
        result, number = syscall("inotify_init1", 0)
        if result < 0:
            break
        made.append(result)
finally:
    for fd in made:
        os.close(fd)
if len(made) > 32:
    broken.append(f"{len(made)} inotify instances, of 128 that the machine may have for all")
for kind in ("user", "net", "mnt", "pid"):
    if open(f"/proc/sys/user/max_{kind}_namespaces").read().strip() != "0":
        broken.append(f"may have {kind} namespaces")
import resource
for name, most in (("SIGPENDING", 4096), ("MSGQUEUE", 256 << 10), ("MEMLOCK", 1 << 20), ("CORE", 0)):
    if resource.getrlimit(getattr(resource, "RLIMIT_" + name, 11))[1] > most:
        broken.append("RLIMIT_" + name)
"""

PERSONALITY = """
refused("personality", 0x0040000)
refused("personality", 0x0000008)
refused("prctl", 35, 1, 0, 0, 0)
if syscall("personality", 0xffffffff)[0] < 0:
    broken.append("cannot ask for the personality")
"""

ALL = {
    "cannot_see_or_signal_host_processes": HOST_PROCESSES,
    "cannot_see_files_of_the_host": HOST_FILES,
    "cannot_see_the_servers_environment": ENVIRONMENT,
    "cannot_reach_another_sandbox": OTHER_SANDBOX,
    "has_no_network": NETWORK,
    "has_only_plain_socket_families": SOCKET_FAMILIES,
    "cannot_write_outside_workspace_and_tmp": WRITES,
    "cannot_read_or_write_the_kernels_files": KERNEL_FILES,
    "cannot_mount": MOUNTS,
    "cannot_touch_picod": PICOD,
    "has_no_privileges_and_no_descriptors": PRIVILEGES,
    "cannot_load_modules_or_change_the_machine": MODULES_AND_MACHINE,
    "cannot_use_io_uring": IO_URING,
    "cannot_use_keys": KEYS,
    "cannot_use_bpf_and_its_kin": BPF,
    "cannot_make_user_namespaces": USER_NAMESPACES,
    "cannot_type_into_a_terminal": TERMINALS,
    "cannot_make_device_nodes": DEVICE_NODES,
    "cannot_change_personality": PERSONALITY,
    "cannot_take_what_all_sandboxes_share": SHARED_OBJECTS,
}
"""Every probe that needs no mount of its own, by what it shows."""
