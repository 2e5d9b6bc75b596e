"""Results of joint training as they are compared: without what a clock decides, in one order."""

from safetensors.torch import load_file


def timeless(frame):
    """A table without what a clock or the memory's state decides; rows of a step in the order of their splits."""
    frame = frame.drop(columns=[name for name in frame if "seconds" in name or name == "peak_bytes"])
    keys = [name for name in ("run_id", "step", "split", "map") if name in frame]
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def checkpoints(run):
    """Tensors of all checkpoints by file; random streams, which these networks do not use, are left out."""
    files = sorted((run / "checkpoints").glob("*.safetensors"))
    assert files
    return {
        file.name: {key: tensor for key, tensor in load_file(file).items() if not key.startswith("rng.")}
        for file in files
    }
