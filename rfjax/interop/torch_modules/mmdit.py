"""A rectified-flow MM-DiT in PyTorch, as one file: needs torch and safetensors, nothing else.

    from mmdit import load
    model = load("the folder of this file")
    velocity = model(latents, t, context, pooled)  # t in [0, 1]; 1 is noise
    latents = latents + (t_next - t) * velocity    # one Euler step towards t = 0

`load` reads the weights from `model.safetensors` (or its shards) and the sizes from `config.json`. `rfjax export
--format plain` wrote them beside this file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-6


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPSILON) * self.weight).to(x.dtype)


class TwoLayers(nn.ModuleDict):
    """Linear, SiLU, linear."""

    def __init__(self, source, width):
        super().__init__({"in": nn.Linear(source, width), "out": nn.Linear(width, width)})

    def forward(self, x):
        return self["out"](F.silu(self["in"](x)))


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale[:, None]) + shift[:, None]


class Stream(nn.Module):
    """The weights of one stream, text or image, in one block."""

    def __init__(self, c, dual, final):
        super().__init__()
        hidden, size = c["hidden"], c["hidden"] // c["heads"]
        self.heads, self.dual, self.final, self.norms = c["heads"], dual, final, c["qk_norm"]
        self.chunks = 2 if final else 9 if dual else 6
        self.modulation = nn.Linear(hidden, self.chunks * hidden)
        for second in ("", "2") if dual else ("",):
            setattr(self, f"qkv{second}", nn.Linear(hidden, 3 * hidden))
            if not final:
                setattr(self, f"proj{second}", nn.Linear(hidden, hidden))
            if self.norms:
                setattr(self, f"query_norm{second}", RMSNorm(size))
                setattr(self, f"key_norm{second}", RMSNorm(size))
        if not final:
            self.mlp_in, self.mlp_out = nn.Linear(hidden, c["mlp"]), nn.Linear(c["mlp"], hidden)

    def queries_keys_values(self, x, second=""):
        """Returns queries, keys and values, each [batch, heads, tokens, size]."""
        q, k, v = getattr(self, f"qkv{second}")(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.norms:
            q, k = getattr(self, f"query_norm{second}")(q), getattr(self, f"key_norm{second}")(k)
        return q, k, v

    def finish(self, x, attended, chunks):
        update = chunks[2][:, None] * self.proj(attended)
        if self.dual:
            own = join_heads(
                F.scaled_dot_product_attention(*self.queries_keys_values(modulate(x, chunks[6], chunks[7]), "2"))
            )
            update = update + chunks[8][:, None] * self.proj2(own)
        x = x + update
        hidden = F.gelu(self.mlp_in(modulate(x, chunks[3], chunks[4])), approximate="tanh")
        return x + chunks[5][:, None] * self.mlp_out(hidden)


def join_heads(x):
    return x.transpose(1, 2).flatten(2)


class Block(nn.ModuleDict):
    """One joint attention over all streams; the text streams come first, the image last."""

    def __init__(self, c, streams, dual, final):
        image = {"image": Stream(c, dual, False)}
        super().__init__({name: Stream(c, False, final) for name in streams if name != "image"} | image)

    def forward(self, tokens, condition):
        chunks = {name: stream.modulation(condition).chunk(stream.chunks, -1) for name, stream in self.items()}
        parts = [
            stream.queries_keys_values(modulate(tokens[name], chunks[name][0], chunks[name][1]))
            for name, stream in self.items()
        ]
        q, k, v = (torch.cat(part, 2) for part in zip(*parts))  # noqa: B905
        attended = join_heads(F.scaled_dot_product_attention(q, k, v))
        pieces = attended.split([tokens[name].shape[1] for name in self.keys()], 1)
        return {
            name: stream.finish(tokens[name], piece, chunks[name])
            for (name, stream), piece in zip(self.items(), pieces)  # noqa: B905
            if not stream.final
        }


class Final(nn.Module):
    def __init__(self, hidden, values):
        super().__init__()
        self.modulation, self.linear = nn.Linear(hidden, 2 * hidden), nn.Linear(hidden, values)

    def forward(self, x, condition):
        return self.linear(modulate(x, *self.modulation(condition).chunk(2, -1)))


class MMDiT(nn.Module):
    """The network; `c` holds the settings of config.json."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        hidden, values, grid = c["hidden"], c["patch_size"] ** 2 * c["channels"], c["position_grid"]
        first = c["first_text_tokens"]  # with three weight sets: the number of text tokens in the first set
        self.streams = (["context_first"] if first else []) + ["context", "image"]
        self.patch_embed = nn.Linear(values, hidden)
        self.context_embed = nn.Linear(c["context_size"], hidden)
        self.time_embed = TwoLayers(c["time_embedding_size"], hidden)
        self.pooled_embed = TwoLayers(c["pooled_size"], hidden)
        self.register_buffer("positions", torch.zeros(1, grid * grid, hidden))
        self.blocks = nn.ModuleList(
            Block(c, self.streams, dual=i < c["dual_attention_blocks"], final=i == c["depth"] - 1)
            for i in range(c["depth"])
        )
        self.final = Final(hidden, values)

    def forward(self, latents, t, context, pooled):
        """Returns the velocity, in the latents' shape [batch, channels, height, width].

        Times `t` in [0, 1] are [batch] or one number; `context` is [batch, tokens, size], `pooled` is [batch, size].
        """
        c, p = self.c, self.c["patch_size"]
        batch, channels, height, width = latents.shape
        if height % p or width % p or max(height, width) > p * c["position_grid"]:
            raise ValueError(
                f"latents of {height}x{width}: sides must be multiples of {p}, at most {p * c['position_grid']}"
            )
        t = torch.as_tensor(t, dtype=torch.float32, device=latents.device).expand(batch)
        rows, columns, grid = height // p, width // p, c["position_grid"]
        x = (
            latents.reshape(batch, channels, rows, p, columns, p)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(batch, rows * columns, -1)
        )
        top, left = (grid - rows) // 2, (grid - columns) // 2
        square = self.positions.reshape(grid, grid, -1)[top : top + rows, left : left + columns]
        image = self.patch_embed(x) + square.reshape(1, rows * columns, -1)

        half = c["time_embedding_size"] // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angles = 1000.0 * t.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1).to(latents.dtype)
        condition = F.silu(self.time_embed(features) + self.pooled_embed(pooled))

        text, first = self.context_embed(context), c["first_text_tokens"] or 0
        tokens = {"context": text[:, first:], "image": image} | ({"context_first": text[:, :first]} if first else {})
        for block in self.blocks:
            tokens = block(tokens, condition)
        out = self.final(tokens["image"], condition).reshape(batch, rows, columns, p, p, channels)
        return out.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


def load(folder, dtype=torch.float32):
    """Loads the model of an exported folder, in evaluation mode."""
    from safetensors.torch import load_file

    folder = Path(folder)
    model = MMDiT(json.loads((folder / "config.json").read_text()))
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.to(dtype).eval()
