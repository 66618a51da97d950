"""Files that were written before the first release; to be deleted at that release."""

from typing import Any

# Of a config, with the values that runs had before there were these fields.
_NEW_FIELDS = {
    **{"image_size": 0, "skip_broken": False, "validation": 0.0, "split_seed": 0},
    "freeze": "",
}
_LOWERINGS = {"mapped": "cpu", "dense": "tpu"}


def translate(stored: dict[str, Any]) -> dict[str, Any]:
    """Converts what was written up to commit ef71c0e to today's form.

    The lowering of the operators was a field of the model, with other names, as was
    `unroll`, which is gone. The state of the optimiser counted the schedule's steps.
    Some fields of a run's config were not there yet.

    Args:
      stored: a run's config, the facts of a converted directory, or the tree of a
        checkpoint's state; with what has today's form nothing happens.

    Returns:
      The same in today's form.
    """
    if isinstance(model := stored.get("model"), dict) and "lowering" in model:
        name = model["lowering"]
        stored = {"lowering": _LOWERINGS.get(str(name), name), **stored}
    for field in ("model", "arguments"):
        if isinstance(fields := stored.get(field), dict):
            gone = ("lowering", "unroll")
            kept = {name: fields[name] for name in fields if name not in gone}
            stored = {**stored, field: kept}
    if "model" in stored and "dataset" in stored:
        stored = _NEW_FIELDS | stored
    match stored.get("opt_state"):
        case [decay, [momentum, {"count": _}]]:
            stored = {**stored, "opt_state": [decay, [momentum, {}]]}
    return stored
