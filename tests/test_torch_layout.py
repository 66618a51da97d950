"""Networks in the files that people have, as other projects save them."""

import collections
import pickle
import zipfile

import numpy as np
import pytest
from conftest import command
from oracle import create_torch_model, needs_torch, torch
from test_torch_format import zip_file

from lrunet_jax import create_model
from lrunet_jax.errors import InputError
from lrunet_jax.weights import torch_format
from lrunet_jax.weights.loading import open_model


@pytest.fixture(scope="module")
def network():
    """A state_dict, and the variables of the same network here."""
    torch.manual_seed(0)
    return create_torch_model("lrunet", 3, 10, 0.125, layer_reuse=2).state_dict()


def named(state_dict, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state_dict.items()}


def other(state_dict):
    return {name: tensor + 1 for name, tensor in state_dict.items()}


def opened(tree, tmp_path, capsys):
    """The stem's kernel, and what is said."""
    torch.save(tree, tmp_path / "x.pt")
    capsys.readouterr()
    stored = open_model(tmp_path / "x.pt")
    printed = capsys.readouterr()
    assert printed.out == ""
    kernel = stored.variables["params"]["features_0"]["kernel"]
    return np.asarray(kernel).transpose(3, 2, 0, 1), printed.err


def stem(state_dict):
    return state_dict["features.0.weight"].float().numpy()


@needs_torch
@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: {"net": net, "acc": 50.0, "epoch": 3},
        lambda net: {"net": named(net, "module."), "acc": 50.0, "epoch": 3},
    ],
    ids=["bare", "original", "DataParallel"],
)
def test_the_original_s_layout_needs_no_word(wrap, network, tmp_path, capsys):
    kernel, said = opened(wrap(network), tmp_path, capsys)
    np.testing.assert_array_equal(kernel, stem(network))
    assert said == ""


LIGHTNING = {
    "epoch": 3,
    "global_step": 1200,
    "pytorch-lightning_version": "2.5.0",
    "loops": {
        "fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}
    },
    "callbacks": {
        "ModelCheckpoint{'monitor': 'val_acc'}": {
            "best_model_score": None,
            "dirpath": "/tmp/checkpoints",
        }
    },
    # As MultiStepLR's.
    "lr_schedulers": [{"milestones": collections.Counter({200: 1}), "last_epoch": 4}],
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.1, "arch": "lrunet"},
}


@needs_torch
@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda net: {"state_dict": net, "arch": "lrunet"}, "state_dict"),
        (lambda net: {"model_state_dict": net, "epoch": 7}, "model_state_dict"),
        (lambda net: {"model": net}, "model"),
        (
            lambda net: {"net": named(net, "_orig_mod.")},
            "net, names after '_orig_mod.'",
        ),
        (lambda net: {"model_ema": net}, "model_ema"),
        (
            lambda net: LIGHTNING | {"state_dict": named(net, "model.")},
            "state_dict, names after 'model.'",
        ),
        (
            lambda net: named(net, "module._orig_mod."),
            "a state_dict, names after 'module._orig_mod.'",
        ),
        (
            lambda net: {"model": named(net, "_orig_mod.module.")},
            "model, names after '_orig_mod.module.'",
        ),
        (lambda net: named(net, "net."), "a state_dict, names after 'net.'"),
        (
            lambda net: {"checkpoint": {"model": net}},
            "checkpoint.model",
        ),
        (
            # As torch.optim.swa_utils.AveragedModel has it.
            lambda net: {"averaged": named(net, "module.") | {"n_averaged": one()}},
            "averaged, names after 'module.'; left out 'n_averaged'",
        ),
        (
            lambda net: named(net, "model.") | {"criterion.weight": one()},
            "a state_dict, names after 'model.'; left out 'criterion.weight'",
        ),
        (
            lambda net: {"model_ema": other(net), "model": net},
            "model; left out 'model_ema'",
        ),
        (
            lambda net: {"state_dict_ema": other(net), "epoch": 3, "state_dict": net},
            "state_dict; left out 'state_dict_ema'",
        ),
        (
            lambda net: {"best": net, "ema": other(net), "last": other(net)},
            "best; left out 'ema', 'last'",
        ),
        (
            lambda net: {"net": net, "net_ema": other(net), "acc": 1.0, "epoch": 3},
            "net; left out 'net_ema'",
        ),
        (
            lambda net: {
                "avg_model": other(net),
                "teacher": other(net),
                "semantic": net,
            },
            "semantic; left out 'avg_model', 'teacher'",
        ),
        (
            lambda net: {
                "emaModel": other(net),
                "modelEMA": other(net),
                "ema2": other(net),
                "rawModel": net,
            },
            "rawModel; left out 'ema2', 'emaModel', 'modelEMA'",
        ),
        (
            lambda net: {"polyak": other(net), "init_state": other(net), "raw": net},
            "raw; left out 'init_state', 'polyak'",
        ),
        (
            lambda net: {"checkpoint": {"best": other(net), "model": net}},
            "checkpoint.model; left out 'checkpoint.best'",
        ),
        (lambda net: dict(net, epoch=3, arch="lrunet"), "a state_dict"),
    ],
)
def test_a_layout_is_read_and_said_in_a_line(wrap, said, network, tmp_path, capsys):
    kernel, printed = opened(wrap(network), tmp_path, capsys)
    np.testing.assert_array_equal(kernel, stem(network))
    assert printed == ("" if said == "a state_dict" else f"x.pt: {said}\n")


