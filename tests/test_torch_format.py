"""Files of PyTorch, read and written without it; `torch` itself is the oracle."""

import collections
import io
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
from conftest import ROOT, process
from oracle import needs_torch, torch

from lrunet_jax.errors import InputError
from lrunet_jax.weights import torch_format

LEGACY = {"_use_new_zipfile_serialization": False}
containers = pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])


def assert_same(found, expected):
    """Types, shapes and bits."""
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().contiguous()
        assert found.shape == tuple(expected.shape)
        assert str(found.dtype) == str(expected.dtype).removeprefix("torch.")
        if expected.numel():
            as_bytes = expected.reshape(-1).view(torch.uint8).numpy()
            assert found.tobytes() == as_bytes.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert found == expected
        assert type(found) is type(expected)


def files(shared: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(shared.glob("checkpoints/*.t7"))
    assert len(found) == 18
    return found + sorted(shared.glob("golden/train/*.t7"))


@needs_torch
def test_published_files_are_read_bit_for_bit_and_written_again(shared, tmp_path):
    smallest = np.inf
    for path in files(shared):
        expected = torch.load(path, map_location="cpu", weights_only=True)
        tree = torch_format.read(path)
        assert_same(tree, expected)
        torch_format.write(tmp_path / "again.pt", tree)
        assert_same(tree, torch.load(tmp_path / "again.pt", weights_only=True))
        assert_same(torch_format.read(tmp_path / "again.pt"), expected)
        values = np.concatenate([np.ravel(t) for t in tree["net"].values()])
        smallest = min(smallest, np.abs(values[values != 0]).min())
    assert 0 < smallest < 1e-40  # there are denormals among them


@needs_torch
@containers
def test_whatever_a_state_dict_may_hold(options, tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    floats = [torch.float64, torch.float16, torch.bfloat16]
    integers = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    tree = {
        "types": [base.to(dtype) for dtype in (*floats, *integers, torch.bool)],
        "views": [base, base[1], base[:, 1:], base.transpose(0, 2), base[..., ::2]],
        "shapes": (torch.tensor(5.0), torch.zeros(0, 3), torch.zeros(1)),
        "special": torch.tensor([5.6e-45, float("nan"), float("-inf"), -0.0]),
        "module": torch.nn.BatchNorm2d(3).state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "ordered": collections.OrderedDict(b=1, a=2),
        "plain": [None, True, False, 0, -1, 2**40, 1.5, "ü", (), (1,), (1, 2, 3, 4)],
        3: {},
    }
    torch.save(tree, tmp_path / "tree.pt", **options)
    assert_same(torch_format.read(tmp_path / "tree.pt"), tree)


@needs_torch
def test_a_zip_is_written_that_pytorch_reads_and_maps(tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "net": {f"{i}.weight": rng.normal(size=(i, 3)) for i in range(5)},
        "count": np.array(3),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "list": [1.5, "x", None, True],
    }
    path = tmp_path / "tree.pt"
    torch_format.write(path, tree)
    assert_same(tree, torch.load(path, weights_only=True))
    assert_same(tree, torch.load(path, weights_only=True, mmap=True))
    first = path.read_bytes()
    torch_format.write(path, tree)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(TypeError, match="no place for set"):
        torch_format.write(tmp_path / "x.pt", {"a": {1}})
    with pytest.raises(InputError, match="can't be written"):
        torch_format.write(tmp_path / "missing" / "x.pt", {})


# --- What is refused --------------------------------------------------------------


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@needs_torch
@containers
@pytest.mark.parametrize("where", ["value", "key"])
def test_a_function_in_a_pickle_is_not_run(options, where, tmp_path):
    trap = tmp_path / "executed"
    hostile = Hostile(str(trap))
    tree = {"net": hostile} if where == "value" else {hostile: 1}
    torch.save(tree, tmp_path / "hostile.pt", **options)
    with pytest.raises(InputError, match=r"refers to 'io.open', which is not run"):
        torch_format.read(tmp_path / "hostile.pt")
    assert not trap.exists()


@needs_torch
@containers
def test_a_whole_module_is_refused(options, tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "module.pt", **options)
    with pytest.raises(InputError, match=r"'torch\.nn\.modules\.linear\.Linear'"):
        torch_format.read(tmp_path / "module.pt")


def zip_file(path, pickled, **entries):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name[1:]}", content)


def tensor(size=4, offset=0, shape=(4,), strides=(1,), storage="FloatStorage"):
    """Opcodes of a tensor with storage `0`."""
    plain = lambda value: pickle.dumps(value, 2)[2:-1]
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("
        + plain("storage")
        + f"ctorch\n{storage}\n".encode()
        + b"".join(map(plain, ("0", "cpu", size)))
        + b"tQ"
        + b"".join(map(plain, (offset, shape, strides, False)))
        + b"NtR."
    )


def text(value):
    return b"\x80\x02" + pickle.dumps(value, 2)[2:]


def doubled(depth):
    """Opcodes of a tuple of a tuple twice, and so on: 2 ** depth items in print."""
    steps = (b"h%c\x86q%c" % (i, i + 1) for i in range(depth))
    return b"]q\x00" + b"".join(steps)


def tensor_of(shape):
    """Opcodes of a tensor whose shape is what those of `shape` push last."""
    whole = tensor(shape=7)
    return whole.replace(b"K\x07", shape, 1)


def test_the_tensors_of_these_tests_are_read_when_they_are_right(tmp_path):
    zip_file(tmp_path / "x.pt", tensor(shape=(2, 2), strides=(1, 2)), _0=bytes(16))
    assert torch_format.read(tmp_path / "x.pt").shape == (2, 2)


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (tensor(size=5), "more bytes than the file|has 16 bytes, not 20"),
        (tensor(size=3, shape=(3,)), "has 16 bytes, not 12"),
        (tensor(size=2**61), "declare more bytes than the file has"),
        (tensor(size=-1), "no type or size"),
        (tensor(size=True), "no type or size"),
        (tensor(shape=(5,)), "larger than its storage, or reaching"),
        (tensor(offset=1), "larger than its storage, or reaching"),
        (tensor(strides=(2,)), "larger than its storage, or reaching"),
        (tensor(strides=(-1,)), "are no sizes"),
        (tensor(offset=-1), "are no sizes"),
        (tensor(shape=(2**40,), strides=(0,)), "larger than its storage, or reaching"),
        (tensor(shape=(2**62, 2**62), strides=(0, 0)), "shape"),
        (tensor(shape=(0, 2**61), strides=(1, 1)), "damaged|shape"),
        (tensor(shape=(1,) * 33, strides=(0,) * 33), "shape"),
        (tensor(shape=(2, 2)), "damaged"),
        (tensor(shape="ab", strides="ab"), "shape"),
        (tensor(shape=[4]), "are no sizes"),
        (tensor(storage="QInt8Storage"), "'torch.QInt8Storage'"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", "'posix.system'"),
        (b"\x80\x02(X\x02\x00\x00\x00lsiposix\nsystem\n.", "opcode INST"),
        (b"\x80\x02(cposix\nsystem\nX\x02\x00\x00\x00lso.", "posix.system"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "'posix.system'"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "sets the state of an object"),
        (b"\x80\x02)}b.", "sets the state of an object"),
        (b"\x80\x02N)R.", "calls what is no function"),
        (b"\x80\x02)\x85\x85]s.", "no dict|damaged"),
        (b"\x80\x02}(]K\x01u.", "a key of type list"),
        (b"\x80\x02}()\x85)\x85u.", "a key of type tuple"),
        (b"\x80\x02NK\x01a.", "appends to what is no list"),
        (b"\x80\x02NNK\x01s.", "no dict"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02r\xff\xff\xff\xff.", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02NN.", "damaged"),
        (b"\x80\x02\x86.", "stack runs empty"),
        (b"\x80\x02K\x01Q.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.", "damaged"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.", "damaged|BYTEARRAY8"),
        (b"\x80\x02I" + b"9" * 10000 + b"\n.", "damaged|opcode INT"),
        (b"\x80\x02" + b"N0" * 600_000 + b"N.", "opcode POP"),
        (b"\x80\x02" + b"N" * 1_100_000 + b".", "more than 1,000,000 opcodes"),
        (b"\x80\x02ccollections\nOrderedDict\n.", "a function, a type or bytes as a"),
        (
            b"\x80\x02ccollections\nOrderedDict\n\x85.",
            "a function, a type or bytes as a",
        ),
        (b"\x80\x02ctorch\nFloatStorage\n.", "a function, a type or bytes as a"),
        (text("a" * 1001), "a string of 1,001 characters"),
        (b"\x80\x02\x8b" + struct.pack("<i", 9999) + b"a" * 9999 + b".", "an integer"),
        (b"\x80\x02}(K\x01N\x8a\x08" + b"\x7f" * 8 + b"Nu.", "a key of type int"),
        (b"\x80\x02ccollections\nOrderedDict\n(" + b"N" * 8 + b"tR.", "too many arg"),
        (b"\x80\x02" + doubled(60) + b"N\x93.", "refers to what is no name"),
        (tensor_of(doubled(60)), "are no sizes"),
        (b"", "damaged"),
    ],
)
def test_a_hostile_or_damaged_pickle_gets_one_line(pickled, reason, tmp_path):
    zip_file(tmp_path / "x.pt", pickled, _0=bytes(16))
    with pytest.raises(InputError, match=reason) as error:
        torch_format.read(tmp_path / "x.pt")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither as the legacy nor as the zip"),
        (b"hello", "neither as the legacy nor as the zip"),
        (pickle.dumps({"net": {}}, 2), "neither as the legacy nor as the zip"),
        (b"PK\x03\x04 not a zip", "damaged"),
    ],
)
def test_other_files_are_not_pytorch_s(content, reason, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        torch_format.read(path)


def test_archives_that_unpack_to_more_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(InputError, match="is compressed or larger than the file"):
        torch_format.read(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(InputError, match=r"has not one data\.pkl"):
        torch_format.read(tmp_path / "y.pt")


def test_big_endian_numbers_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(InputError, match="not little-endian"):
        torch_format.read(tmp_path / "x.pt")


def test_what_is_not_there_or_too_large_is_said(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        torch_format.read(tmp_path / "missing.pt")
    with open(tmp_path / "sparse.pt", "wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="larger than 67,108,864 bytes"):
        torch_format.read(tmp_path / "sparse.pt")


def test_what_is_no_file_is_said_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(InputError, match="is no file"):
        torch_format.read(tmp_path / "pipe.pt")


@needs_torch
def test_a_view_that_only_pytorch_can_see_is_refused(tmp_path):
    torch.save({"a": torch._neg_view(torch.ones(3))}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="a tensor with metadata"):
        torch_format.read(tmp_path / "x.pt")


@needs_torch
def test_what_python_2_wrote_is_read(tmp_path):
    pickled = b"\x80\x02ccollections\nOrderedDict\n](](U\x02\xc3\xa9K\x01ee\x85R."
    zip_file(tmp_path / "x.pt", pickled)
    assert (
        torch_format.read(tmp_path / "x.pt")
        == {"é": 1}
        == torch.load(tmp_path / "x.pt", weights_only=True)
    )


def test_a_neighbour_s_file_is_not_written_over(tmp_path):
    neighbour = tmp_path / "x.pt.part"
    neighbour.write_text("mine")
    torch_format.write(tmp_path / "x.pt", {})
    assert neighbour.read_text() == "mine"


def test_a_legacy_file_with_a_hostile_list_of_storages_is_refused(tmp_path):
    head = b"".join(
        pickle.dumps(value, 2)
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})
    )
    for keys, reason in (
        (b"\x80\x02" + doubled(60) + b".", "no list of storages"),
        (b"\x80\x02N.", "no list of storages"),
        (text(["0"]), "not those that tensors refer to"),
    ):
        (tmp_path / "x.pt").write_bytes(head + keys)
        with pytest.raises(InputError, match=reason):
            torch_format.read(tmp_path / "x.pt")


@needs_torch
def test_a_legacy_file_cut_short_or_too_long_is_refused(tmp_path):
    file = io.BytesIO()
    torch.save({"a": torch.ones(4)}, file, **LEGACY)
    whole = file.getvalue()
    path = tmp_path / "x.pt"
    for content, reason in (
        (whole[:-1], "has 15 bytes, not 16"),
        (whole + b"x", "1 bytes follow"),
        (whole.replace(struct.pack("<q", 4), struct.pack("<q", 3)), "not of the size"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            torch_format.read(path)


DAMAGE = r"""
import pathlib, random, re, sys, warnings
from lrunet_jax.errors import InputError
from lrunet_jax.weights.loading import open_model
warnings.simplefilter("error")
rng, path, counts = random.Random(0), pathlib.Path(sys.argv[1]), {}
sources = [pathlib.Path(source).read_bytes() for source in sys.argv[2:]]
for i in range(1000):
    content = bytearray(rng.choice(sources))
    if i % 2:
        del content[rng.randrange(len(content)):]
    else:
        # Most of a file is numbers; half of the flips go into the pickles before them.
        end = len(content) if i % 4 else 10000
        content[rng.randrange(end)] = rng.randrange(256)
    path.write_bytes(content)
    try:
        open_model(path)
        outcome = "read"
    except InputError as error:
        outcome = "refused"
        assert "\n" not in str(error), str(error)
        assert len(str(error)) < 1000, str(error)
    counts[outcome, "cut" if i % 2 else "flipped"] = 1
# Of this process alone: ru_maxrss begins with what the parent had.
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
print(sorted(counts))
"""


@pytest.mark.slow
def test_a_thousand_damaged_files_get_a_line_each_and_little_memory(shared, tmp_path):
    sources = [
        shared / "checkpoints" / "fashionmnist-lru1-ckpt-09117.t7",
        shared / "checkpoints" / "fmnist-shufflenetv2-025x-ckpt-09342.t7",
        tmp_path / "zip.pt",
    ]
    torch_format.write(sources[2], torch_format.read(sources[0]))
    arguments = ("-c", DAMAGE, tmp_path / "damaged.t7", *sources)
    result = process(*arguments, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    kilobytes, outcomes = result.stdout.splitlines()
    assert int(kilobytes) < 1e6, kilobytes
    assert outcomes == str(
        [("read", "flipped"), ("refused", "cut"), ("refused", "flipped")]
    )
