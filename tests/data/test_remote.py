"""Shards in an object store, served by one that checks the signature of every request."""

import hashlib
import hmac
import sys
from collections.abc import Iterator
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
import torch

from estl.commands import main
from estl.data import Digits, Shards
from estl.data.remote import read_bytes
from estl.data.shards import write_shards

pytest.importorskip("minio", reason="no minio: pip install 'estl[s3]'")
KEY, SECRET = "an access key", "a secret/key+"


def signature(
    secret: str, method: str, target: str, headers: dict[str, str], signed: str, scope: str
) -> str:
    """AWS Signature Version 4 of a request, as Amazon's documentation describes it."""
    parts = urlsplit(target)
    query = sorted(parse_qsl(parts.query, keep_blank_values=True))
    canonical = "\n".join(
        [
            method,
            parts.path,
            "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in query),
            *(f"{name}:{headers[name].strip()}" for name in signed.split(";")),
            "",
            signed,
            headers["x-amz-content-sha256"],
        ]
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, digest])
    keys = [*scope.split("/"), text]
    return reduce(
        lambda key, word: hmac.digest(key, word.encode(), "sha256"), keys, b"AWS4" + secret.encode()
    ).hex()


def test_the_signature_is_that_of_amazons_example() -> None:
    headers = {
        "host": "examplebucket.s3.amazonaws.com",
        "range": "bytes=0-9",
        "x-amz-content-sha256": hashlib.sha256(b"").hexdigest(),
        "x-amz-date": "20130524T000000Z",
    }
    found = signature(
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "GET", "/test.txt", headers,
        ";".join(headers), "20130524/us-east-1/s3/aws4_request",
    )  # fmt: skip
    assert found == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"


class Store(BaseHTTPRequestHandler):
    """The objects of one bucket, for those who sign with the right key."""

    root: Path

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        _, _, given = headers.get("authorization", "").partition("AWS4-HMAC-SHA256 ")
        fields = dict(part.split("=", 1) for part in given.replace(" ", "").split(",") if part)
        credential = given.partition("Credential=")[2].partition(",")[0]
        key, _, scope = credential.partition("/")
        path = self.root / urlsplit(self.path).path.removeprefix("/bucket/")
        if not fields:
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif fields["Signature"] != signature(
            SECRET, "GET", self.path, headers, fields["SignedHeaders"], scope
        ):
            self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        elif key != KEY or "eu-north-1/s3" not in scope:
            self.answer(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")
        elif not path.is_file():
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.answer(200, path.read_bytes())

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    data = Digits(T=2, size=8, per_class=3, test_fraction=0.1)
    write_shards(data, root / "sets/digits", shard_size=8)
    return root


@pytest.fixture
def store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address; the environment has the key."""
    handler = type("Own", (Store,), {"root": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "eu-north-1",
            "HOME": str(tmp_path),
        }.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket/sets/digits"
        server.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_in_a_store_are_those_of_the_folder(folder: Path, store: str, workers: int) -> None:
    how = {"batch_size": 4, "buffer": 16, "seed": 3, "num_workers": workers}
    one, two = (Shards(root, **how) for root in (folder / "sets/digits", store))
    assert one.fingerprint == two.fingerprint
    for split in ("train", "val", "test"):
        batches = (data.loader(split, shuffle=split == "train") for data in (one, two))
        for a, b in zip(*batches, strict=True):
            assert torch.equal(a.events, b.events)
            assert torch.equal(a.label, b.label)


@pytest.mark.slow
def test_a_student_is_trained_from_a_store(store: str, tmp_path: Path) -> None:
    student = ["--arch=vggsnn-pooled", "--student.init_args.layers=[4,AP,4]", "--epochs=1"]
    data = ["--dataset=shards", f"--data-path={store}", "--batch-size=8"]
    assert main(["fit", *data, *student, f"--output-dir={tmp_path / 'run'}"]) == 0
    assert main(["test", f"--ckpt={tmp_path / 'run' / 'last.ckpt'}"]) == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "another", "SignatureDoesNotMatch: set AWS_ACCESS_KEY_ID and"),
        ("AWS_ACCESS_KEY_ID", "another", "InvalidAccessKeyId: set AWS_ACCESS_KEY_ID and"),
        ("AWS_ACCESS_KEY_ID", "", "AccessDenied: set AWS_ACCESS_KEY_ID and"),  # unsigned
        ("AWS_REGION", "us-west-1", "InvalidAccessKeyId: set AWS_ACCESS_KEY_ID and"),
    ],
)
def test_a_store_that_refuses_is_said_in_one_line(
    name: str, value: str, said: str, store: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    assert main(["fit", "--dataset=shards", f"--data-path={store}", "--arch=vggsnn"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{store}/index.json: the store says {said}" in line


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_said_in_one_line(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert main(["fit", "--dataset=shards", f"--data-path={store}", "--arch=vggsnn"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{store}/index.json: no answer from the store" in line


def test_what_is_not_there_is_said_in_one_line(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no object s3://bucket/none/index.json: point"):
        Shards("s3://bucket/none")
    with pytest.raises(OSError, match=r"s3://b/index.json: no answer .*invalid bucket name"):
        Shards("s3://b")
    monkeypatch.setitem(sys.modules, "minio.error", None)
    with pytest.raises(ValueError, match=r"pip install 'estl\[s3\]'"):
        read_bytes(f"{store}/index.json")
