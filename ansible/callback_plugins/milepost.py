"""Tells Milepost, live, which task a playbook is at and what it prints.

The plays and tasks of a run become two kinds of signed callback:

* ``{"job_id", "attempt", "type": "task", "number", "play", "task"}``: the N-th task has begun;
* ``{"job_id", "attempt", "type": "log", "from", "lines"}``: lines of output, ``from`` being the number
  of the first one, so that a gap shows how many were lost.

Telling is best effort. A run never waits for it except at its end, and then only so long, and never
fails because of it: one thread sends, from queues of a bounded size, and what does not fit is dropped.
Without its environment variables the plugin does nothing at all.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import collections
import dataclasses
import functools
import hashlib
import hmac
import http.client
import json
import os
import re
import threading
import time
import typing
import urllib.parse
import uuid

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: milepost
type: notification
short_description: signed live callbacks to Milepost
description:
  - Sends each task as it begins, and the lines of output, to a Milepost server.
  - Never fails a run. Does nothing unless all the variables below are set.
requirements:
  - "the callback is enabled in ansible.cfg: callbacks_enabled = milepost"
options:
  url:
    description: The full address of C(POST /api/webhooks/github).
    env: [{name: MILEPOST_CALLBACK_URL}]
  secret:
    description: The secret shared with the server; base64 after C(whsec_), or plain text.
    env: [{name: MILEPOST_CALLBACK_SECRET}]
  job_id:
    description: The job that this run is for.
    env: [{name: MILEPOST_JOB_ID}]
  attempt:
    description: Which attempt at the job this run is, from 1.
    env: [{name: MILEPOST_ATTEMPT}]
"""

# The server refuses a body that is larger, before it reads it.
BODY_BYTES_MAX = 64 * 1024
# And one with more lines, as a whole.
LINES_MAX = 500
# JSON makes six bytes of a control character: a line of nothing else must still fit into one body.
LINE_BYTES_MAX = 8 * 1024
# Of a command that failed, its last lines say why.
OUTPUT_LINES_MAX = 50
NAME_CHARACTERS_MAX = 256
# What may wait to be sent. At these sizes a server that is down costs a few megabytes, and a minute of
# a talkative run is kept for when it is back.
PENDING_LINES_MAX = 20_000
PENDING_BYTES_MAX = 4 * 1024 * 1024
# The page shows the latest task; when they begin faster than they can be told, the oldest are left out.
PENDING_TASKS_MAX = 16
# How long lines wait for others to go with them.
LINGER_SECONDS = 0.25
REQUEST_SECONDS_MAX = 3.0
TRIES_MAX = 3
BACKOFF_SECONDS = 0.25
RETRY_AFTER_SECONDS_MAX = 2.0
# The only time that a run waits for the server.
FLUSH_SECONDS_MAX = 5.0
# Shorter values are words like "yes", and masking them would make the log unreadable.
SECRET_CHARACTERS_MIN = 8
SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|AUTH_?KEY|PRIVATE_?KEY", re.IGNORECASE
)
MASK = "***"


