"""diffusers' SD3Transformer2DModel on a GPU: what rfjax's step is held against in gpu_session.sh."""

from __future__ import annotations

import itertools
import time

KERNELS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")


def fastest_attention(session, device: str, heads: int) -> tuple[str, dict[str, float | str]]:
    """The name of PyTorch's fastest attention at these sizes, forward and backward, and the seconds of each."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape = session.shape
    tokens = shape["tokens"] + (shape["latent"] // 2) ** 2
    qkv = [torch.randn(32, heads, tokens, shape["head_size"], device=device, dtype=torch.bfloat16) for _ in range(3)]
    qkv = [x.requires_grad_() for x in qkv]
    found: dict[str, float | str] = {}
    for name in KERNELS if device == "cuda" else ("MATH",):

        def take(name=name):
            with sdpa_kernel(getattr(SDPBackend, name)):
                torch.nn.functional.scaled_dot_product_attention(*qkv).sum().backward()

        try:
            found[name] = session.time(take, torch.cuda.synchronize if device == "cuda" else lambda: None, most=10)
        except RuntimeError as error:  # a kernel that does not run here
            found[name] = str(error).splitlines()[0][:200]
    timed = {name: seconds for name, seconds in found.items() if isinstance(seconds, float)}
    return min(timed, key=timed.get), found


def make_model(shape: dict, depth: int, device: str, dtype):
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=shape["latent"],
        patch_size=2,
        in_channels=shape["channels"],
        num_layers=depth,
        attention_head_dim=shape["head_size"],
        num_attention_heads=depth,
        joint_attention_dim=shape["context"],
        caption_projection_dim=depth * shape["head_size"],
        pooled_projection_dim=shape["pooled"],
        out_channels=shape["channels"],
        pos_embed_max_size=shape["grid"],
    ).to(device, dtype)


def measure_step(session, depth: int) -> None:
    """Measures the images a second of forward, backward and AdamW, for the largest batches that fit.

    Each block is compiled separately, since compiling the whole network takes minutes; equal blocks share a program.
    The network is measured twice: with float32 weights under autocast, which corresponds to rfjax, and with all weights
    in bfloat16.
    """
    import diffusers
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.backends.cuda.matmul.allow_tf32 = True
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    depth, shape = 2 if session.tiny else depth, session.shape
    kernel, kernels = fastest_attention(session, device, depth)
    session.note(device=name, versions=versions, depth=depth, attention=kernel, attention_seconds=kernels)
    rows: list[dict] = []
    for batch, weights in itertools.product((2, 1) if session.tiny else (128, 64), ("autocast", "bfloat16")):
        if session.left() < 5:
            session.note(stopped=f"out of time before {weights} at batch {batch}")
            break
        dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
        model = make_model(shape, depth, device, dtype)
        session.note(params=sum(p.numel() for p in model.parameters()))
        for block in model.transformer_blocks:
            # a second batch size would else be compiled for sizes of any kind, which is slower
            block.compile(backend="eager" if session.tiny else "inductor", dynamic=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
        z = torch.randn(batch, shape["channels"], shape["latent"], shape["latent"], device=device, dtype=dtype)
        context = torch.randn(batch, shape["tokens"], shape["context"], device=device, dtype=dtype)
        pooled = torch.randn(batch, shape["pooled"], device=device, dtype=dtype)
        t, target = torch.rand(batch, device=device) * 1000, torch.randn_like(z)

        def take(inputs=(z, context, pooled, t), target=target, model=model, optimizer=optimizer, weights=weights):
            with (
                sdpa_kernel(getattr(SDPBackend, kernel)),
                torch.autocast(device, torch.bfloat16, enabled=weights == "autocast"),
            ):
                out = model(*inputs, return_dict=False)[0]
                loss = torch.nn.functional.mse_loss(out.float(), target.float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        row = {"weights": weights, "batch": batch}
        try:
            began = time.monotonic()
            take()
            wait()
            row["first_call_seconds"] = time.monotonic() - began
            row["step_seconds"] = session.time(take, wait, most=10)
            row["images_per_second"] = batch / row["step_seconds"]
        except torch.OutOfMemoryError:
            row["stopped"] = "out of memory"
        if device == "cuda":
            row["used_peak_bytes"] = torch.cuda.max_memory_allocated()
        rows.append(row)
        best = max((row.get("images_per_second", 0.0) for row in rows), default=0.0)
        session.note(settings=rows, images_per_second=best or None)
        del model, optimizer, z, context, pooled, t, target, take
        if device == "cuda":
            torch.cuda.empty_cache()
