"""Remote storage, as etils knows it: files in memory, under a scheme of their own."""

import io
import pathlib
import re

from etils import epath
from etils.epath import stat_utils

SCHEME = "standin://"
FILES: dict[str, bytes] = {}


class _Written(io.BytesIO):
    """A file that is there once it is closed, and whole."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def close(self):
        if not self.closed:
            FILES[self._name] = self.getvalue()
        super().close()


@epath.register_path_cls(SCHEME)
class StandIn(pathlib.PurePosixPath):
    """A path of a file, or of what files are in; as in a bucket, nothing is empty."""

    def __fspath__(self):
        return SCHEME + super().__str__().removeprefix("standin:/").lstrip("/")

    __str__ = __fspath__

    def _below(self):
        prefix = f"{self}/"
        return [name.removeprefix(prefix) for name in FILES if name.startswith(prefix)]

    def exists(self):
        return str(self) in FILES or self.is_dir()

    def is_dir(self):
        return bool(self._below())

    def is_file(self):
        return str(self) in FILES

    def iterdir(self):
        for name in sorted({below.split("/")[0] for below in self._below()}):
            yield self / name

    def glob(self, pattern):
        regex = re.compile(re.escape(pattern).replace(r"\*", "[^/]*"))
        return (path for path in self.iterdir() if regex.fullmatch(path.name))

    def mkdir(self, mode=None, parents=False, exist_ok=False):
        pass

    def open(self, mode="r", **_):
        if "w" in mode:
            file = _Written(str(self))
        elif str(self) in FILES:
            file = io.BytesIO(FILES[str(self)])
        else:
            raise FileNotFoundError(str(self))
        return file if "b" in mode else io.TextIOWrapper(file)

    def read_bytes(self):
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding=None):
        return self.read_bytes().decode()

    def write_bytes(self, data):
        with self.open("wb") as file:
            return file.write(data)

    def write_text(self, data, encoding=None, errors=None):
        return self.write_bytes(data.encode())

    def unlink(self, missing_ok=False):
        FILES.pop(str(self), None)

    def rmtree(self, missing_ok=False):
        for below in self._below():
            del FILES[f"{self}/{below}"]

    def stat(self):
        size = len(FILES[str(self)])
        return stat_utils.StatResult(is_directory=False, length=size, mtime=0)

    def expanduser(self):
        raise AssertionError("a remote path has no home")

    def resolve(self, strict=False):
        raise AssertionError("etils makes a local path of it")

    def rename(self, target):
        raise AssertionError("storage has no renaming")

    replace = rename


def upload(source, target):
    """Copies a local directory."""
    for path in pathlib.Path(source).rglob("*"):
        if path.is_file():
            (epath.Path(target) / path.relative_to(source)).write_bytes(
                path.read_bytes()
            )
