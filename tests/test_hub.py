"""Checkpoints named hf:OWNER/NAME, from a server on this machine that speaks as the Hub does."""

import http.server
import json
import pathlib
import sys
import threading

import pytest
from huggingface_hub import constants
from runs import check_equal

from attn_jax import hub
from attn_jax.convert import load_pretrained
from attn_jax.data.vocabulary import read_vocabulary
from attn_jax.folder import resolve_folder

MODEL = pathlib.Path(__file__).parent / "golden" / "bert" / "hf" / "model"
COMMITS = {"main": "1" * 40, "v2": "2" * 40}
FILES = {
    **{path.name: path.read_bytes() for path in MODEL.iterdir()},
    "vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n",
    "pytorch_model.bin": b"pickled",
    "notes/config.json": b"{}",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """team/bert exists, team/secret is gated, team/empty has no files; nothing else exists."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        self.server.paths.append(path)
        parts = path.split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name == "team/secret":
            return self.reply(403, {}, {"X-Error-Code": "GatedRepo"})
        if name not in ("team/bert", "team/empty"):
            return self.reply(404, {}, {"X-Error-Code": "RepoNotFound"})
        files = FILES if name == "team/bert" else {}
        if parts[0] != "api":
            data = files["/".join(parts[4:])]
            known = {"X-Repo-Commit": parts[3], "ETag": f'"{hash(data):x}"'}
            return self.reply(200, data, known)
        if parts[4:5] == ["tree"]:
            listed = [
                {"type": "file", "path": path, "size": len(data), "oid": f"{i:040x}"}
                for i, (path, data) in enumerate(files.items())
            ]
            return self.reply(200, listed)
        revision = parts[5] if len(parts) > 5 else "main"
        if revision not in COMMITS:
            return self.reply(404, {}, {"X-Error-Code": "RevisionNotFound"})
        return self.reply(200, {"id": name, "sha": COMMITS[revision]})

    def reply(self, status, content, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**dict(headers), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server, as HF_ENDPOINT; the cache of huggingface_hub is an empty folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # As HF_ENDPOINT and HF_HUB_CACHE set them when the library is imported.
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    files = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    hub.download.cache_clear()
    yield server
    hub.download.cache_clear()
    server.shutdown()
    server.server_close()


def test_a_name_stands_for_the_files_of_its_repository(server):
    (model, variables), (same, expected) = map(load_pretrained, ("hf:team/bert", MODEL))
    assert model == same
    check_equal(variables, expected)
    assert "[MASK]" in read_vocabulary("hf:team/bert")["vocab.txt"]
    fetched = {path.split("/", 4)[-1] for path in server.paths if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "vocab.txt"}


def test_a_revision_is_a_branch_or_a_tag(server):
    assert hub.download("hf:team/bert").name == COMMITS["main"]
    assert hub.download("hf:team/bert@v2").name == COMMITS["v2"]


def test_what_is_in_the_cache_needs_no_connection(server, monkeypatch):
    first = hub.download("hf:team/bert")
    hub.download.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.paths)
    assert hub.download("hf:team/bert") == first
    assert len(server.paths) == asked
    with pytest.raises(
        ValueError, match="hf:team/other is not in the cache .*OFFLINE is"
    ):
        hub.download("hf:team/other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:team/none", "hf:team/none does not exist on http.*, or is private; check"),
        ("hf:team/secret", "hf:team/secret is gated: accept its terms on http.*secret"),
        (
            "hf:team/bert@v3",
            "hf:team/bert@v3: the repository has no revision 'v3'; name",
        ),
        ("hf:team/empty", "hf:team/empty has no config.json"),
        ("hf:a/b/c", "hf:a/b/c must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
        ("hf:", "hf: must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(server, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(name)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_named(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = "hf:team/bert is not in the cache .* http://127.0.0.1:9 cannot be reached"
    with pytest.raises(ValueError, match=message):
        hub.download("hf:team/bert")


def test_without_the_library_its_extra_is_named(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"hf:team/bert needs .*attn_jax\[hub\]"):
        hub.download("hf:team/bert")


def test_a_workdir_is_no_name_on_the_hub():
    with pytest.raises(ValueError, match="hf:a/b is a checkpoint on the Hub"):
        resolve_folder("hf:a/b")
