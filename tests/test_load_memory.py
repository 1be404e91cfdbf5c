"""Loading takes little more memory than the weights, whatever lies on disk.

On a CPU a device's memory is the process's own, so a second copy anywhere would show
in its largest resident size. The bound for models of any size is 1.1 times the weights
plus 1 GiB; these are too small for the second term to be let off.
"""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_checkpoints import small_config, write_gguf

from tsi.models.families.architectures import FAMILIES

CONFIG = small_config(
    vocab_size=16_384,
    width=512,
    hidden=8192,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_width=64,
)
SLACK = 32 << 20
"""For what is imported during the loading, and blocks in flight; not a parameter."""

MEASURE = """
import json, sys
import jax, jax.numpy as jnp
from tsi.models.loading.checkpoint import load
from tsi.models.partition import make_mesh, memory
path, dtype, model = sys.argv[1:]
mesh = make_mesh(1, int(model)) if int(model) else None
jnp.zeros(3).block_until_ready()
def peak():
    # Not getrusage, whose maximum begins with that of the process that started this.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))
before = peak()
model, _ = load(path, dtype=dtype, mesh=mesh)
where = memory(model)
print(json.dumps([where.total, list(where.by_device.values()), peak() - before]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random bf16 weights of 232 MB as safetensors, and the same as 8-bit GGUF."""
    folder = tmp_path_factory.mktemp("large") / "folder"
    folder.mkdir()
    rng = np.random.default_rng(0)
    d, f = CONFIG.width, CONFIG.hidden
    shapes = {
        "model.embed_tokens.weight": (CONFIG.vocab_size, d),
        "model.norm.weight": (d,),
    }
    for layer in range(CONFIG.num_layers):
        block = f"model.layers.{layer}."
        shapes |= {
            block + "input_layernorm.weight": (d,),
            block + "post_attention_layernorm.weight": (d,),
            block + "mlp.gate_proj.weight": (f, d),
            block + "mlp.up_proj.weight": (f, d),
            block + "mlp.down_proj.weight": (d, f),
        }
        for part in "qkvo":
            shapes[f"{block}self_attn.{part}_proj.weight"] = (d, d)
    tensors = {
        name: (rng.random(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    fields = {"architectures": ["LlamaForCausalLM"]} | FAMILIES["llama"].write(CONFIG)
    (folder / "config.json").write_text(json.dumps(fields))
    file = folder.parent / "model.gguf"
    write_gguf(file, folder, CONFIG, quantisation=gguf.GGMLQuantizationType.Q8_0)
    return {"safetensors": folder, "gguf": file}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("kind", "dtype", "devices"),
    [
        ("safetensors", "float32", 0),
        ("safetensors", "bfloat16", 0),
        ("safetensors", "float32", 4),
        ("gguf", "float32", 0),
        ("gguf", "bfloat16", 0),
    ],
)
def test_the_peak_is_the_weights(files, kind, dtype, devices, monkeypatch):
    flags = f"--xla_force_host_platform_device_count={max(devices, 1)}"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-c", MEASURE, str(files[kind]), dtype, str(devices)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    weights, by_device, peak = json.loads(done.stdout)
    assert weights > 2 * SLACK
    assert peak < weights * 1.1 + SLACK
    if devices:
        # The norms alone are on all of them.
        assert max(by_device) < weights / devices * 1.01
