"""Every field of a training run. The other configs start from these values.

Override any of them on the command line: --config.model.layer_reuse=14.
"""

import ml_collections
from ml_collections import config_dict

DATASETS = ("cifar10", "cifar100", "fashion_mnist")
RECIPES = ("paper", "modern")


def get_config(argument: str = "cifar10") -> ml_collections.ConfigDict:
    """The config for DATASET or DATASET,RECIPE; here of LruNet, N = 8.

    The recipe `paper`, the default, is the original's. `modern` takes a third of the
    epochs: cosine schedule, Nesterov momentum, label smoothing, averaged weights.

    Raises:
      ValueError: for an unknown data set or recipe.
    """
    dataset, _, recipe = argument.partition(",")
    for name, known in ((dataset, DATASETS), (recipe or "paper", RECIPES)):
        if name not in known:
            raise ValueError(
                f"config argument is {argument!r}, but {name!r} is none of "
                f"{', '.join(known)}; it must be DATASET or DATASET,RECIPE"
            )
    config = paper()
    config.dataset = dataset
    if dataset == "fashion_mnist":
        config.augment.size = 32  # of images of 28, as the original's
    if recipe == "modern":
        modernise(config)
    return config


def modernise(config: ml_collections.ConfigDict) -> None:
    """Turns the recipe `paper` into `modern`."""
    config.epochs = 100
    config.schedule = "cosine"
    config.warmup_epochs = 1.0
    config.nesterov = True
    config.decay_of = "kernels"
    config.normalise = True
    config.label_smoothing = 0.1
    config.ema_decay = 0.99


def paper() -> ml_collections.ConfigDict:
    """The config with every field, as in the paper for LruNet, N = 8, on CIFAR-10."""
    config = ml_collections.ConfigDict()

    # The network, by name, and its class's attributes.
    config.model = ml_collections.ConfigDict()
    config.model.name = "lrunet"
    config.model.layer_reuse = 8  # iterations N of each block
    config.model.width_mult = 1.0  # scales the blocks' channels; multiple of 0.125
    config.model.drop = 0.5  # dropout rate before the last layer

    # digits, a set of TFDS with an image and a label, or folder: of pictures, in
    # train/CLASS and test/CLASS, or in CLASS alone.
    config.dataset = "cifar10"
    config.image_size = 0  # S to resize images to S x S; 0 for the size that all have
    config.skip_broken = False  # leave out pictures of a folder that can't be decoded
    # Images to hold out of the training set, or their share if it is below 1. Then the
    # best epoch is the best on them, and the test set is evaluated at the end.
    config.validation = 0.0
    # Of these images, and of the test images, a tenth, of a set that has none.
    config.split_seed = 0
    # Random crop, rotation and flip of the training images, in this order.
    config.augment = ml_collections.ConfigDict()
    # Of the crop, in pixels; unless it is set, the image's shorter side.
    config.augment.size = config_dict.placeholder(int)
    config.augment.padding = 4  # zeros around the image before it is cropped
    config.augment.rotation = 10.0  # largest angle in degrees, both ways; 0 for none
    # Left and right, for half of the images; unless it is set, where a mirror image is
    # one of its class: in a folder and in sets that are known for it.
    config.augment.flip = config_dict.placeholder(bool)

    # Over all devices, which must divide it; no more than the training images.
    config.batch_size = 256
    config.epochs = 300
    # Of the weights, the order of the images and their augmentation; below 2^32.
    config.seed = 0

    # SGD.
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.nesterov = False
    config.weight_decay = 5e-4
    config.decay_of = "all"  # parameters; or kernels: neither biases nor norms
    # piecewise: times decay_factor at the start of each of decay_epochs.
    # cosine: up from 0 during warmup_epochs, then down to 0 at the end of epochs. A
    # warm-up that is not shorter than the run becomes a tenth of it.
    config.schedule = "piecewise"
    config.decay_epochs = (200, 250)
    config.decay_factor = 0.1
    config.warmup_epochs = 0.0

    # None of these is in the paper's recipe.
    config.normalise = False  # images, by the mean and deviation of the training set
    config.label_smoothing = 0.0  # share of a target that is spread over all classes
    config.mixup = 0.0  # alpha of the Beta distribution; 0 for none
    config.ema_decay = 0.0  # moving averages of the weights, evaluated as test_ema

    # Trained weights to begin with, instead of fresh ones: a PyTorch file, a workdir, a
    # published checkpoint. A classifier of another number of classes stays fresh. From
    # colour to grey the first convolution is summed, the other way it is spread.
    config.init_from = ""
    # What stays as it begins, and runs as in evaluation, with neither dropout nor the
    # batch's own statistics: all_but_classifier, which is the last layer; or nothing.
    config.freeze = ""

    # Of the training step: float32 or bfloat16. Weights, statistics and evaluation
    # stay float32.
    config.dtype = "float32"
    # Of float32 products: default (bfloat16 on TPU, TF32 on GPU), high or highest.
    config.matmul_precision = "highest"
    # How operators are written for the compiler: auto (by platform), cpu, tpu or xla.
    # The results agree up to rounding.
    config.lowering = "auto"
    config.eval_every = 1  # epochs between evaluations; the last is always evaluated
    # A checkpoint is written after every epoch, and within one after so many minutes.
    config.checkpoint_minutes = 5.0
    return config
