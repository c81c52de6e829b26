"""Real machines for the tests of the playbooks: systemd in a container, reached by SSH only.

Each is a Debian or Ubuntu (the one that this machine runs, or MILEPOST_TEST_SUITE) made by debootstrap
and booted by systemd-nspawn, with a network of its own. It reaches the outside through a proxy in this
process, and so has the package mirror that this machine is set up with. Everything is taken down again.
"""

import atexit
import contextlib
import functools
import hashlib
import http.client
import http.server
import itertools
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse

import packages

ANSIBLE = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ("debootstrap", "systemd-nspawn", "ip", "ssh", "ssh-keygen", "gpg", "dpkg-deb")
BASE_PACKAGES = "systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,ca-certificates,sudo,iproute2"
WAIT_SECONDS_MAX = 90
# The first run fetches and installs some 150 packages.
RUN_SECONDS_MAX = 420
RELAY_BYTES = 64 * 1024
COUNT = itertools.count()


def why_not():
    """What this machine lacks for the tests, or None."""
    if os.geteuid() != 0:
        return "only root can boot a machine with systemd-nspawn"
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"missing: {', '.join(missing)}"
    # Root of a container may not be allowed what root is.
    probe = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "true"]
    made = subprocess.run(probe, capture_output=True, text=True)
    return f"no namespaces can be made here: {made.stderr.strip()}" if made.returncode else None


def cache_directory():
    target = os.environ.get("CARGO_TARGET_DIR") or ANSIBLE.parent / "target"
    directory = pathlib.Path(target).resolve() / "hosts"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def run(*command, **options):
    """Runs a command that has to work, and says what it printed if it does not."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def wait_until(condition):
    """Waits for a state of a machine, which nothing else tells of."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {WAIT_SECONDS_MAX} s")
        time.sleep(0.05)


