"""An MM-DiT of rfjax in PyTorch, as one file: needs torch and safetensors, nothing else.

    from mmdit import load
    model = load("the folder of this file")
    velocity = model(latents, t, context, pooled)  # if trained as a rectified flow; t in [0, 1], 1 is noise
    latents = latents + (t_next - t) * velocity    # one Euler step towards t = 0

Latents of clips are [batch, channels, frames, height, width]; those of images have no frames.
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


def rotate(x, rotation):
    """Returns queries or keys `x` [batch, heads, tokens, size] with each pair of neighbouring channels rotated by an
    angle; `rotation` is the result of `rotation_of`. Returns `x` unchanged if `rotation` is None."""
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).to(x.dtype)


def sincos(positions, channels):
    frequencies = 10000.0 ** (-torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def rotation_of(c, grid, device):
    """Returns (cos, sin) of the rotary angles, each [tokens, size / 2], for a `grid` of (time, height, width) tokens.
    Returns None if the network adds its positions. `c` holds the settings of config.json."""
    if "rotary_split" not in c:
        return None
    parts = []
    for axis, (tokens, size) in enumerate(zip(grid, c["rotary_split"])):  # noqa: B905
        frequencies = c["rotary_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies
        parts.append(angles.view(*(tokens if a == axis else 1 for a in range(3)), -1).expand(*grid, -1))
    angles = torch.cat(parts, -1).flatten(0, 2)
    return angles.cos().float().to(device), angles.sin().float().to(device)


class TimeAttention(nn.Module):
    """An attention over the tokens of all frames of a clip, in networks whose batch has frames as its items."""

    def __init__(self, c):
        super().__init__()
        hidden, self.heads, self.norms = c["hidden"], c["heads"], c["qk_norm"]
        self.modulation = nn.Linear(hidden, 3 * hidden)
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        if self.norms:
            self.query_norm, self.key_norm = RMSNorm(hidden // self.heads), RMSNorm(hidden // self.heads)

    def forward(self, x, condition, times, added, rotation):
        """Returns the update of `x` [clips * times, tokens, hidden], in which the frames of a clip are adjacent.
        `added`, [times, hidden] or None, are embeddings of the positions in time."""
        shape = x.shape
        x = x.reshape(-1, times * shape[1], shape[2])
        shift, scale, gate = self.modulation(condition[::times]).chunk(3, -1)
        x = modulate(x, shift, scale)
        if added is not None:
            x = x + added.repeat_interleave(shape[1], 0).to(x.dtype)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.norms:
            q, k = self.query_norm(q), self.key_norm(k)
        attended = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v)
        return (gate[:, None] * self.proj(join_heads(attended))).reshape(shape)


class Stream(nn.Module):
    """The weights of one stream, text or image, in one block."""

    def __init__(self, c, dual, final, over_time=False):
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
        self.time = TimeAttention(c) if over_time else None
        if not final:
            self.mlp_in, self.mlp_out = nn.Linear(hidden, c["mlp"]), nn.Linear(c["mlp"], hidden)

    def queries_keys_values(self, x, rotation, second=""):
        """Returns queries, keys and values, each [batch, heads, tokens, size]."""
        q, k, v = getattr(self, f"qkv{second}")(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.norms:
            q, k = getattr(self, f"query_norm{second}")(q), getattr(self, f"key_norm{second}")(k)
        return rotate(q, rotation), rotate(k, rotation), v

    def finish(self, x, attended, chunks, rotation, time):
        update = chunks[2][:, None] * self.proj(attended)
        if self.dual:
            own = join_heads(
                F.scaled_dot_product_attention(
                    *self.queries_keys_values(modulate(x, chunks[6], chunks[7]), rotation, "2")
                )
            )
            update = update + chunks[8][:, None] * self.proj2(own)
        x = x + update
        if self.time is not None:
            x = x + self.time(x, *time)
        hidden = F.gelu(self.mlp_in(modulate(x, chunks[3], chunks[4])), approximate="tanh")
        return x + chunks[5][:, None] * self.mlp_out(hidden)


def join_heads(x):
    return x.transpose(1, 2).flatten(2)


class Block(nn.ModuleDict):
    """One joint attention over all streams; the text streams come first, the image last."""

    def __init__(self, c, streams, dual, final):
        image = {"image": Stream(c, dual, False, c.get("temporal_attention") == "factorised")}
        super().__init__({name: Stream(c, False, final) for name in streams if name != "image"} | image)

    def forward(self, tokens, condition, rotation, time):
        rotations = {"image": rotation}
        chunks = {name: stream.modulation(condition).chunk(stream.chunks, -1) for name, stream in self.items()}
        parts = [
            stream.queries_keys_values(modulate(tokens[name], chunks[name][0], chunks[name][1]), rotations.get(name))
            for name, stream in self.items()
        ]
        q, k, v = (torch.cat(part, 2) for part in zip(*parts))  # noqa: B905
        attended = join_heads(F.scaled_dot_product_attention(q, k, v))
        pieces = attended.split([tokens[name].shape[1] for name in self.keys()], 1)
        return {
            name: stream.finish(tokens[name], piece, chunks[name], rotations.get(name), (condition, *time))
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
        self.patch_frames = c.get("temporal_patch_size", 1)
        hidden, values = c["hidden"], self.patch_frames * c["patch_size"] ** 2 * c["channels"]
        first = c["first_text_tokens"]  # with three weight sets: the number of text tokens in the first set
        self.streams = (["context_first"] if first else []) + ["context", "image"]
        self.patch_embed = nn.Linear(values, hidden)
        self.context_embed = nn.Linear(c["context_size"], hidden)
        self.time_embed = TwoLayers(c["time_embedding_size"], hidden)
        self.pooled_embed = TwoLayers(c["pooled_size"], hidden)
        if "rotary_split" not in c:
            self.register_buffer("positions", torch.zeros(1, c["position_grid"] ** 2, hidden))
        self.blocks = nn.ModuleList(
            Block(c, self.streams, dual=i < c["dual_attention_blocks"], final=i == c["depth"] - 1)
            for i in range(c["depth"])
        )
        self.final = Final(hidden, values)

    def added_positions(self, rows, columns):
        """Returns the position embedding of a frame, [rows * columns, hidden], cut from the middle of the stored grid;
        None if positions are rotary."""
        if "rotary_split" in self.c:
            return None
        grid = self.c["position_grid"]
        top, left = (grid - rows) // 2, (grid - columns) // 2
        square = self.positions.reshape(grid, grid, -1)[top : top + rows, left : left + columns]
        return square.reshape(rows * columns, -1)

    def check(self, frames, height, width):
        c, p = self.c, self.c["patch_size"]
        most = float("inf") if "rotary_split" in c else p * c["position_grid"]
        if height % p or width % p or max(height, width) > most:
            raise ValueError(f"latents of {height}x{width}: sides must be multiples of {p}, at most {most}")
        if not frames or (frames > 1 and frames % self.patch_frames):
            raise ValueError(f"latents of {frames} frames: they must be 1 or a multiple of {self.patch_frames}")

    def forward(self, latents, t, context, pooled):
        """Returns the quantity that the run's formulation predicts (for rectified flow, the velocity). Its shape is
        that of `latents`, [batch, channels, (frames,) height, width].

        Times `t` in [0, 1] are [batch] or one number; `context` is [batch, tokens, size], `pooled` is [batch, size].
        """
        c, p, pt, shape = self.c, self.c["patch_size"], self.patch_frames, latents.shape
        x = latents if latents.ndim == 5 else latents[:, :, None]
        batch, channels, frames, height, width = x.shape
        self.check(frames, height, width)
        if frames == 1 and pt > 1:  # a still fills the patch
            x = x.expand(-1, -1, pt, -1, -1)
        t = torch.as_tensor(t, dtype=torch.float32, device=latents.device).expand(batch)
        times, rows, columns = x.shape[2] // pt, height // p, width // p
        x = x.reshape(batch, channels, times, pt, rows, p, columns, p).permute(0, 2, 4, 6, 3, 5, 7, 1)
        x = self.patch_embed(x.reshape(batch, times, rows * columns, -1))
        frame = self.added_positions(rows, columns)
        later = None
        if frame is not None:
            x = x + frame
            later = sincos(torch.arange(times), c["hidden"]) - sincos(torch.zeros(1), c["hidden"])
            later = later.float().to(x.device)
        time = None, None, None
        if c.get("temporal_attention") == "factorised":  # frames stand in the batch
            time = times, later, rotation_of(c, (times, rows, columns), x.device)
            rotation = rotation_of(c, (1, rows, columns), x.device)
            image = x.flatten(0, 1)
            t, context, pooled = (each.repeat_interleave(times, 0) for each in (t, context, pooled))
        else:
            rotation = rotation_of(c, (times, rows, columns), x.device)
            image = (x if later is None else x + later[:, None].to(x.dtype)).flatten(1, 2)

        half = c["time_embedding_size"] // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angles = 1000.0 * t.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1).to(latents.dtype)
        condition = F.silu(self.time_embed(features) + self.pooled_embed(pooled))

        text, first = self.context_embed(context), c["first_text_tokens"] or 0
        tokens = {"context": text[:, first:], "image": image} | ({"context_first": text[:, :first]} if first else {})
        for block in self.blocks:
            tokens = block(tokens, condition, rotation, time)
        out = self.final(tokens["image"], condition).reshape(batch, times, rows, columns, pt, p, p, channels)
        out = out.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, channels, times * pt, height, width)
        return out[:, :, :frames].reshape(shape)


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
