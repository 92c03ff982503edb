"""Where frozen models run, and in which precision: a device and a dtype of PyTorch. The caller passes the module torch;
this module does not import it."""

from __future__ import annotations

import numpy as np

from rfjax.errors import ConfigError


def choose_device(torch, name: str | None):
    """Returns the device called `name`. If `name` is None or "", that is a GPU if there is one, else the CPU. The
    device is tried out with a small array.

    Raises `ConfigError` for a device that PyTorch does not know or that is not there.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of many kinds, since each device has its own library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        given = f"--device is {name!r}, which PyTorch cannot use on this machine"
        if not name:
            given = "PyTorch chose the device cuda, but cannot use it on this machine"
        raise ConfigError(f"{given} ({reason}); give --device cpu") from None
    return device


class Place:
    """The device on which frozen models run, and their dtype. The method `model` loads a model, from safetensors files
    only."""

    def __init__(self, torch, device: str, compute_dtype: str, variant: str = ""):
        self.torch = torch
        self.device = choose_device(torch, device)
        self.dtype = getattr(torch, compute_dtype)
        self.loading = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        self.loading["variant"] = variant or None

    def model(self, cls, folder, **options):
        """Loads the model of a folder. Raises `ConfigError` if weights are missing: transformers and diffusers would
        initialise them at random."""
        try:
            model, info = cls.from_pretrained(folder, **self.loading, **options)
        except Exception as error:  # the libraries and safetensors raise their own kinds
            raise ConfigError(f"{folder} cannot be loaded as {cls.__name__}: {error}; fetch the folder again") from None
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            given = f"{folder} lacks {len(missing)} weights of {cls.__name__}, {missing[0]} among them"
            raise ConfigError(f"{given}; fetch the folder again")
        return model.eval().requires_grad_(False).to(self.device)

    def arrays(self, function):
        """Wraps `function` to run without gradients and to return a float32 array."""

        def run(*values):
            with self.torch.inference_mode():
                return function(*values).float().cpu().numpy()

        return run

    def tensor(self, array):
        return self.torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device, self.dtype)