class CallbackModule(CallbackBase):
    """Turns what Ansible reports into lines and tasks, and hands them to a :class:`Sender`."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "milepost"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self._settings = Settings.from_environment(os.environ)
        self._sender = Sender(self._settings) if self._settings else None
        self._mask = Mask(os.environ)
        self._paint = not any(name in os.environ for name in ("NO_COLOR", "ANSIBLE_NOCOLOR"))
        self._play = ""
        self._tasks = 0
        if self._sender:
            atexit.register(self._sender.stop)
        else:
            # Ansible then calls none of the methods below.
            self.disabled = True

    def _never_fails(method):
        """A fault of ours must not become a fault of the run."""

        @functools.wraps(method)
        def guarded(self, *args, **kwargs):
            if self._sender is None:
                return
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self._warn(f"{method.__name__}: {type(error).__name__}: {error}")

        return guarded

    @_never_fails
    def v2_playbook_on_play_start(self, play):
        self._play = play.get_name().strip()
        self._say("", f"PLAY [{self._play}]")

    @_never_fails
    def v2_playbook_on_task_start(self, task, is_conditional):
        self._begin("TASK", task)

    @_never_fails
    def v2_playbook_on_cleanup_task_start(self, task):
        self._begin("CLEANUP TASK", task)

    @_never_fails
    def v2_playbook_on_handler_task_start(self, task):
        self._begin("RUNNING HANDLER", task)

    @_never_fails
    def v2_playbook_on_include(self, included_file):
        hosts = ", ".join(host.get_name() for host in included_file._hosts)
        self._say(self._colour("skip", f"included: {included_file._filename} for {hosts}"))

    @_never_fails
    def v2_playbook_on_no_hosts_matched(self):
        self._say(self._colour("skip", "skipping: no hosts matched"))

    @_never_fails
    def v2_runner_on_ok(self, result):
        self._report(result)

    @_never_fails
    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._report_failure(result, "FAILED!")
        if ignore_errors:
            self._say(self._colour("skip", "...ignoring"))

    @_never_fails
    def v2_runner_on_unreachable(self, result):
        self._report_failure(result, "UNREACHABLE!")

    @_never_fails
    def v2_runner_on_skipped(self, result):
        self._say(self._colour("skip", f"skipping: [{host_of(result)}]"))

    @_never_fails
    def v2_runner_retry(self, result):
        outcome = outcome_of(result)
        left = int(outcome.get("retries", 0)) - int(outcome.get("attempts", 0))
        name = task_of(result).get_name().strip()
        self._say(f"FAILED - RETRYING: [{host_of(result)}]: {name} ({left} retries left).")

    @_never_fails
    def v2_runner_item_on_ok(self, result):
        self._report(result, item=self._item(result))

    @_never_fails
    def v2_runner_item_on_failed(self, result):
        self._report_failure(result, "FAILED!", item=self._item(result))

    @_never_fails
    def v2_runner_item_on_skipped(self, result):
        self._say(self._colour("skip", f"skipping: [{host_of(result)}] => {self._item(result)}"))

    @_never_fails
    def v2_playbook_on_stats(self, stats):
        self._say("", "PLAY RECAP")
        for host in sorted(stats.processed):
            counts = stats.summarize(host)
            named = [("ok", "ok"), ("changed", "changed"), ("unreachable", "unreachable"), ("failed", "failures")]
            named += [(name, name) for name in ("skipped", "rescued", "ignored")]
            totals = " ".join(f"{shown}={counts.get(key, 0)}" for shown, key in named)
            failed = counts.get("failures") or counts.get("unreachable")
            colour = "failed" if failed else "changed" if counts.get("changed") else "ok"
            self._say(self._colour(colour, f"{host} : {totals}"))
        # The process may go on to another playbook, so the sender stays.
        if not self._sender.flush(FLUSH_SECONDS_MAX):
            self._warn("not everything could be sent; the log on the page is incomplete")

    def _begin(self, kind, task):
        self._tasks += 1
        name = self._mask(task.get_name().strip())[:NAME_CHARACTERS_MAX]
        self._sender.begin_task(self._tasks, self._mask(self._play)[:NAME_CHARACTERS_MAX], name)
        self._say("", f"{kind} [{name}]")

    def _report(self, result, item=None):
        outcome = outcome_of(result)
        if outcome.get("results") and item is None and task_of(result).loop:
            return  # Each item has been told by itself.
        status = "changed" if outcome.get("changed") else "ok"
        head = f"{status}: [{host_of(result)}]" + (f" => {item}" if item else "")
        if outcome.get("_ansible_verbose_always") and not is_hidden(result):
            head += f" => {said_by(outcome)}"
        self._say(self._colour(status, head), *self._warnings(result))

    def _report_failure(self, result, kind, item=None):
        head = f"fatal: [{host_of(result)}]: {kind}" + (f" => {item}" if item else "")
        detail = "the result is hidden by no_log" if is_hidden(result) else why_it_failed(outcome_of(result))
        self._say(*(self._colour("failed", line) for line in f"{head} => {detail}".splitlines()))

    def _item(self, result):
        return "(item hidden by no_log)" if is_hidden(result) else f"(item={self._get_item_label(outcome_of(result))})"

    def _warnings(self, result):
        if is_hidden(result):
            return []
        return [self._colour("changed", f"[WARNING]: {text}") for text in outcome_of(result).get("warnings") or []]

    def _say(self, *texts):
        for text in texts:
            for line in clean(self._mask(text)).split("\n"):
                self._sender.add_line(cut(line))

    def _colour(self, status, text):
        if not self._paint:
            return text
        code = {"ok": "32", "changed": "33", "failed": "31", "skip": "36"}[status]
        return f"\x1b[{code}m{text}\x1b[0m"

    def _warn(self, text):
        # Not through _say: that may be what failed.
        try:
            self._display.warning(f"milepost: {text}")
        except Exception:
            pass


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where to send, as what, and signed with which key."""

    url: urllib.parse.SplitResult
    key: bytes = dataclasses.field(repr=False)
    job_id: str
    attempt: int

    @classmethod
    def from_environment(cls, environment) -> Settings | None:
        """None where a variable is missing or makes no sense: then nothing is sent."""
        names = ("CALLBACK_URL", "CALLBACK_SECRET", "JOB_ID", "ATTEMPT")
        address, secret, job_id, attempt = (environment.get(f"MILEPOST_{name}", "").strip() for name in names)
        if not (secret and job_id and attempt.isdecimal() and int(attempt) > 0):
            return None
        try:
            url = urllib.parse.urlsplit(address)
            if url.scheme not in ("http", "https") or not url.hostname or (url.port is not None and url.port < 1):
                return None
            return cls(url, signing_key(secret), job_id, int(attempt))
        except ValueError:
            return None