def one():
    return torch.ones(1)


@needs_torch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_floats_of_other_widths_are_cast(dtype, network, tmp_path, capsys):
    # All of them, or but for the counters, which `half()` leaves.
    for cast_counters in (True, False):
        cast = {
            name: tensor.to(getattr(torch, dtype))
            if tensor.is_floating_point() or cast_counters
            else tensor
            for name, tensor in network.items()
        }
        kernel, said = opened({"model": cast}, tmp_path, capsys)
    np.testing.assert_array_equal(kernel, stem(cast))
    assert kernel.dtype == np.float32
    assert said == f"x.pt: model, {dtype} cast to float32\n"


@needs_torch
def test_a_number_that_float32_cannot_hold_is_refused(network, tmp_path):
    large = {k: v.double() if v.is_floating_point() else v for k, v in network.items()}
    large["features.1.bias"][2] = 1e300
    torch.save(large, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"'features\.1\.bias' is too large for float"):
        open_model(tmp_path / "x.pt")


@needs_torch
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_stands_beside_tensors_is_read(options, protocol, network, tmp_path):
    beside = {
        "device": torch.device("cuda", 1),
        "host": torch.device("cpu"),
        "shape": torch.Size([3, 32, 32]),
        "accuracy": np.float64(0.5),
        "loss": np.float32(0.25),
        "step": np.int64(7),
        "done": np.bool_(True),
        "history": [np.float16(1.5), np.uint8(200)],
        "optimizer": torch.optim.SGD(
            [torch.nn.Parameter(torch.ones(2))], 0.1
        ).state_dict(),
        "ordered": collections.OrderedDict(a=1),
        "milestones": collections.Counter({200: 1, 250: 1}),
    }
    path = tmp_path / "x.pt"
    torch.save({"model": network, **beside}, path, pickle_protocol=protocol, **options)
    tree = torch_format.read(path)
    assert tree["device"] == "cuda:1"
    assert tree["host"] == "cpu"
    assert tree["shape"] == (3, 32, 32)
    numbers = [tree[name] for name in ("accuracy", "loss", "step", "done")]
    assert numbers == [0.5, 0.25, 7, True]
    assert list(map(type, numbers)) == [float, float, int, bool]
    assert tree["history"] == [1.5, 200]
    assert tree["milestones"] == {200: 1, 250: 1}
    assert open_model(path).arguments["layer_reuse"] == 2


def pickled(value):
    return pickle.dumps(value, 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02ctorch\ndevice\n(X\x01\x00\x00\x00aX\x01\x00\x00\x00btR.", "device"),
        (b"\x80\x02ctorch\nSize\nX\x01\x00\x00\x00a\x85R.", "torch.Size of no sizes"),
        (pickled(np.array([1.0, 2.0])), "_reconstruct"),
        (pickled(np.str_("abc")), "NumPy type that is no number's"),
        (pickled(np.complex64(1)), "NumPy type that is no number's"),
        (pickled(np.float32(1)).replace(b"f4", b"f8"), "of 4 bytes, not 8"),
        (pickled(np.dtype(">f4").type(1)).replace(b"<", b">"), "not little-endian"),
        (pickled(b"abc").replace(b"latin1", b"hex__1"), "bytes in another encoding"),
        (pickled(b"abc"), "a function, a type or bytes as a value"),
        (pickled(b"a" * 9), "bytes in another encoding, or of no number"),
        (pickled(np.dtype("f4")), "a function, a type or bytes as a value"),
        (b"\x80\x02cnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tR.", "no number's"),
        (
            b"\x80\x02cnumpy\nload\nX\x01\x00\x00\x00a\x85R.",
            "'numpy.load', which is not",
        ),
    ],
)
def test_no_more_than_that_is_read(content, reason, tmp_path):
    zip_file(tmp_path / "x.pt", content)
    with pytest.raises(InputError, match=reason) as error:
        torch_format.read(tmp_path / "x.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({}, "it holds nothing by name"),
        ([1, 2], "it holds nothing by name"),
        ({"epoch": 1, "arch": "x"}, "its keys are 'arch', 'epoch'$"),
        (
            {"state_dict": {"encoder.weight": np.ones(1), "head.bias": np.ones(1)}},
            r"its keys are 'state_dict', and in state_dict are 'encoder\.weight', 'hea",
        ),
        (
            {f"layer.{i}": np.ones(1) for i in range(9)},
            "'layer.0', 'layer.1', 'layer.2' and 6 more",
        ),
        # A prefix that nobody is known to put there.
        ({"student.stage1.dw.weight": np.ones((8, 1, 3, 3))}, "'student.stage1"),
    ],
)
def test_where_nothing_fits_the_keys_are_listed(tree, reason, tmp_path):
    torch_format.write(tmp_path / "x.pt", tree)
    with pytest.raises(InputError, match=reason) as error:
        open_model(tmp_path / "x.pt")
    assert "none of the five networks" in str(error.value)
    assert "\n" not in str(error.value)


