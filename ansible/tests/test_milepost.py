"""The callback plugin, against a server on loopback that checks every signature."""

import base64
import hashlib
import hmac
import http.server
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

ANSIBLE = pathlib.Path(__file__).resolve().parent.parent
SECRET = "whsec_" + base64.b64encode(b"a key that only the test knows").decode()
JOB = "0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
# A run that does nothing takes two or three seconds on a busy machine.
RUN_SECONDS_MAX = 60

spec = importlib.util.spec_from_file_location("milepost", ANSIBLE / "callback_plugins" / "milepost.py")
milepost = importlib.util.module_from_spec(spec)
sys.modules["milepost"] = milepost
spec.loader.exec_module(milepost)


class Receiver(http.server.ThreadingHTTPServer):
    """Takes callbacks as the server does. `answers` are given in turn, then 200; `held` blocks them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ReceiverHandler)
        self.requests, self.accepted, self.faults = [], [], []
        self.answers = []
        self.held = threading.Event()
        self.held.set()
        self.changed = threading.Condition()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/api/webhooks/github?from=test"

    def close(self):
        self.held.set()
        self.shutdown()
        self.server_close()

    def wait_for(self, condition, seconds=10):
        with self.changed:
            if not self.changed.wait_for(condition, seconds):
                raise AssertionError(f"never came; requests: {len(self.requests)}, faults: {self.faults}")

    def lines(self):
        """Number and text of every line accepted, as `from` counts them."""
        logs = [body for body in self.accepted if body["type"] == "log"]
        return [(body["from"] + index, line) for body in logs for index, line in enumerate(body["lines"])]

    def text(self):
        return "\n".join(line for _, line in self.lines())

    def tasks(self):
        return [body for body in self.accepted if body["type"] == "task"]


class ReceiverHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.held.wait()
        with self.server.changed:
            fault = self.fault(body)
            if fault:
                self.server.faults.append(fault)
            status, headers = self.server.answers.pop(0) if self.server.answers else (200, {})
            self.server.requests.append((self.headers["webhook-id"], status, len(body)))
            if status == 200:
                self.server.accepted.append(json.loads(body))
            self.server.changed.notify_all()
        self.send_response(status)
        for name, value in {"Content-Length": "2", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def fault(self, body):
        message_id, timestamp = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        mac = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        if self.headers["webhook-signature"] != "v1," + base64.b64encode(mac).decode():
            return "wrong signature"
        if abs(time.time() - int(timestamp)) > 300:
            return "stale timestamp"
        if len(body) > 65536:
            return f"{len(body)} bytes"
        if self.path != "/api/webhooks/github?from=test" or self.headers["Content-Type"] != "application/json":
            return f"wrong request: {self.path} {self.headers['Content-Type']}"
        parsed = json.loads(body)
        if parsed["job_id"] != JOB or parsed["attempt"] != 2:
            return "wrong job or attempt"
        return None

    def log_message(self, *args):
        pass


def environment(url, **more):
    names = {"CALLBACK_URL": url, "CALLBACK_SECRET": SECRET, "JOB_ID": JOB, "ATTEMPT": "2"}
    return {**{f"MILEPOST_{name}": value for name, value in names.items()}, **more}


class ReceiverTest(unittest.TestCase):
    def setUp(self):
        self.receiver = Receiver()
        self.addCleanup(self.receiver.close)

    def tearDown(self):
        self.assertEqual(self.receiver.faults, [])

    def sender(self, url=None):
        return milepost.Sender(milepost.Settings.from_environment(environment(url or self.receiver.url)))


class SenderTest(ReceiverTest):
    def test_lines_arrive_in_order_each_once(self):
        sender = self.sender()
        for number in range(1, 10_001):
            sender.add_line(f"line {number}")
        self.assertTrue(sender.flush(30))
        self.assertEqual(self.receiver.lines(), [(number, f"line {number}") for number in range(1, 10_001)])
        # As the server takes them: 500 in a callback.
        self.assertLessEqual(max(len(body["lines"]) for body in self.receiver.accepted), 500)
        self.assertLess(len(self.receiver.requests), 60, "lines go in batches")

    def test_a_task_is_told_before_the_lines_that_wait(self):
        sender = self.sender()
        sender.add_line("TASK [docker : add the repository]")
        sender.begin_task(1, "Configure", "docker : add the repository")
        self.assertTrue(sender.flush(10))
        told = {"job_id": JOB, "attempt": 2, "type": "task", "number": 1, "play": "Configure"}
        self.assertEqual(self.receiver.accepted[0], {**told, "task": "docker : add the repository"})

    def test_lines_come_without_a_flush_while_the_run_goes_on(self):
        sender = self.sender()
        sender.add_line("the first")
        self.receiver.wait_for(lambda: self.receiver.lines() == [(1, "the first")])
        sender.add_line("the second")
        self.receiver.wait_for(lambda: self.receiver.lines()[1:] == [(2, "the second")])

    def test_lines_linger_for_less_than_half_a_second(self):
        self.assertLess(milepost.LINGER_SECONDS, 0.5)

    def test_no_body_is_over_the_limit_whatever_json_makes_of_the_lines(self):
        sender = self.sender()
        for character in ("\x1b", "ä", "🦀", '"', "\\", "x"):
            line = milepost.cut(character * 100_000)
            for _ in range(20):
                sender.add_line(line)
        self.assertTrue(sender.flush(30))
        self.assertEqual(len(self.receiver.lines()), 120)
        # The receiver finds fault with a body that is larger; nearly full ones show that room is used.
        self.assertGreater(max(size for _, _, size in self.receiver.requests), 40_000)

    def test_a_huge_line_says_how_much_was_left_out(self):
        line = milepost.cut("ä" * 1_000_000)
        self.assertLessEqual(len(line.encode()), milepost.LINE_BYTES_MAX)
        kept = line.count("ä")
        self.assertTrue(line.endswith(f" … ({2_000_000 - 2 * kept} bytes left out)"))
        self.assertEqual(milepost.cut("x" * milepost.LINE_BYTES_MAX), "x" * milepost.LINE_BYTES_MAX)

    def test_a_retry_carries_the_same_id(self):
        self.receiver.answers = [(503, {"Retry-After": "0"}), (500, {})]
        sender = self.sender()
        sender.add_line("once")
        self.assertTrue(sender.flush(10))
        ids, statuses = zip(*[(message_id, status) for message_id, status, _ in self.receiver.requests])
        self.assertEqual((len(set(ids)), statuses), (1, (503, 500, 200)))
        self.assertEqual(self.receiver.lines(), [(1, "once")])

    def test_a_final_answer_is_not_retried_and_shows_as_a_gap(self):
        self.receiver.answers = [(400, {})]
        sender = self.sender()
        sender.add_line("refused")
        self.receiver.wait_for(lambda: len(self.receiver.requests) == 1)
        sender.add_line("taken")
        self.assertFalse(sender.flush(10), "a line was lost")
        self.assertEqual(self.receiver.lines(), [(2, "taken")])

    def test_nothing_is_sent_after_the_secret_was_refused(self):
        self.receiver.answers = [(401, {})]
        sender = self.sender()
        sender.add_line("one")
        self.receiver.wait_for(lambda: len(self.receiver.requests) == 1)
        sender.add_line("two")
        self.assertFalse(sender.flush(10))
        self.assertEqual(len(self.receiver.requests), 1)

    def test_a_server_that_hangs_costs_the_run_nothing_and_drops_are_told_by_the_gap(self):
        self.receiver.held.clear()
        sender = self.sender()
        sender.add_line("the first")
        line = "x" * 8000
        over = milepost.PENDING_BYTES_MAX // 8000 + 100
        begun = time.monotonic()
        for _ in range(over):
            sender.add_line(line)
        self.assertLess(time.monotonic() - begun, 2, "adding a line does not wait for the server")
        self.receiver.held.set()
        self.receiver.wait_for(lambda: not sender._lines)
        sender.add_line("the last")
        self.assertFalse(sender.flush(30), "lines were lost")
        numbers = [number for number, _ in self.receiver.lines()]
        self.assertEqual(self.receiver.lines()[-1], (over + 2, "the last"))
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertLess(len(numbers), over)

    def test_tasks_that_begin_faster_than_they_can_be_told_leave_the_latest(self):
        self.receiver.held.clear()
        sender = self.sender()
        for number in range(1, 1001):
            sender.begin_task(number, "play", f"task {number}")
        self.receiver.held.set()
        self.assertTrue(sender.flush(10))
        numbers = [body["number"] for body in self.receiver.tasks()]
        self.assertEqual(numbers[-1], 1000)
        self.assertEqual(numbers, sorted(numbers))
        self.assertLessEqual(len(numbers), milepost.PENDING_TASKS_MAX + 1)

    def test_the_end_of_a_run_waits_for_a_dead_server_only_so_long(self):
        self.receiver.shutdown()
        self.receiver.server_close()
        self.receiver.close = lambda: None
        sender = self.sender()
        for number in range(1000):
            sender.add_line(str(number))
        self.assertBounded(sender)

    def test_the_end_of_a_run_waits_for_a_silent_server_only_so_long(self):
        self.receiver.held.clear()
        sender = self.sender()
        sender.add_line("never answered")
        self.assertBounded(sender)

    def assertBounded(self, sender):
        begun = time.monotonic()
        self.assertFalse(sender.flush(0.3))
        sender.stop()
        self.assertLess(time.monotonic() - begun, 2)

    def test_a_server_that_closes_every_connection_gets_everything(self):
        self.receiver.answers = [(200, {"Connection": "close"})] * 3
        sender = self.sender()
        for number in range(3):
            sender.add_line(str(number))
            self.receiver.wait_for(lambda: len(self.receiver.lines()) == number + 1)
        self.assertTrue(sender.flush(10))


class TextTest(unittest.TestCase):
    def test_bytes_that_are_not_utf8_become_replacement_characters(self):
        self.assertEqual(milepost.clean(b"caf\xe9 \xff".decode("utf-8", "surrogateescape")), "caf\ufffd \ufffd")
        self.assertEqual(milepost.clean("lone \ud800 and nul \0"), "lone ? and nul \ufffd")
        self.assertEqual(milepost.clean("grün 🦀"), "grün 🦀")

    def test_secrets_of_the_environment_are_masked_by_their_names(self):
        pem = "-----BEGIN KEY-----\nMIIEabcdefgh\n-----END KEY-----"
        mask = milepost.Mask(
            {"HCLOUD_TOKEN": "hc-0123456789", "APP_PRIVATE_KEY": pem, "HOME": "/home/somebody", "DB_PASSWORD": "yes"}
        )
        self.assertEqual(mask("token hc-0123456789, MIIEabcdefgh"), "token ***, ***")
        self.assertEqual(mask("/home/somebody says yes"), "/home/somebody says yes")

    def test_the_key_is_base64_after_its_prefix_or_the_text_itself(self):
        self.assertEqual(milepost.signing_key("whsec_aGVsbG8="), b"hello")
        self.assertEqual(milepost.signing_key("hello"), b"hello")
        with self.assertRaises(ValueError):
            milepost.signing_key("whsec_not base64")

    def test_signatures_are_those_of_standard_webhooks(self):
        # The example of the Standard Webhooks libraries.
        key = milepost.signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        signature = milepost.sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
        self.assertEqual(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")

    def test_settings_that_are_missing_or_make_no_sense_send_nothing(self):
        good = environment("http://localhost:1/x")
        self.assertIsNotNone(milepost.Settings.from_environment(good))
        for name in good:
            self.assertIsNone(milepost.Settings.from_environment({**good, name: ""}), name)
        for name, value in [
            ("CALLBACK_URL", "ftp://localhost"),
            ("CALLBACK_URL", "http://localhost:port"),
            ("CALLBACK_URL", "nonsense"),
            ("CALLBACK_SECRET", "whsec_!"),
            ("ATTEMPT", "0"),
            ("ATTEMPT", "one"),
        ]:
            self.assertIsNone(milepost.Settings.from_environment({**good, f"MILEPOST_{name}": value}), value)

    def test_the_key_is_not_shown_with_the_settings(self):
        self.assertNotIn("key", repr(milepost.Settings.from_environment(environment("http://localhost"))))


class RunTest(ReceiverTest):
    """The plugin in a real ansible-playbook."""

    maxDiff = None

    def run_playbook(self, tasks, handlers="[]", env=None, **more):
        with tempfile.TemporaryDirectory() as directory:
            playbook = pathlib.Path(directory, "playbook.yml")
            head = "- name: Try it\n  hosts: target\n  gather_facts: false\n"
            sections = {"tasks": tasks, "handlers": handlers}
            parts = [f"  {name}:\n" + textwrap.indent(textwrap.dedent(text), "    ") for name, text in sections.items()]
            playbook.write_text(head + "\n".join(parts))
            variables = environment(self.receiver.url) if env is None else env
            return subprocess.run(
                [*PLAYBOOK_COMMAND, "-i", "target,", "-e", "ansible_connection=local", str(playbook)],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": directory,
                    "LANG": "C.UTF-8",
                    "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
                    "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
                    "ANSIBLE_NOCOLOR": "1",
                    **variables,
                    **more,
                },
                cwd=ANSIBLE,
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS_MAX,
            )

    def test_a_run_is_told_as_a_person_reads_it(self):
        run = self.run_playbook(
            """
            - name: Say hello
              ansible.builtin.debug:
                msg: "hello, token {{ lookup('env', 'HCLOUD_TOKEN') }}"
            - name: Change something
              ansible.builtin.command: "true"
            - name: Each of two
              ansible.builtin.debug:
                msg: "it is {{ item }}"
              loop: [one, two]
            - name: Not now
              ansible.builtin.debug:
              when: false
            - name: Goes wrong, which is fine
              ansible.builtin.shell: echo out; echo err >&2; exit 3
              ignore_errors: true
            - name: Goes wrong
              ansible.builtin.fail:
                msg: no further
            """,
            HCLOUD_TOKEN="hc-0123456789",
        )
        self.assertEqual(run.returncode, 2, run.stdout + run.stderr)
        numbers = [number for number, _ in self.receiver.lines()]
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)), "no gap, in order")
        text = self.receiver.text()
        expected = """
            PLAY [Try it]

            TASK [Say hello]
            ok: [target] => hello, token ***

            TASK [Change something]
            changed: [target]

            TASK [Each of two]
            ok: [target] => (item=one) => it is one
            ok: [target] => (item=two) => it is two

            TASK [Not now]
            skipping: [target]

            TASK [Goes wrong, which is fine]
            fatal: [target]: FAILED! => non-zero return code
            stdout:
                out
            stderr:
                err
            ...ignoring

            TASK [Goes wrong]
            fatal: [target]: FAILED! => no further

            PLAY RECAP
            target : ok=4 changed=2 unreachable=0 failed=1 skipped=1 rescued=0 ignored=1"""
        self.assertEqual(text, textwrap.dedent(expected))
        self.assertEqual(
            [(body["number"], body["play"], body["task"]) for body in self.receiver.tasks()][-1],
            (6, "Try it", "Goes wrong"),
        )

    def test_handlers_includes_and_retries_are_told(self):
        run = self.run_playbook(
            """
            - name: Change something
              ansible.builtin.command: "true"
              changed_when: true
              notify: React
            - name: Try again
              ansible.builtin.command: "false"
              register: tried
              until: tried.rc == 0
              retries: 1
              delay: 0
              ignore_errors: true
            """,
            handlers="""
            - name: React
              ansible.builtin.debug:
                msg: [reacted, twice]
            """,
        )
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        text = self.receiver.text()
        self.assertIn("FAILED - RETRYING: [target]: Try again (1 retries left).", text)
        self.assertIn('RUNNING HANDLER [React]\nok: [target] => ["reacted", "twice"]', text)
        self.assertEqual([body["task"] for body in self.receiver.tasks()], ["Change something", "Try again", "React"])

    def test_no_log_is_honoured(self):
        run = self.run_playbook(
            """
            - name: Hidden
              ansible.builtin.debug:
                msg: hush-hush
              no_log: true
            - name: Hidden in a loop
              ansible.builtin.command: echo {{ item }}
              loop: [hush-hush]
              no_log: true
            - name: Hidden and failing
              ansible.builtin.shell: echo hush-hush; exit 1
              no_log: true
            """
        )
        self.assertEqual(run.returncode, 2, run.stdout + run.stderr)
        self.assertIn("fatal: [target]: FAILED! => the result is hidden by no_log", self.receiver.text())
        self.assertNotIn("hush", json.dumps(self.receiver.accepted))

    def test_lines_have_colours_unless_told_otherwise(self):
        self.run_playbook("- name: One\n  ansible.builtin.command: 'true'\n", ANSIBLE_NOCOLOR="1")
        self.assertNotIn("\x1b", self.receiver.text())
        callback = milepost.CallbackModule()
        self.assertEqual(callback._colour("ok", "ok: [x]"), "\x1b[32mok: [x]\x1b[0m")

    def test_a_run_goes_well_without_a_server(self):
        with self.subTest("nothing listens"):
            env = environment("http://127.0.0.1:1/")
            run = self.run_playbook("- name: One\n  ansible.builtin.debug:\n", env=env)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
            self.assertIn("milepost: not everything could be sent", run.stderr)
        with self.subTest("no variables"):
            run = self.run_playbook("- name: One\n  ansible.builtin.debug:\n", env={})
            self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(self.receiver.requests, [])

    def test_a_refusal_of_everything_does_not_fail_the_run(self):
        self.receiver.answers = [(401, {})] * 100
        run = self.run_playbook("- name: One\n  ansible.builtin.debug:\n")
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


PLAYBOOK_COMMAND = [str(pathlib.Path(sys.executable).parent / "ansible-playbook")]

if __name__ == "__main__":
    unittest.main()