class Sender:
    """One thread that sends what was queued, in order. Nothing here waits for the network but it."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._connection: http.client.HTTPConnection | None = None
        self._changed = threading.Condition()
        self._tasks: collections.deque[dict] = collections.deque(maxlen=PENDING_TASKS_MAX)
        self._lines: collections.deque[tuple[int, str, int]] = collections.deque()
        self._lines_bytes = 0
        self._line_number = 0
        self._sending = False
        self._hurry = False
        self._refused = False
        self._lost = False
        # Retries and requests end here: infinitely far off until the run is over.
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None
        # Ansible forks a worker for every task; only this process may send.
        self._process = os.getpid()

    def begin_task(self, number: int, play: str, task: str) -> None:
        """Queues that a task has begun; the oldest is left out when there are too many."""
        with self._changed:
            self._tasks.append({"type": "task", "number": number, "play": clean(play), "task": clean(task)})
            self._wake()

    def add_line(self, line: str) -> None:
        """Queues a line. Every line has a number, also one that is dropped because the queue is full."""
        size = json_size(line)
        with self._changed:
            self._line_number += 1
            if len(self._lines) < PENDING_LINES_MAX and self._lines_bytes + size <= PENDING_BYTES_MAX:
                self._lines.append((self._line_number, line, size))
                self._lines_bytes += size
            else:
                self._lost = True
            self._wake()

    def flush(self, seconds: float) -> bool:
        """Waits until all is sent, at most for this long, and drops the rest.

        Says whether every line so far has been taken by the server.
        """
        with self._changed:
            self._hurry = True
            self._deadline = time.monotonic() + seconds
            self._changed.notify_all()
            done = self._changed.wait_for(self._is_idle, seconds)
            # Or the end of the process would wait for the same lines once more.
            self._tasks.clear()
            self._lines.clear()
            self._lines_bytes = 0
            self._hurry = False
            self._deadline = float("inf")
        return done and not self._lost

    def stop(self) -> None:
        """Sends what is left, within the bound, at the end of the process."""
        if (self._tasks or self._lines) and os.getpid() == self._process:
            self.flush(FLUSH_SECONDS_MAX)

    def _wake(self) -> None:
        # Started late, so that a syntax check starts no thread; a daemon, so that it holds up no exit.
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="milepost", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _is_idle(self) -> bool:
        return not (self._tasks or self._lines or self._sending)

    def _run(self) -> None:
        while True:
            message = self._next()
            try:
                taken = self._deliver(message)
            except Exception:
                # Whatever it was, the next message may fare better; this one shows as a gap.
                taken = False
                self._disconnect()
            with self._changed:
                self._sending = False
                self._lost |= not taken
                self._changed.notify_all()

    def _next(self) -> dict:
        """Waits for something to send: a task at once, lines when no more come or a body is full."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._lines)
            lines_full = lambda: self._tasks or self._hurry or self._lines_bytes >= BODY_BYTES_MAX
            self._changed.wait_for(lines_full, LINGER_SECONDS)
            self._sending = True
            return self._tasks.popleft() if self._tasks else self._take_lines()

    def _take_lines(self) -> dict:
        first, _, _ = self._lines[0]
        message = {"type": "log", "from": first, "lines": []}
        room = BODY_BYTES_MAX - len(self._encode(message))
        while self._lines:
            number, line, size = self._lines[0]
            # After a gap a new message begins, since its `from` is what tells of the gap.
            if size > room or len(message["lines"]) == LINES_MAX or number != first + len(message["lines"]):
                break
            room -= size
            message["lines"].append(line)
            self._lines.popleft()
            self._lines_bytes -= size
        return message

    def _encode(self, message: dict) -> bytes:
        body = {"job_id": self._settings.job_id, "attempt": self._settings.attempt, **message}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

    def _deliver(self, message: dict) -> bool:
        """Sends one message, a few times if need be, and says whether the server took it."""
        body = self._encode(message)
        message_id = f"msg_{uuid.uuid4().hex}"
        for tried in range(1, TRIES_MAX + 1):
            left = self._deadline - time.monotonic()
            if self._refused or left <= 0:
                break
            status, pause = self._post(message_id, body, min(REQUEST_SECONDS_MAX, left))
            if status == 401:
                # With the wrong secret nothing will ever be taken.
                self._refused = True
            if not is_worth_retrying(status):
                return status < 300
            if tried < TRIES_MAX:
                pause = max(pause, BACKOFF_SECONDS * 2 ** (tried - 1))
                time.sleep(max(0.0, min(pause, self._deadline - time.monotonic())))
        return False

    def _post(self, message_id: str, body: bytes, seconds: float) -> tuple[int, float]:
        """The status of the answer, 0 where there is none, and how long the server asks us to wait."""
        # Signed anew at every try, since an old timestamp is refused; the id stays the message's own.
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "milepost-ansible/1",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._settings.key, message_id, timestamp, body),
        }
        url = self._settings.url
        path = urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        try:
            connection = self._connect(seconds)
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read(BODY_BYTES_MAX)
            if response.will_close or not response.isclosed():
                self._disconnect()
            return response.status, retry_after(response.getheader("Retry-After"))
        except (OSError, http.client.HTTPException):
            self._disconnect()
            return 0, 0.0

    def _connect(self, seconds: float) -> http.client.HTTPConnection:
        if self._connection is None:
            url = self._settings.url
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(url.hostname, url.port, timeout=seconds)
        elif self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Mask:
    """Replaces the values of the environment variables that are secrets, by their names."""

    def __init__(self, environment):
        values = {
            line.strip()
            for name, value in environment.items()
            if SECRET_NAME.search(name)
            for line in [value, *value.splitlines()]
            if len(line.strip()) >= SECRET_CHARACTERS_MIN
        }
        # The longest first: one secret may begin with another.
        ordered = sorted(values, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        return self._pattern.sub(MASK, text) if self._pattern else text


def signing_key(secret: str) -> bytes:
    """The bytes after ``whsec_``, which are base64, or those of the text.

    Raises ValueError if what follows ``whsec_`` is not base64.
    """
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64 after whsec_") from error


def sign(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """The signature that Standard Webhooks 1.0 asks for."""
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def is_worth_retrying(status: int) -> bool:
    return status in (0, 408, 425, 429) or status >= 500


def retry_after(header: str | None) -> float:
    """The seconds that a server asks for, within our own bound; 0 where it gives a date or nothing."""
    return min(float(header), RETRY_AFTER_SECONDS_MAX) if header and header.isdecimal() else 0.0


def json_size(line: str) -> int:
    """The bytes that a line takes in a list in JSON, its comma counted in."""
    return len(json.dumps(line, ensure_ascii=False).encode()) + 1


def clean(text: str) -> str:
    """Text that is surely UTF-8 and keeps to its lines; what is neither becomes a replacement character."""
    # Ansible keeps bytes that are not UTF-8 as lone surrogates.
    text = text.encode("utf-8", "surrogateescape" if is_escaped(text) else "replace").decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def is_escaped(text: str) -> bool:
    """Whether all surrogates in a text stand for bytes, as Python's surrogateescape writes them."""
    return all("\udc80" <= character <= "\udcff" for character in text if "\ud800" <= character <= "\udfff")


def cut(line: str) -> str:
    """A line within the bound, saying how much was left out."""
    data = line.encode()
    if len(data) <= LINE_BYTES_MAX:
        return line
    kept = data[: LINE_BYTES_MAX - 64].decode("utf-8", "ignore")
    return f"{kept} … ({len(data) - len(kept.encode())} bytes left out)"


def outcome_of(result) -> dict[str, typing.Any]:
    """What a task gave. The attribute lost its underscore in ansible-core 2.19."""
    return result.result if hasattr(result, "result") else result._result


def host_of(result) -> str:
    return (result.host if hasattr(result, "host") else result._host).get_name()


def task_of(result):
    return result.task if hasattr(result, "task") else result._task


def is_hidden(result) -> bool:
    """Whether no_log is set, on the task or (in a loop) on the result."""
    outcome = outcome_of(result)
    return bool("censored" in outcome or outcome.get("_ansible_no_log") or task_of(result).no_log is True)


def said_by(outcome: dict) -> str:
    """What a debug task prints: its message, or the variable that it was asked for."""
    shown = {key: value for key, value in outcome.items() if not key.startswith("_") and key != "changed"}
    value = shown["msg"] if "msg" in shown else shown
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def why_it_failed(outcome: dict) -> str:
    """The message of a failure, and the end of what the command printed."""
    lines = [str(outcome.get("msg") or "no message").strip()]
    for stream in ("module_stdout", "module_stderr", "stdout", "stderr"):
        output = str(outcome.get(stream) or "").strip()
        if output and output not in lines[0]:
            lines.append(f"{stream}:")
            lines.extend(f"    {line}" for line in output.splitlines()[-OUTPUT_LINES_MAX:])
    return "\n".join(lines)