def test_containers_within_containers_end(tmp_path):
    # A dict that holds itself, and tuples of 2 ** 60 items.
    doubled = b"]q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))
    loop = b"\x80\x02}q\xf0X\x01\x00\x00\x00ah\xf0sX\x01\x00\x00\x00b" + doubled + b"s."
    zip_file(tmp_path / "x.pt", loop)
    with pytest.raises(InputError, match="its keys are 'a', 'b'"):
        open_model(tmp_path / "x.pt")


def test_many_names_of_one_tensor_take_no_memory(tmp_path):
    # Views cost nothing in a file; 2,000 casts of this one would take 40 GB.
    tensor = np.zeros(5_000_000, np.float16)
    torch_format.write(tmp_path / "one.pt", {"a": tensor})
    with zipfile.ZipFile(tmp_path / "one.pt") as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data/0"))
        numbers = archive.read(name)
        opcodes = archive.read("archive/data.pkl")
    start, end = opcodes.index(b"ctorch._utils"), opcodes.rindex(b"u.")
    names = [b"stage1.dw.weight", *(b"a%d" % i for i in range(2000))]
    unicode = lambda name: b"X" + len(name).to_bytes(4, "little") + name
    again = b"".join(unicode(name) + b"h\xf0" for name in names)
    hostile = b"\x80\x02}(" + unicode(b"first") + opcodes[start:end] + b"q\xf0" + again
    zip_file(tmp_path / "x.pt", hostile + b"u.", _0=numbers)
    with pytest.raises(InputError, match="can't be converted") as error:
        open_model(tmp_path / "x.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("called", "reason"),
    [
        # A device of a device, which grows; a size and a dict that are long.
        (b"ctorch\ndevice\nq\x01X\x03\x00\x00\x00cpuK\x01\x86R", "device of another"),
        (b"ctorch\nSize\nq\x01(" + b"K\x01" * 1000 + b"t\x85q\x02R", "of no sizes"),
        (
            b"ccollections\nCounter\nq\x01}("
            + b"".join(b"M" + i.to_bytes(2, "little") + b"N" for i in range(2000))
            + b"u\x85q\x02R",
            "with more than 1,000,000 items",
        ),
    ],
)
def test_calls_upon_calls_end(called, reason, tmp_path):
    once_more = b"h\x01h\x02R" if b"q\x02" in called else b"q\x03h\x01h\x03K\x01\x86R"
    zip_file(tmp_path / "x.pt", b"\x80\x02](" + called + once_more * 1000 + b"e.")
    with pytest.raises(InputError, match=reason):
        torch_format.read(tmp_path / "x.pt")


@needs_torch
def test_control_characters_are_not_printed(network, tmp_path, capsys):
    _, said = opened({"a\n\x1b[31m": network}, tmp_path, capsys)
    assert said == "x.pt: a\\n\\x1b[31m\n"


@needs_torch
def test_what_is_said_is_not_among_a_command_s_figures(network, tmp_path):
    torch.save({"model": network}, tmp_path / "x.pt")
    result = command("convert", tmp_path / "x.pt", tmp_path / "y.pt")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "x.pt: model\n"
    assert result.stdout.startswith("x: lrunet (")
    again = open_model(tmp_path / "y.pt")
    model = create_model(**again.arguments)
    assert model.layer_reuse == 2
