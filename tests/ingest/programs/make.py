"""Makes the programs of `torch.export` in this folder, and what torch says of them.

  python tests/ingest/programs/make.py        # needs torch; the tests do not

Each program is a tiny module in evaluation. `expected.json` has, for each, FLOPs by torch's own
counter (with attention as products, which it counts; without loops, which it does not), the bytes
of the parameters and buffers that are used; `runs.npz` has inputs and outputs of one run.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent


class Mlp(nn.Module):
    """Products with and without bias, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4, bias=False)
        self.register_buffer("scale", torch.rand(4))

    def forward(self, x):
        return (self.second(functional.gelu(self.first(x))) * self.scale).softmax(-1)


class Convolutions(nn.Module):
    """No padding: torch counts it, and this importer does not."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.uniform_()
        self.norm.running_var.uniform_(0.5, 1.5)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.dilated = nn.Conv2d(8, 6, 2, dilation=2, bias=False)
        self.transposed = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)
        self.line = nn.Conv1d(4, 2, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.plain(x)))
        x = self.transposed(self.dilated(self.grouped(x)))
        return self.line(functional.max_pool2d(x, 2).flatten(2)), functional.adaptive_avg_pool2d(
            x, 1
        )


class Encoder(nn.Module):
    """Embedding, attention with a mask, and norms."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.out = nn.Linear(16, 20)

    def forward(self, words):
        mask = torch.triu(torch.full((6, 6), float("-inf")), diagonal=1)
        return self.out(self.layer(self.table(words), src_mask=mask, is_causal=True))


class Recurrent(nn.Module):
    """Two layers, both ways."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 4, num_layers=2, batch_first=True)
        self.gru = nn.GRU(4, 3, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.gru(self.lstm(x)[0])


class Layers(nn.Module):
    """Norms, pools with padding, resizing, padding, reductions, sorting, indices."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.same = nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=3)
        self.group, self.instance = nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True)
        self.slope, self.norm = nn.PReLU(6), nn.RMSNorm(4)

    def forward(self, x):
        x = self.slope(self.instance(self.group(self.same(self.up(x)))))
        x = functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        x = functional.interpolate(x, size=(7, 5), mode="bilinear")
        x = functional.pad(functional.adaptive_avg_pool2d(x, (3, 5)), (1, 2, 0, 1), value=1.0)
        y = functional.max_pool2d(x, 3, 2, ceil_mode=True, padding=1)
        shuffled = functional.pixel_shuffle(torch.cat([x[:, :4], x[:, 2:]], 1), 2)
        return (
            *(y, self.norm(shuffled.transpose(1, 2)[..., ::4]), x.flip(2).roll(1, 3)),
            *(torch.einsum("bchw,bdhw->bcd", x, x), x.topk(2, 1)[0], x.cumsum(2), x.var(1)),
            *(x.argmax(1), x.norm(dim=1), x.logsumexp(1), x.clamp(0, 1) ** 2, x.sort(2)[0]),
            *(torch.where(x > 0, x, x * 2), x.masked_fill(x < 0, 3.0), x.std(), (x > 0).any(1)),
            *(x.gather(2, x[:, :, :2].abs().long() % 3), x[:, [0, 2], 1], x.max(3)[1]),
        )


class InPlace(nn.Module):
    """Writes through views of a tensor."""

    def forward(self, x):
        y = torch.zeros(3, 4, 4)
        y[0, 1:3] = x
        y[1].view(16)[4:8].add_(x[0])
        y[:, :, 0].mul_(2.0).relu_()
        return y, y.sum(0)


class Cache(nn.Module):
    """A buffer that each run writes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.rand(6, 8))
        self.product = nn.Linear(8, 8)

    def forward(self, x):
        self.cache[0:1] = self.product(x)
        return self.cache @ x.T


class Branch(nn.Module):
    """Two graphs, of which one runs."""

    def __init__(self):
        super().__init__()
        self.product = nn.Linear(8, 8)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: self.product(y), lambda y: y * 2, (x,))


class Dynamic(nn.Module):
    """A free batch, which a reshape takes part in."""

    def __init__(self):
        super().__init__()
        self.product = nn.Linear(8, 6)

    def forward(self, x):
        return self.product(x).reshape(x.shape[0] * 2, 3).relu()


class Unknown(nn.Module):
    """An operator without a rule."""

    def forward(self, x):
        return torch.special.i0(x @ x)


IMAGE = (torch.randn(2, 3, 19, 19),)
WORDS = (torch.randint(0, 20, (2, 6)),)
PROGRAMS = {
    "mlp": (Mlp, (torch.randn(3, 8),), {}),
    "convolutions": (Convolutions, IMAGE, {}),
    "convolutions-core": (Convolutions, IMAGE, {"core": True}),
    "encoder": (Encoder, WORDS, {}),
    "encoder-core": (Encoder, WORDS, {"core": True}),
    "recurrent": (Recurrent, (torch.randn(2, 4, 5),), {}),
    "layers": (Layers, (torch.randn(1, 8, 7, 7),), {}),
    "layers-core": (Layers, (torch.randn(1, 8, 7, 7),), {"core": True}),
    "in-place": (InPlace, (torch.randn(2, 4),), {}),
    "cache": (Cache, (torch.randn(1, 8),), {}),
    "branch": (Branch, (torch.randn(1, 8),), {}),
    "dynamic": (Dynamic, (torch.randn(4, 8),), {"free": True}),
    "unknown": (Unknown, (torch.randn(4, 4),), {}),
}


def main() -> None:
    """Writes all programs, `expected.json` and `runs.npz`."""
    expected, arrays = {}, {}
    for name, (kind, inputs, options) in PROGRAMS.items():
        torch.manual_seed(0)
        module = kind().eval().requires_grad_(False)
        shapes = ({0: torch.export.Dim("batch")},) if options.get("free") else None
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
            if options.get("core"):
                program = program.run_decompositions()
            for graph_module in program.graph_module.modules():  # paths of a machine
                for node in getattr(graph_module, "graph", nn.Module()).nodes:
                    node.meta.pop("stack_trace", None)
            torch.export.save(program, HERE / f"{name}.pt2")
            outputs = module(*inputs)
            again = torch.export.export(module, inputs).module()
            with counter:
                again(*inputs)
        signature = program.graph_signature
        targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        used = {node.name for node in program.graph.nodes if node.users}
        expected[name] = {
            "torch": torch.__version__.partition("+")[0],
            "flops": counter.get_total_flops(),
            "weight_bytes": sum(
                program.state_dict[key].nbytes for name, key in targets.items() if name in used
            ),
        }
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for what, tensors in (("in", inputs), ("out", outputs)):
            arrays |= {f"{name} {what} {i}": t.detach().numpy() for i, t in enumerate(tensors)}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    np.savez_compressed(HERE / "runs.npz", **arrays)


if __name__ == "__main__":
    main()
