"""What every storage does alike; a folder and a real S3 server run the same tests."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from glioray.errors import StorageError, UsageError
from glioray.storage import FileStorage, S3Storage, Storage, is_local, join_uri, open_storage, split_uri

ODD_KEYS = ["with space/a b.txt", "größe/Ψ.nii.gz", "plus+sign/100%.bin", "a'quote\".txt", "tilde~/.hidden"]


class StorageContract:
    """A backend's test class gives the fixture `storage`: an empty one, whose root exists."""

    def test_reads_what_was_written(self, storage: Storage) -> None:
        storage.write("case/t1.nii.gz", b"voxels")
        assert storage.read("case/t1.nii.gz") == b"voxels"
        assert storage.exists("case/t1.nii.gz")
        assert not storage.exists("case/t2.nii.gz")
        assert not storage.exists("case")

    def test_keeps_empty_and_binary_objects(self, storage: Storage) -> None:
        everything = bytes(range(256)) * 5000
        storage.write("empty", b"")
        storage.write("binary", everything)
        assert storage.read("empty") == b""
        assert storage.read("binary") == everything
        assert {info.key: info.size_bytes for info in storage.list()} == {
            "empty": 0,
            "binary": len(everything),
        }

    def test_lists_by_whole_key_in_order(self, storage: Storage) -> None:
        keys = ["b.txt", "a/2", "a/10", "a-b/1", "a.txt", "a/b/c", "A/1", "é"]
        for key in keys:
            storage.write(key, key.encode())
        assert [info.key for info in storage.list()] == sorted(keys)
        assert [info.size_bytes for info in storage.list()] == [len(key.encode()) for key in sorted(keys)]

    def test_a_prefix_may_end_within_a_name(self, storage: Storage) -> None:
        for key in ("case-1/t1", "case-10/t1", "case-2/t1", "other"):
            storage.write(key, b".")
        assert [info.key for info in storage.list("case-1")] == ["case-1/t1", "case-10/t1"]
        assert [info.key for info in storage.list("case-1/")] == ["case-1/t1"]
        assert [info.key for info in storage.list("nothing")] == []
        assert [info.key for info in storage.list("nothing/below")] == []

    def test_lists_more_than_one_page(self, storage: Storage) -> None:
        keys = [f"many/{number:04d}" for number in range(1050)]
        for key in keys:
            storage.write(key, b".")
        assert [info.key for info in storage.list("many/")] == keys

    def test_reads_ranges(self, storage: Storage) -> None:
        storage.write("digits", b"0123456789")
        assert storage.read_range("digits", 0, 4) == b"0123"
        assert storage.read_range("digits", 7, 2) == b"78"
        assert storage.read_range("digits", 8, 100) == b"89"
        assert storage.read_range("digits", 3, 0) == b""
        assert storage.read_range("digits", 10, 5) == b""
        assert storage.read_range("digits", 99, 5) == b""

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_takes_odd_keys(self, storage: Storage, key: str) -> None:
        storage.write(key, key.encode())
        assert storage.read(key) == key.encode()
        assert [info.key for info in storage.list()] == [key]

    @pytest.mark.parametrize(
        "key", ["../outside", "a/../../outside", "/etc/passwd", "", "a//b", "a/", ".", "a\0b"]
    )
    def test_refuses_keys_that_leave_the_root(self, storage: Storage, key: str) -> None:
        for use in (storage.read, storage.exists, storage.delete, lambda key: storage.write(key, b"x")):
            with pytest.raises(StorageError, match="not a key"):
                use(key)

    @pytest.mark.parametrize("prefix", ["../", "/etc/", "a/../../"])
    def test_refuses_prefixes_that_leave_the_root(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(StorageError, match="not a key"):
            list(storage.list(prefix))

    def test_says_what_is_missing(self, storage: Storage) -> None:
        for use in (storage.read, lambda key: storage.read_range(key, 0, 4)):
            with pytest.raises(StorageError) as caught:
                use("case/absent.nii.gz")
            message = str(caught.value)
            assert f"{storage.uri}/case/absent.nii.gz" in message
            assert "check" in message
            assert "\n" not in message

    def test_deletes_and_does_not_mind_what_is_gone(self, storage: Storage) -> None:
        storage.write("a/b", b"x")
        storage.delete("a/b")
        storage.delete("a/b")
        assert not storage.exists("a/b")
        assert list(storage.list()) == []

    def test_a_reader_sees_the_old_object_or_the_new_one(self, storage: Storage) -> None:
        versions = {bytes([number]) * 300_000 for number in range(1, 4)}
        storage.write("latest.json", min(versions))
        done = threading.Event()
        seen: list[bytes | Exception] = []

        def read() -> None:
            while not done.is_set():
                try:
                    seen.append(storage.read("latest.json"))
                except StorageError as error:
                    seen.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for _ in range(10):
                for version in sorted(versions):
                    storage.write("latest.json", version)
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert seen
        assert set(seen) <= versions

    def test_travels_to_a_worker_without_secrets(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", "")
        storage.write("a", b"x")
        data = pickle.dumps(storage)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert os.environ.get(name, "no key is set").encode() not in data
        assert pickle.loads(data).read("a") == b"x"

    def test_a_folder_below_is_a_storage_of_its_own(self, storage: Storage) -> None:
        open_storage(join_uri(storage.uri, "runs", "one")).write("latest.json", b"{}")
        assert storage.read("runs/one/latest.json") == b"{}"


class TestFileStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path)

    def test_leaves_folders_and_unfinished_writes_out(self, storage: Storage, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"half")
        assert list(storage.list()) == []

    def test_a_failed_write_leaves_nothing(self, storage: Storage, tmp_path: Path) -> None:
        storage.write("a", b"x")
        with pytest.raises(StorageError, match="cannot be written"):
            storage.write("a/b", b"x")
        (tmp_path / "folder").mkdir()
        with pytest.raises(StorageError, match="cannot be written"):
            storage.write("folder", b"x")
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a"]

    def test_needs_no_folder_before_the_first_write(self, tmp_path: Path) -> None:
        storage = open_storage(tmp_path / "new")
        with pytest.raises(StorageError, match="is not a folder"):
            list(storage.list())
        storage.write("a", b"x")
        assert [info.key for info in storage.list()] == ["a"]

    def test_takes_file_uris(self, tmp_path: Path) -> None:
        open_storage(tmp_path / "with space").write("a", b"x")
        uri = (tmp_path / "with space").as_uri()
        assert "%20" in uri
        assert open_storage(uri).read("a") == b"x"


class TestS3Storage(StorageContract):
    @pytest.fixture
    def storage(self, bucket: str) -> Storage:
        return open_storage(f"s3://{bucket}/some/prefix")

    def test_leaves_directory_markers_out(self, bucket: str, s3_server: str) -> None:
        import boto3

        client = boto3.client("s3", endpoint_url=s3_server)
        client.put_object(Bucket=bucket, Key="case/", Body=b"")
        client.put_object(Bucket=bucket, Key="case/t1", Body=b".")
        assert [info.key for info in open_storage(f"s3://{bucket}").list()] == ["case/t1"]

    def test_a_bucket_without_a_prefix(self, bucket: str) -> None:
        storage = open_storage(f"s3://{bucket}/")
        assert storage.uri == f"s3://{bucket}"
        storage.write("a/b", b"x")
        assert [info.key for info in storage.list()] == ["a/b"]
        assert [info.key for info in open_storage(f"s3://{bucket}/a").list()] == ["b"]

    def test_a_wrong_bucket_is_said(self, s3_server: str) -> None:
        storage = open_storage("s3://nobody-made-this/prefix")
        for use in (lambda: list(storage.list()), lambda: storage.read("a")):
            with pytest.raises(StorageError, match=r"s3://nobody-made-this/prefix.*NoSuchBucket"):
                use()

    def test_a_wrong_key_is_said(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
        with pytest.raises(StorageError, match="AWS credentials") as caught:
            open_storage(f"s3://{bucket}").read("a")
        assert "not-the-key" not in str(caught.value)

    def test_a_server_that_is_not_there_is_said(
        self, s3_server: str, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = f"http://127.0.0.1:{free_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        errors = [_error(lambda: open_storage("s3://data").read("a"))]
        errors.append(_error(lambda: list(open_storage("s3://data").list())))
        assert all(endpoint in error and "AWS_ENDPOINT_URL" in error for error in errors)
        assert not any("\n" in error for error in errors)

    def test_an_endpoint_without_a_scheme_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
        assert "localhost:8333" in _error(lambda: open_storage("s3://data").read("a"))

    def test_missing_credentials_are_said(self, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        assert "credentials" in _error(lambda: open_storage("s3://data").read("a"))


def _error(use: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        use()
    return str(caught.value)


def test_opens_by_scheme(tmp_path: Path) -> None:
    assert isinstance(open_storage(tmp_path), FileStorage)
    assert isinstance(open_storage("s3://bucket/prefix"), S3Storage)
    assert is_local(str(tmp_path))
    assert not is_local("s3://bucket")
    for uri in ("gs://bucket", "http://host/x", "S3://bucket"):
        with pytest.raises(UsageError, match="use a folder, file:// or s3://bucket/prefix"):
            open_storage(uri)
    with pytest.raises(UsageError, match="names no bucket"):
        open_storage("s3://")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b.json", ("s3://bucket/a", "b.json")),
        ("s3://bucket/b.json", ("s3://bucket", "b.json")),
        ("/data/b.json", ("/data", "b.json")),
        ("/b.json", ("/", "b.json")),
        ("b.json", (".", "b.json")),
        ("runs/b.json/", ("runs", "b.json")),
        ("file:///data/b.json", ("file:///data", "b.json")),
        ("file:///b.json", ("file:///", "b.json")),
    ],
)
def test_splits_a_uri(uri: str, expected: tuple[str, str]) -> None:
    assert split_uri(uri) == expected


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "/", "", "file:///"])
def test_a_uri_without_a_name_cannot_be_split(uri: str) -> None:
    with pytest.raises(UsageError, match="names no object"):
        split_uri(uri)


def test_joins_with_single_slashes() -> None:
    assert join_uri("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
    assert join_uri("/data", "", "a") == "/data/a"


def test_a_folder_s_links_are_followed_but_not_in_circles(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.bin").write_bytes(b"a")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "linked" / "back").symlink_to(root)
    assert [item.key for item in open_storage(root).list()] == ["linked/a.bin"]