@functools.cache
def mirror():
    """Suite, address and components of the packages, as this machine's apt has them."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', pathlib.Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release["VERSION_CODENAME"]
    sites = package_sites()
    if not sites:
        # apt tells of a site only once it has been there.
        run("apt-get", "update")
        sites = package_sites()
    site = sites.get(codename) or sites["stable"]
    components = "main,universe" if release["ID"] == "ubuntu" else "main"
    return os.environ.get("MILEPOST_TEST_SUITE") or codename, site, components


def package_sites():
    """The address of each suite that apt knows."""
    found = run("apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages")
    return dict(line.split() for line in found.splitlines())


def base_image():
    """A directory with a fresh system, made once and kept."""
    suite, site, components = mirror()
    recipe = hashlib.sha256(f"{suite} {components} {BASE_PACKAGES}".encode()).hexdigest()[:12]
    image = cache_directory() / f"{suite}-{recipe}"
    if not image.exists():
        print(f"hosts: making {image} (once)", flush=True)
        cache_directory().mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(tempfile.mkdtemp(dir=cache_directory(), prefix="unfinished-"))
        try:
            system = unfinished / "system"
            options = ["--variant=minbase", f"--components={components}", f"--include={BASE_PACKAGES}"]
            run("debootstrap", *options, suite, str(system), site)
            run("apt-get", "clean", f"--option=Dir={system}")
            system.chmod(0o755)
            system.rename(image)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return image


class Host(contextlib.ExitStack):
    """One machine. Made from the base image on entry; nothing of it is left on exit."""

    def __init__(self):
        super().__init__()
        self.process = None

    def __enter__(self):
        super().__enter__()
        # Also where the tests are interrupted.
        atexit.register(self.close)
        try:
            self.directory = pathlib.Path(tempfile.mkdtemp(dir=cache_directory(), prefix="host-"))
            self.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._mount()
            self._connect()
            self.server = self.enter_context(PackageServer(self.outside))
            self._configure()
            self.callback(self.kill)
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def root(self):
        return self.directory / "root"

    def _mount(self):
        for name in ("root", "upper", "work"):
            (self.directory / name).mkdir()
        layers = f"lowerdir={base_image()},upperdir={self.directory}/upper,workdir={self.directory}/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))
        self.callback(subprocess.run, ["umount", "--lazy", str(self.root)])

    def _connect(self):
        self.name = f"milepost-{os.getpid()}-{next(COUNT)}"
        run("ip", "netns", "add", self.name)
        # With the namespace goes the pair of interfaces.
        self.callback(subprocess.run, ["ip", "netns", "delete", self.name])
        number = next(number for number in range(1, 255) if self._add_interfaces(number))
        # From the range that is set aside for tests of networks, RFC 2544.
        self.outside, self.address = f"198.18.{number}.1", f"198.18.{number}.2"
        run("ip", "address", "add", f"{self.outside}/30", "dev", f"milepost{number}")
        run("ip", "link", "set", f"milepost{number}", "up")
        for command in (f"address add {self.address}/30 dev inside", "link set inside up", "link set lo up"):
            run("ip", "-netns", self.name, *command.split())

    def _add_interfaces(self, number):
        """Whether the number was free: tests that run at the same time have others."""
        command = f"ip link add milepost{number} type veth peer name inside netns {self.name}"
        return subprocess.run(command.split(), stderr=subprocess.DEVNULL).returncode == 0

    def _configure(self):
        suite, site, components = mirror()
        checks = re.findall(r"^Acquire::Check-.*$", run("apt-config", "dump"), re.MULTILINE)
        proxy = self.server.address
        self.write("etc/apt/sources.list", f"deb {site} {suite} {components.replace(',', ' ')}\n")
        self.write("etc/apt/apt.conf.d/90test", "\n".join([f'Acquire::http::Proxy "{proxy}";', *checks]) + "\n")
        self.write("etc/hostname", "fresh\n")
        self.write("etc/hosts", "127.0.0.1 localhost\n")
        # What npm needs to go the same way; it trusts whom this machine trusts.
        trusted = "/etc/ssl/certs/ca-certificates.crt"
        shutil.copy(trusted, self.root / trusted[1:])
        self.npm_environment = {"https_proxy": proxy, "NODE_EXTRA_CA_CERTS": trusted}
        key = self.directory / "key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        self.write("root/.ssh/authorized_keys", key.with_suffix(".pub").read_text())

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def boot(self):
        with open(self.directory / "console", "ab") as console:
            self.process = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", f"--machine={self.name}",
                 f"--network-namespace-path=/run/netns/{self.name}", "--register=no", "--keep-unit",
                 # For its own firewall; the network it could harm is its own too.
                 "--capability=CAP_NET_ADMIN",
                 # The machine's own file would be replaced by this machine's.
                 "--resolv-conf=off", "--timezone=off", "--console=pipe"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                # Its own network's settings are its own, and nothing else's are.
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            )  # fmt: skip
        try:
            wait_until(lambda: self.process.poll() is not None or self._answers())
            if self.process.poll() is not None:
                raise RuntimeError(f"systemd-nspawn ended with {self.process.returncode}")
        except RuntimeError as error:
            console = (self.directory / "console").read_text(errors="replace")
            raise RuntimeError(f"the machine did not boot: {error}\n{console[-4000:]}") from error

    def _answers(self):
        try:
            with socket.create_connection((self.address, 22), 1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def kill(self):
        """Cuts the power: nothing on the machine can finish what it was doing."""
        if self.process is not None:
            # systemd-nspawn ends with the machine; the other way round the machine would stay.
            for process in run("ip", "netns", "pids", self.name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            self.process.wait()
            self.process = None

    def shell(self, command):
        """Runs a command there, as root, and returns its exit status and what it printed."""
        done = subprocess.run(
            ["ssh", *self._ssh_options(), "-i", str(self.directory / "key"), f"root@{self.address}", command],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, (done.stdout + done.stderr).strip()

    def kill_run(self):
        """Kills the playbook that runs, and nothing on the machine."""
        self.running.kill()

    def log_in_methods(self):
        """How sshd lets one in now, whatever its files say."""
        done = subprocess.run(
            ["ssh", *self._ssh_options(), "-o", "BatchMode=yes", "-o", "PreferredAuthentications=none", f"root@{self.address}"],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return re.search(r"Permission denied \((.*)\)", done.stderr)[1].split(",")

    def _ssh_options(self):
        return ["-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={self.directory}/known_hosts"]

    def playbook(self, name, variables, *options, on_line=None):
        """Runs a playbook as the dispatcher does. `on_line` is told every line as it comes."""
        inventory, values = self.directory / "inventory.ini", self.directory / "vars.json"
        inventory.write_text(
            f"[target]\n{self.address} ansible_user=root ansible_ssh_private_key_file={self.directory}/key\n"
        )
        values.write_text(json.dumps(variables))
        process = subprocess.Popen(
            [str(pathlib.Path(os.environ["MILEPOST_TEST_TOOLS"], "ansible-playbook")), "-i", str(inventory),
             "-e", f"@{values}", "--ssh-extra-args=" + " ".join(self._ssh_options()), *options,
             str(ANSIBLE / "playbooks" / f"{name}.yml")],
            cwd=ANSIBLE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8",
                 "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                 # The paths of sockets are short.
                 "ANSIBLE_SSH_CONTROL_PATH_DIR": self.enter_context(tempfile.TemporaryDirectory(prefix="mp-"))},
        )  # fmt: skip
        self.running = process
        timer = threading.Timer(RUN_SECONDS_MAX, process.kill)
        timer.start()
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if on_line:
                    on_line(line)
            return Run(process.wait(), "".join(lines))
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()


class Run:
    """How a playbook ended, and what it printed."""

    def __init__(self, status, output):
        self.status, self.output = status, output
        recap = re.search(r"^\S+ +: (ok=.*)$", output, re.MULTILINE)
        self.counts = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap[1])} if recap else {}


class PackageServer(http.server.ThreadingHTTPServer):
    """A proxy to the outside, and a repository of packages that stand in for ones that cannot be had."""

    daemon_threads = True

    def __init__(self, address):
        super().__init__((address, 0), PackageHandler)
        self.address = f"http://{address}:{self.server_port}"
        self.repository = pathlib.Path(tempfile.mkdtemp(prefix="milepost-repository-"))

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        shutil.rmtree(self.repository, ignore_errors=True)

    def publish(self, suite, made):
        """Makes a signed repository of Debian packages; returns the addresses of it and of its key."""
        directory = packages.publish(self.repository / suite, suite, made)
        return f"{self.address}/{suite}", f"{self.address}/{directory.relative_to(self.repository)}/key.asc"


class PackageHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith(self.server.address):
            self.path = self.path.removeprefix(self.server.address)
        if self.path.startswith("/"):
            self._send_file(self.server.repository / urllib.parse.unquote(self.path[1:]))
        else:
            self._forward(urllib.parse.urlsplit(self.path))

    do_HEAD = do_GET

    def do_CONNECT(self):
        host, _, port = self.path.rpartition(":")
        try:
            upstream = socket.create_connection((host, int(port)), 30)
        except OSError:
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with upstream:
            ends = {self.connection: upstream, upstream: self.connection}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    data = end.recv(RELAY_BYTES)
                    if not data:
                        return
                    ends[end].sendall(data)

    def _send_file(self, file):
        if not file.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as source:
                shutil.copyfileobj(source, self.wfile)

    def _forward(self, url):
        # A package never changes: what was fetched once is not fetched again.
        kept = cache_directory() / "packages" / hashlib.sha256(self.path.encode()).hexdigest()
        if kept.exists():
            self._send_file(kept)
            return
        upstream = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
            headers["Connection"] = "close"
            upstream.request(self.command, urllib.parse.urlunsplit(("", "", url.path, url.query, "")), headers=headers)
            answer = upstream.getresponse()
            self._answer(answer, kept if self._is_package(url, answer) else None)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            upstream.close()

    def _is_package(self, url, answer):
        return self.command == "GET" and url.path.endswith(".deb") and answer.status == 200

    def _answer(self, answer, kept):
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "keep-alive", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        data = answer.read()
        if kept:
            kept.parent.mkdir(exist_ok=True)
            # Renamed when it is whole, since others may be looking.
            unfinished = kept.with_suffix(f".{threading.get_ident()}-{os.getpid()}")
            unfinished.write_bytes(data)
            unfinished.rename(kept)
        self.wfile.write(data)

    def log_message(self, *args):
        pass
