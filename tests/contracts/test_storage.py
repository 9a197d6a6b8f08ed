"""The contract of a storage, run against a folder and against a real S3 server."""

from __future__ import annotations

import errno
import io
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from glioray.errors import StorageError, UsageError
from glioray.storage import (
    FileStorage,
    S3Storage,
    Storage,
    Unlisted,
    is_local,
    join_uri,
    list_written,
    open_storage,
    split_uri,
)

ODD_KEYS = ["with space/a b.txt", "größe/Ψ.nii.gz", "plus+sign/100%.bin", "a'quote\".txt", "tilde~/.hidden"]


class StorageContract:
    """Subclasses provide the fixture `storage`: an empty storage whose root exists."""

    def test_reads_back_a_written_object(self, storage: Storage) -> None:
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

    def test_lists_sorted_by_whole_key(self, storage: Storage) -> None:
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

    def test_says_that_it_can_be_written_and_leaves_nothing(self, storage: Storage) -> None:
        storage.check_writable()
        below = open_storage(join_uri(storage.uri, "not/yet #1%20?"))
        below.check_writable()
        assert list_written(below) == {}
        below.write("a", b"..")
        assert list_written(below) == {"a": 2}
        assert [info.key for info in storage.list()] == ["not/yet #1%20?/a"]

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
    def test_accepts_odd_keys(self, storage: Storage, key: str) -> None:
        storage.write(key, key.encode())
        assert storage.read(key) == key.encode()
        assert [info.key for info in storage.list()] == [key]

    @pytest.mark.parametrize(
        "key", ["../outside", "a/../../outside", "/etc/passwd", "", "a//b", "a/", ".", "a\0b"]
    )
    def test_rejects_keys_outside_the_root(self, storage: Storage, key: str) -> None:
        for use in (storage.read, storage.exists, storage.delete, lambda key: storage.write(key, b"x")):
            with pytest.raises(StorageError, match="not a key"):
                use(key)

    @pytest.mark.parametrize("prefix", ["../", "/etc/", "a/../../"])
    def test_rejects_prefixes_outside_the_root(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(StorageError, match="not a key"):
            list(storage.list(prefix))

    def test_names_a_missing_object(self, storage: Storage, tmp_path: Path) -> None:
        path = tmp_path / "copy"
        for use in (
            storage.read,
            lambda key: storage.read_range(key, 0, 4),
            lambda key: storage.download(key, path),
        ):
            with pytest.raises(StorageError) as caught:
                use("case/absent.nii.gz")
            message = str(caught.value)
            assert f"{storage.uri}/case/absent.nii.gz" in message
            assert "check" in message
            assert "\n" not in message
        assert not path.exists()

    def test_streams_a_file_up_and_down(self, storage: Storage, tmp_path: Path) -> None:
        for content in (b"", bytes(range(256)) * 5000):
            (tmp_path / "source").write_bytes(content)
            with (tmp_path / "source").open("rb") as stream:
                storage.write("a/file", stream)
            assert storage.read("a/file") == content
            storage.download("a/file", tmp_path / "new folder" / "copy")
            assert (tmp_path / "new folder" / "copy").read_bytes() == content
        assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["copy"]

    def test_a_stream_that_fails_leaves_the_old_object(self, storage: Storage) -> None:
        storage.write("a", b"old")
        with pytest.raises(StorageError, match="cannot be written"):
            storage.write("a", _FailingStream(b"new" * 100_000))
        assert storage.read("a") == b"old"
        assert [info.key for info in storage.list()] == ["a"]

    def test_a_download_that_cannot_be_written_names_the_file(self, storage: Storage, tmp_path: Path) -> None:
        storage.write("a", b"x")
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StorageError, match=r"'.*/file/copy' cannot be written \(Not a directory\)"):
            storage.download("a", tmp_path / "file" / "copy")

    def test_deletes_an_object_once_or_twice(self, storage: Storage) -> None:
        storage.write("a/b", b"x")
        storage.delete("a/b")
        storage.delete("a/b")
        assert not storage.exists("a/b")
        assert list(storage.list()) == []

    def test_a_reader_sees_the_old_object_or_the_new_one(self, storage: Storage) -> None:
        _check_atomic(storage, [bytes([number]) * 300_000 for number in range(1, 4)], num_rounds=10)

    def test_a_stamp_changes_with_the_content(self, storage: Storage) -> None:
        def stamps() -> dict[str, str]:
            return {info.key: info.stamp for info in storage.list()}

        storage.write("a", b"1234")
        storage.write("b", b"1234")
        before = stamps()
        assert all(before.values())
        assert stamps() == before
        storage.write("a", b"4321")
        assert stamps()["a"] != before["a"]
        assert stamps()["b"] == before["b"]

    def test_can_be_pickled_without_secrets(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_does_not_list_folders_and_unfinished_writes(self, storage: Storage, tmp_path: Path) -> None:
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

    def test_creates_the_folder_on_the_first_write(self, tmp_path: Path) -> None:
        storage = open_storage(tmp_path / "new")
        with pytest.raises(StorageError, match="is not a folder"):
            list(storage.list())
        storage.write("a", b"x")
        assert [info.key for info in storage.list()] == ["a"]

    def test_accepts_file_uris(self, tmp_path: Path) -> None:
        open_storage(tmp_path / "with space").write("a", b"x")
        uri = (tmp_path / "with space").as_uri()
        assert "%20" in uri
        assert open_storage(uri).read("a") == b"x"


class TestS3Storage(StorageContract):
    @pytest.fixture
    def storage(self, bucket: str) -> Storage:
        return open_storage(f"s3://{bucket}/some/prefix")

    @pytest.fixture
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """Bytes of a part, the least that S3 allows."""
        monkeypatch.setattr("glioray.storage.s3._PART_BYTES", 5 << 20)
        return 5 << 20

    def test_a_large_object_travels_in_parts(
        self, bucket: str, s3_server: str, small_parts: int, tmp_path: Path
    ) -> None:
        import boto3

        storage = open_storage(f"s3://{bucket}/prefix")
        content = os.urandom(2 * small_parts + 12_345)
        storage.write("bytes", content)
        storage.write("stream", io.BytesIO(content))
        client = boto3.client("s3", endpoint_url=s3_server)
        for key in ("bytes", "stream"):
            etag = client.head_object(Bucket=bucket, Key=f"prefix/{key}")["ETag"]
            assert etag.strip('"').endswith("-3"), f"{key} was not sent in three parts: {etag}"
            assert storage.read(key) == content
            assert storage.read_range(key, small_parts - 5, 10) == content[small_parts - 5 : small_parts + 5]
            storage.download(key, tmp_path / key)
            assert (tmp_path / key).read_bytes() == content

    def test_a_large_stream_that_fails_leaves_no_parts(
        self, bucket: str, s3_server: str, small_parts: int
    ) -> None:
        import boto3

        storage = open_storage(f"s3://{bucket}")
        storage.write("a", b"old")
        with pytest.raises(StorageError, match=r"'s3://.*/a' cannot be written \(the disk is gone\)"):
            storage.write("a", _FailingStream(b"x" * (3 * small_parts)))
        assert storage.read("a") == b"old"
        client = boto3.client("s3", endpoint_url=s3_server)
        assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")

    def test_a_reader_of_parts_sees_the_old_object_or_the_new_one(
        self, storage: Storage, small_parts: int
    ) -> None:
        versions = [bytes([number]) * (2 * small_parts + number) for number in range(1, 4)]
        _check_atomic(storage, versions, num_rounds=1)

    def test_does_not_list_directory_markers(self, bucket: str, s3_server: str) -> None:
        import boto3

        client = boto3.client("s3", endpoint_url=s3_server)
        client.put_object(Bucket=bucket, Key="case/", Body=b"")
        client.put_object(Bucket=bucket, Key="case/t1", Body=b".")
        assert [info.key for info in open_storage(f"s3://{bucket}").list()] == ["case/t1"]

    def test_works_without_a_prefix(self, bucket: str) -> None:
        storage = open_storage(f"s3://{bucket}/")
        assert storage.uri == f"s3://{bucket}"
        storage.write("a/b", b"x")
        assert [info.key for info in storage.list()] == ["a/b"]
        assert [info.key for info in open_storage(f"s3://{bucket}/a").list()] == ["b"]

    def test_names_a_missing_bucket(self, s3_server: str) -> None:
        storage = open_storage("s3://nobody-made-this/prefix")
        for use in (lambda: list(storage.list()), lambda: storage.read("a")):
            with pytest.raises(StorageError, match=r"s3://nobody-made-this/prefix.*NoSuchBucket"):
                use()

    def test_reports_wrong_credentials(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
        with pytest.raises(StorageError, match="AWS credentials") as caught:
            open_storage(f"s3://{bucket}").read("a")
        assert "not-the-key" not in str(caught.value)

    def test_names_the_endpoint_of_a_missing_server(
        self, s3_server: str, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = f"http://127.0.0.1:{free_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        errors = [_error(lambda: open_storage("s3://data").read("a"))]
        errors.append(_error(lambda: list(open_storage("s3://data").list())))
        assert all(endpoint in error and "AWS_ENDPOINT_URL" in error for error in errors)
        assert not any("\n" in error for error in errors)

    def test_names_an_endpoint_without_a_scheme(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:8333")
        assert "localhost:8333" in _error(lambda: open_storage("s3://data").read("a"))

    def test_reports_missing_credentials(self, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        assert "credentials" in _error(lambda: open_storage("s3://data").read("a"))


class _FailingStream(io.BytesIO):
    """A stream of which only the first half can be read."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= len(self.getbuffer()) // 2:
            raise OSError("the disk is gone")
        return super().read(-1 if size is None or size < 0 else min(size, len(self.getbuffer()) // 2))


def _check_atomic(storage: Storage, versions: list[bytes], *, num_rounds: int) -> None:
    """Overwrite one object while threads read it: each must see a whole version."""
    storage.write("latest.json", versions[0])
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
        for _ in range(num_rounds):
            for version in versions:
                storage.write("latest.json", version)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert seen
    assert {_shorten(item) for item in seen} <= {_shorten(version) for version in versions}


def _shorten(item: bytes | Exception) -> object:
    return (len(item), hash(item)) if isinstance(item, bytes) else item


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


def test_a_file_uri_is_a_path_of_this_machine(tmp_path: Path) -> None:
    for uri, path in (
        ("file:///a/b c", "/a/b c"),
        ("file:///a%20b", "/a b"),
        ("file:///a%2520b", "/a%20b"),
        ("file:///a#b?c", "/a#b?c"),
        ("file:///a%23b%3Fc", "/a#b?c"),
        ("file://localhost/a", "/a"),
        ("file:/a", "/a"),
        ("/a%20b#c?d", "/a%20b#c?d"),
    ):
        assert open_storage(uri).uri == path
    folder = tmp_path / "100% #1?"
    assert open_storage(folder.as_uri()).uri == str(folder)
    for uri in ("file://data/brats", "file://data"):
        with pytest.raises(UsageError, match="is not a path on this machine; write it as file:///data"):
            open_storage(uri)


def test_the_check_of_a_folder_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    open_storage(str(tmp_path / "there/not/yet")).check_writable()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_where_nothing_can_be_written_is_a_sentence(tmp_path: Path, s3_server: str) -> None:
    file = tmp_path / "file"
    file.touch()
    for uri in (str(file), f"{file}/below", "/proc/none", "s3://no-such-bucket/x"):
        message = _error(open_storage(uri).check_writable)
        assert uri.rstrip("/x") in message
        assert "cannot be written" in message
        assert "\n" not in message


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
def test_rejects_a_uri_without_a_name(uri: str) -> None:
    with pytest.raises(UsageError, match="names no object"):
        split_uri(uri)


def test_joins_with_single_slashes() -> None:
    assert join_uri("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"
    assert join_uri("/data", "", "a") == "/data/a"


def test_follows_links_but_not_in_circles(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.bin").write_bytes(b"a")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "linked" / "back").symlink_to(root)
    assert [item.key for item in open_storage(root).list()] == ["linked/a.bin"]


def test_a_file_changed_in_place_has_another_stamp(tmp_path: Path) -> None:
    """Also where a tool restores the time of modification."""
    path = tmp_path / "mask.nii"
    path.write_bytes(b"1234")
    times = path.stat()
    (before,) = open_storage(tmp_path).list()
    with path.open("r+b") as stream:
        stream.write(b"4321")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (after,) = open_storage(tmp_path).list()
    assert (after.size_bytes, path.stat().st_mtime_ns) == (before.size_bytes, times.st_mtime_ns)
    assert after.stamp != before.stamp


def _deny(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Refuse to list these folders, as to a user without the right; the tests may run as root."""
    scandir = os.scandir

    def refuse(path: os.PathLike[str]) -> object:
        if Path(path) in paths:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_what_cannot_be_listed_is_collected_or_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open/a", "shut/b", "shut/below/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b".")
    (tmp_path / "open" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "open" / "circle").symlink_to("circle")
    Path(os.fsdecode(os.fsencode(tmp_path / "open") + b"/caf\xe9.nii")).write_bytes(b".")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9")).mkdir()
    _deny(monkeypatch, tmp_path / "shut")
    storage = open_storage(tmp_path)
    unlisted: list[Unlisted] = []
    assert [info.key for info in storage.list(unlisted=unlisted)] == ["open/a"]
    assert {item.key: item.found for item in unlisted} == {
        r"\xe9t\xe9": "has a name that is not UTF-8",
        r"open/caf\xe9.nii": "has a name that is not UTF-8",
        "open/circle": "cannot be read (Too many levels of symbolic links)",
        "open/gone": "is a link to a file that does not exist",
        "shut": "cannot be read (Permission denied)",
    }
    assert [info.key for info in storage.list("open/a")] == ["open/a"]
    for prefix in ("", "sh", "shut/below/"):
        if prefix == "shut/below/":
            _deny(monkeypatch, tmp_path / "shut" / "below")
        with pytest.raises(StorageError, match=r"cannot be read|not UTF-8"):
            list(storage.list(prefix))
    _deny(monkeypatch, tmp_path)
    with pytest.raises(StorageError, match=r"cannot be listed \(Permission denied\); check the permissions"):
        list(storage.list(unlisted=[]))


def test_a_root_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/caf\\xe9' is not a name in UTF-8; rename the folder"):
        open_storage(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
